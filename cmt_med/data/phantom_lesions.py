"""Synthetic heads with none to twelve enhancing lesions of 4 to 30 mm, each with a number of its own: for boxes and objects.

The anatomy is that of :mod:`cmt_med.data.phantom`; vessels and meninges are as bright in T1ce as the lesions, grey matter is in
FLAIR. Everything derived from these volumes is marked PHANTOM DATA.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cmt_med.base.files import write_file, write_json
from cmt_med.data.phantom import BANNER, CHANNELS, CODES, blank_head, blob, gzipped, noise, scan

MOST_LESIONS = 12
DIAMETERS = (4.0, 30.0)  # mm, drawn evenly in their logarithm: small ones are the rule
APART = 3.0  # mm, between the faces of two lesions
_NECROTIC = 14.0  # mm; larger lesions have a dark core and an edema
_TRIES = 200


@dataclass(frozen=True)
class Lesions:
    """A head: ``image`` (4, *S) int16, ``numbers`` (*S) uint16 of its lesions from 1 on, and its affine."""

    image: NDArray[np.int16]
    numbers: NDArray[np.uint16]
    affine: NDArray[np.float64]


def make_lesions(seed: int, spacing: float = 2.0) -> Lesions:
    """Draw a head; the same seed gives the same one. ``spacing`` is the edge of a voxel in mm."""
    rng = np.random.default_rng([seed, 0x1E51])
    head = blank_head(rng, spacing)
    tissue, numbers = head.tissue.copy(), np.zeros(head.tissue.shape, np.uint16)
    rough = noise(rng, tissue.shape, 8.0 / spacing)
    candidates = np.argwhere((head.radius < 0.85) & (tissue == CODES["white"]))
    placed: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(int(rng.integers(0, MOST_LESIONS + 1))):
        diameter = float(np.exp(rng.uniform(*np.log(DIAMETERS))))
        for _ in range(_TRIES):
            index = tuple(candidates[rng.integers(len(candidates))])
            centre = head.position[(slice(None), *index)].astype(np.float64)
            if all(np.linalg.norm(centre - other) > (diameter + size) / 2 * 1.25 + APART for other, size in placed):
                break
        else:
            continue  # no room left
        placed.append((centre, diameter))
        distance = blob(head.position, centre, diameter / 2 * rng.uniform(0.85, 1.15, 3), root=True) + 0.08 * rough
        inside = (distance < 1.0) & head.brain
        inside[index] = True  # a lesion of less than a voxel has one
        if diameter > _NECROTIC:
            edema = (distance < 1.5) & head.brain & (tissue == CODES["white"]) & (numbers == 0)
            tissue[edema] = CODES["edema"]
        tissue[inside], numbers[inside] = CODES["rim"], len(placed)
        if diameter > _NECROTIC:
            tissue[distance < 0.5] = CODES["necrosis"]
    return Lesions(scan(rng, tissue, head.brain, spacing), numbers, head.affine)


def make_lesion_phantom(
    manifest: Path, folder: Path, *, heads: int = 40, seed: int = 0, spacing: float = 2.0, processes: int = 2
) -> None:
    """Write a folder of heads and its case list, which carries ``demo: true``; arguments as of
    :func:`cmt_med.data.phantom.make_phantom`.
    """
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        names = list(pool.map(_write, [folder] * heads, range(seed, seed + heads), [spacing] * heads))
    here, to_folder = manifest.parent.resolve(), folder.resolve()
    if to_folder.is_relative_to(here):  # a list may lead out of its folder by absolute paths only
        to_folder = to_folder.relative_to(here)
    entries = [
        {
            "id": name,
            "image": {channel: str(to_folder / name / f"{name}_{channel}.nii.gz") for channel in CHANNELS},
            "instances": str(to_folder / name / f"{name}_lesions.nii.gz"),
        }
        for name in names
    ]
    write_json(
        manifest,
        {
            "name": f"lesion phantom ({BANNER})",
            "demo": True,
            "modality": {str(i): channel for i, channel in enumerate(CHANNELS)},
            "training": entries,
        },
    )


def _write(folder: Path, seed: int, spacing: float) -> str:
    head = make_lesions(seed, spacing)
    name = f"lesions_{seed:05d}"
    arrays = {channel: head.image[i] for i, channel in enumerate(CHANNELS)} | {"lesions": head.numbers}
    for suffix, array in arrays.items():
        image = nib.Nifti1Image(array, head.affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(head.affine, 1)
        image.set_sform(head.affine, 1)
        image.header["descrip"] = BANNER.encode()
        write_file(folder / name / f"{name}_{suffix}.nii.gz", lambda s, i=image: s.write(gzipped(i)))  # type: ignore[misc]
    return name
