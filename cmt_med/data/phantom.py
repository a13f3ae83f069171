"""Synthetic four-channel heads in the layout of BraTS 2021, for a first run without downloads.

Anatomy (brain, cortex, ventricles, deep nuclei, vessels, meninges) varies with the seed, as do position, size and shape
of one tumour of nested necrosis, enhancing rim and edema. No single channel separates any region: edema shares its FLAIR
brightness with cortex and its T2 brightness with fluid, the rim shares its T1ce brightness with vessels and meninges.
Everything derived from these volumes is marked PHANTOM DATA.
"""

from __future__ import annotations

import gzip
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.files import write_file, write_json

FIELD_OF_VIEW = (240.0, 240.0, 155.0)  # mm, as in BraTS
CHANNELS = ("t1", "t1ce", "t2", "flair")
LABELS = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
BANNER = "PHANTOM DATA"

# Mean brightness of each tissue in t1, t1ce, t2, flair, relative to the scan's scale.
_TISSUE = {
    "fluid": (0.22, 0.22, 1.00, 0.18),
    "grey": (0.55, 0.56, 0.62, 0.74),
    "white": (0.74, 0.76, 0.42, 0.52),
    "nuclei": (0.60, 0.62, 0.52, 0.66),
    "vessel": (0.45, 0.98, 0.22, 0.40),
    "necrosis": (0.36, 0.40, 0.88, 0.56),
    "rim": (0.52, 0.95, 0.70, 0.72),
    "edema": (0.50, 0.51, 0.82, 0.84),
}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """One synthetic head: ``image`` (4, *S) int16, ``label`` (*S) uint8 in BraTS 2021's values, and its affine."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_head(seed: int, spacing: float = 2.0) -> Head:
    """Draw a head.

    Args:
        seed: the same seed gives the same head.
        spacing: edge of a voxel in mm; 1.0 gives BraTS' 240×240×155.
    """
    rng = np.random.default_rng([seed, 0xB8A1])
    head = blank_head(rng, spacing)
    label, tissue = _tumour(rng, head.position, head.radius, head.brain, head.tissue, spacing)
    return Head(scan(rng, tissue, head.brain, spacing), label, head.affine)


@dataclass(frozen=True)
class Anatomy:
    """A head without a tumour.

    Attributes:
        position: (3, *S), in mm from the centre.
        radius: (*S), 1 at the surface of the brain.
        brain: (*S).
        tissue: (*S), numbers of tissues.
        affine: of its voxels.
    """

    position: Array
    radius: Array
    brain: NDArray[np.bool_]
    tissue: NDArray[np.uint8]
    affine: NDArray[np.float64]


def blank_head(rng: np.random.Generator, spacing: float) -> Anatomy:
    """Draw the anatomy of a head."""
    shape = tuple(int(extent / spacing) for extent in FIELD_OF_VIEW)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * spacing for n in shape]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    radii = np.array([66.0, 84.0, 60.0], dtype=np.float32) * rng.uniform(0.92, 1.06, 3).astype(np.float32)
    radius = np.sqrt(sum((p / r) ** 2 for p, r in zip(position, radii, strict=True)))
    radius = radius + 0.05 * noise(rng, shape, 40.0 / spacing)
    brain = radius < 1.0
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[1, 3] = FIELD_OF_VIEW[1] - 1.0
    return Anatomy(position, radius, brain, _anatomy(rng, position, radius, brain, spacing), affine)


CODES = {name: code for code, name in enumerate(_TISSUE)}


def _anatomy(
    rng: np.random.Generator, position: Array, radius: Array, brain: NDArray[np.bool_], spacing: float
) -> NDArray[np.uint8]:
    shape = brain.shape
    folds = noise(rng, shape, 9.0 / spacing)
    tissue = np.full(shape, CODES["white"], dtype=np.uint8)
    tissue[(radius > 0.80 + 0.07 * folds) & brain] = CODES["grey"]
    tissue[(radius > 0.93 + 0.05 * folds) & brain] = CODES["fluid"]
    for side in (-1.0, 1.0):
        centre = np.array([side * rng.uniform(10, 14), rng.uniform(-8, 2), rng.uniform(4, 10)])
        size = np.array([rng.uniform(5, 9), rng.uniform(22, 32), rng.uniform(8, 13)])
        tissue[blob(position, centre, size) + 0.15 * folds < 1] = CODES["fluid"]
        centre = np.array([side * rng.uniform(18, 24), rng.uniform(-8, 6), rng.uniform(-10, -2)])
        tissue[blob(position, centre, np.array([8.0, 14.0, 9.0])) + 0.2 * folds < 1] = CODES["nuclei"]
    for _ in range(rng.integers(3, 9)):  # small bright spots in white matter that are not tumour
        centre = rng.uniform(-0.55, 0.55, 3) * np.array([66.0, 84.0, 60.0])
        spot = blob(position, centre, rng.uniform(2.5, 5.0, 3)) < 1
        tissue[spot & (tissue == CODES["white"])] = CODES["grey"]
    patches = noise(rng, shape, 22.0 / spacing) > 0.55  # enhancing meninges, in places
    tissue[patches & (radius > 0.955) & brain] = CODES["vessel"]
    for _ in range(rng.integers(8, 14)):  # vessels: thin, long
        centre = rng.uniform(-0.7, 0.7, 3) * np.array([66.0, 84.0, 60.0])
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        offset = position - centre.reshape(3, 1, 1, 1).astype(np.float32)
        along = np.tensordot(direction.astype(np.float32), offset, 1)
        across = np.sqrt(np.maximum(0, (offset**2).sum(0) - along**2)) + 1.5 * folds
        tissue[(across < rng.uniform(1.8, 3.0)) & (np.abs(along) < rng.uniform(12, 28)) & brain] = CODES["vessel"]
    return tissue


def _tumour(
    rng: np.random.Generator,
    position: Array,
    radius: Array,
    brain: NDArray[np.bool_],
    tissue: NDArray[np.uint8],
    spacing: float,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    shape = brain.shape
    candidates = np.argwhere((radius < 0.72) & (tissue == CODES["white"]))
    index = tuple(candidates[rng.integers(len(candidates))])
    centre = position[(slice(None), *index)].astype(np.float64)
    core = rng.uniform(12.0, 21.0)
    size = core * rng.uniform(0.85, 1.2, 3)
    distance = blob(position, centre, size, root=True) + 0.14 * noise(rng, shape, 14.0 / spacing)
    inner = rng.uniform(0.50, 0.68)
    spread = rng.uniform(1.5, 2.1)
    wide = distance + 0.16 * noise(rng, shape, 20.0 / spacing)
    fluid = tissue == CODES["fluid"]
    edema = (wide < spread) & brain & ~fluid & (tissue != CODES["vessel"]) & (radius < 0.93)
    rim = (distance < 1.0) & brain
    necrosis = (distance < inner) & brain
    tissue, label = tissue.copy(), np.zeros(shape, dtype=np.uint8)
    for mask, name, value in ((edema, "edema", 2), (rim, "rim", 4), (necrosis, "necrosis", 1)):
        tissue[mask], label[mask] = CODES[name], value
    return label, tissue


def scan(
    rng: np.random.Generator, tissue: NDArray[np.uint8], brain: NDArray[np.bool_], spacing: float
) -> NDArray[np.int16]:
    """The four channels of a head's tissues, (4, *S), with partial volume, texture, bias field and Rician noise."""
    shape = tissue.shape
    channels = []
    for c in range(len(CHANNELS)):
        means = np.array([brightness[c] for brightness in _TISSUE.values()], dtype=np.float32)
        means = means * rng.uniform(0.94, 1.06, len(means)).astype(np.float32)
        clean = ndimage.gaussian_filter(means[tissue], 0.6 / spacing)  # partial volume
        clean *= 1.0 + 0.05 * noise(rng, shape, 5.0 / spacing)  # texture
        clean *= np.exp(rng.uniform(0.05, 0.12) * noise(rng, shape, 80.0 / spacing))  # bias field
        sigma = np.float32(rng.uniform(0.03, 0.06))
        real = clean + sigma * rng.standard_normal(shape, dtype=np.float32)
        imaginary = sigma * rng.standard_normal(shape, dtype=np.float32)
        magnitude = np.hypot(real, imaginary) * rng.uniform(300, 1500)  # Rician
        channels.append(np.where(brain, np.clip(magnitude, 1, 32000), 0).astype(np.int16))
    return np.stack(channels)


def blob(position: Array, centre: NDArray[np.float64], size: NDArray[np.float64], *, root: bool = False) -> Array:
    """The squared distance from an ellipsoid\'s centre in units of its half axes, or its root: 1 at the surface."""
    total = sum(((p - np.float32(c)) / np.float32(s)) ** 2 for p, c, s in zip(position, centre, size, strict=True))
    return np.sqrt(total) if root else np.asarray(total)


def noise(rng: np.random.Generator, shape: tuple[int, ...], wavelength: float) -> Array:
    """Smooth noise of about unit variance that changes over ``wavelength`` voxels."""
    coarse = [max(2, int(np.ceil(n / wavelength)) + 2) for n in shape]
    values = rng.standard_normal(coarse, dtype=np.float32)
    grids = [np.linspace(0.5, c - 1.5, n, dtype=np.float32) for c, n in zip(coarse, shape, strict=True)]
    smooth = values
    for axis, grid in enumerate(grids):  # separable cubic interpolation, one axis after the other
        smooth = _interpolate(smooth, grid, axis)
    return smooth / max(float(smooth.std()), 1e-6)


def _interpolate(values: Array, at: Array, axis: int) -> Array:
    base = np.clip(np.floor(at).astype(int), 0, values.shape[axis] - 2)
    t = at - base
    t = t * t * (3 - 2 * t)
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = t.reshape(shape).astype(np.float32)
    return np.take(values, base, axis) * (1 - weight) + np.take(values, base + 1, axis) * weight


def write_head(folder: Path, number: int, seed: int, spacing: float) -> dict[str, object]:
    """Write one head as BraTS 2021 names it; returns its entry in the case list, relative to ``folder``'s parent."""
    head = make_head(seed, spacing)
    name = f"BraTS2021_{number:05d}"
    arrays = {channel: head.image[i] for i, channel in enumerate(CHANNELS)} | {"seg": head.label}
    for suffix, array in arrays.items():
        image = nib.Nifti1Image(array, head.affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(head.affine, 1)
        image.set_sform(head.affine, 1)
        image.header["descrip"] = BANNER.encode()
        write_file(folder / name / f"{name}_{suffix}.nii.gz", lambda s, i=image: s.write(gzipped(i)))  # type: ignore[misc]
    return {
        "id": name,
        "image": {channel: f"{name}/{name}_{channel}.nii.gz" for channel in CHANNELS},
        "label": f"{name}/{name}_seg.nii.gz",
    }


def gzipped(image: nib.Nifti1Image) -> bytes:
    """The bytes of a ``.nii.gz``, the same each time."""
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def make_phantom(
    manifest: Path, folder: Path, *, heads: int = 48, seed: int = 0, spacing: float = 2.0, processes: int = 2
) -> None:
    """Write a folder of heads and its case list, which carries ``demo: true``.

    Args:
        manifest: the JSON file to write, last, so that it exists only if all heads do.
        folder: where the heads go.
        heads: how many.
        seed: of the first head; the next ones count up.
        spacing: edge of a voxel in mm.
        processes: how many heads are made at once.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        entries = list(
            pool.map(write_head, [folder] * heads, range(heads), range(seed, seed + heads), [spacing] * heads)
        )
    here, to_folder = manifest.parent.resolve(), folder.resolve()
    if to_folder.is_relative_to(here):  # a list may lead out of its folder by absolute paths only
        to_folder = to_folder.relative_to(here)
    for entry in entries:
        images = entry["image"]
        assert isinstance(images, dict)  # by write_head
        entry["image"] = {channel: str(to_folder / file) for channel, file in images.items()}
        entry["label"] = str(to_folder / str(entry["label"]))
    write_json(
        manifest,
        {
            "name": f"BraTS phantom ({BANNER})",
            "demo": True,
            "modality": {str(i): channel for i, channel in enumerate(CHANNELS)},
            "labels": {str(value): name for name, value in LABELS.items()},
            "training": entries,
        },
    )
