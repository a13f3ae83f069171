"""Phantom heads in the layout, names and labels of any challenge year, for trying out what reads them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cmt_med.base.files import write_bytes, write_json
from cmt_med.data.conventions.brats import CONVENTIONS, Convention
from cmt_med.data.phantom import BANNER, CHANNELS, LABELS, Head, make_head


def write_as_downloaded(
    folder: Path, convention: str, *, heads: int = 2, seed: int = 0, spacing: float = 2.0
) -> list[str]:
    """Write heads as a challenge's download has them.

    Args:
        folder: made if missing.
        convention: a name in :data:`cmt_med.data.conventions.brats.CONVENTIONS`.
        heads: how many.
        seed: of the first head.
        spacing: edge of a voxel in mm; 1 gives 240×240×155.

    Returns:
        The case names. Phantom tumours have no cavity and no part of the core set apart: where a year labels those, half of
        the necrosis is given their label.
    """
    style = CONVENTIONS[convention]
    names = [style.example.format(n=number) for number in range(1, heads + 1)]
    for number, name in enumerate(names):
        head = make_head(seed + number, spacing)
        label = year_labels(head.label, style)
        if style.name == "msd":
            order = [CHANNELS.index(channel) for channel in style.suffixes]
            _save(folder / "imagesTr" / f"{name}.nii.gz", np.moveaxis(head.image[order], 0, -1), head)
            _save(folder / "labelsTr" / f"{name}.nii.gz", label, head)
            continue
        place = folder / ("HGG" if style.name in ("brats2017", "brats2018", "brats2019") else "") / name
        for channel, suffix in style.suffixes.items():
            _save(place / _file(style, name, suffix), head.image[CHANNELS.index(channel)], head)
        _save(place / _file(style, name, style.label_suffix), label, head)
    if style.name == "msd":
        write_json(folder / "dataset.json", _dataset_json(style, names))
    return names


def year_labels(label: NDArray[np.uint8], style: Convention) -> NDArray[np.uint8]:
    """A phantom's label map (NCR 1, ED 2, ET 4) in another year's numbers."""
    result = np.zeros_like(label)
    if "GTV" in style.labels:
        result[np.isin(label, [LABELS["NCR"], LABELS["ET"]])] = style.labels["GTV"]
        return result
    for name in ("NCR", "ED", "ET"):
        result[label == LABELS[name]] = style.labels[name]
    for part in ("NET", "RC"):
        if part in style.labels:
            voxels = np.argwhere(label == LABELS["NCR"])
            half = voxels[len(voxels) // 2 :]
            result[tuple(half.T)] = style.labels[part]
    return result


def _file(style: Convention, case: str, suffix: str) -> str:
    if style.name == "brats2013":
        return f"{suffix}.nii.gz"
    between = "-" if style.name.startswith(("brats2023", "brats2024-gli")) else "_"
    return f"{case}{between}{suffix}.nii.gz"


def _dataset_json(style: Convention, names: list[str]) -> dict[str, object]:
    words = {"background": "background", "ED": "edema", "NCR": "non-enhancing tumor", "ET": "enhancing tumour"}
    return {
        "name": f"BRATS ({BANNER})",
        "demo": True,
        "modality": {str(i): word for i, word in enumerate(style.suffixes.values())},
        "labels": {str(value): words[name] for name, value in style.labels.items()},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }


def _save(path: Path, array: NDArray[np.generic], head: Head) -> None:
    image = nib.Nifti1Image(array, head.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(head.affine, 1)
    image.set_sform(head.affine, 1)
    image.header["descrip"] = BANNER.encode()
    write_bytes(path, gzip.compress(image.to_bytes(), 1, mtime=0))
