"""The same case with its axes in all 48 orders: the same mask, on each one's own grid (row 19 of the table)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.data.case import Case
from cmt_med.inference.folder import infer_cases
from tests.inference.models import random_ensemble

Array = NDArray[Any]
ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def _rotation(degrees: float, axis: int) -> Array:
    i, j = [k for k in range(3) if k != axis]
    turned = np.eye(3)
    angle = np.radians(degrees)
    turned[i, i] = turned[j, j] = np.cos(angle)
    turned[i, j], turned[j, i] = -np.sin(angle), np.sin(angle)
    return turned


def _affine(spacing: tuple[float, ...], turned: Array) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag(spacing)
    affine[:3, 3] = (-31.25, 12.5, 87.75)
    return affine


GEOMETRIES = {
    "isotropic": ((13, 10, 12), _affine((1, 1, 1), np.eye(3)), None),
    "0.5×0.5×5 mm": ((22, 18, 5), _affine((0.5, 0.5, 5), np.eye(3)), [1.0, 1.0, 2.5]),
    "oblique": ((12, 11, 9), _affine((1, 1.2, 1.5), _rotation(17, 0) @ _rotation(-11, 2)), [1.0, 1.0, 1.0]),
}  # fmt: skip


def turned(array: Array, affine: Array, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Array, Array]:
    """The same image with its axes in another order and direction."""
    moved = np.zeros((4, 4))
    moved[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        moved[old, new] = sign
        moved[old, 3] = 0 if sign > 0 else array.shape[old] - 1
    flips = [axis for axis, sign in enumerate(signs) if sign < 0]
    return np.ascontiguousarray(np.flip(array.transpose(order), flips)), affine @ moved


def _write(path: Path, array: Array, affine: Array) -> Path:
    image = nib.Nifti1Image(array, None)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_48_orders_give_one_mask(tmp_path: Path, geometry: str, soak: bool) -> None:
    shape, affine, spacing = GEOMETRIES[geometry]
    rng = np.random.default_rng(4)
    images = [rng.normal(50, 10, shape).astype(np.float32) + 30 * np.hanning(shape[0])[:, None, None].astype(np.float32)
              for _ in range(2)]  # fmt: skip
    wanted = ORDERS if soak else [ORDERS[0], *ORDERS[4::9]]
    cases = []
    for number, (order, signs) in enumerate(wanted):
        name = f"case{number:02d}"
        files = {c: _write(tmp_path / f"{name}_{c}.nii.gz", *turned(image, affine, order, signs))
                 for c, image in zip("ab", images, strict=True)}  # fmt: skip
        cases.append(Case(name, {channel: (path, None) for channel, path in files.items()}))
    assert infer_cases(random_ensemble(spacing=spacing), cases, tmp_path / "out") == []
    expected = None
    for (order, signs), case in zip(wanted, cases, strict=True):
        found, source = nib.load(tmp_path / f"out/{case.name}.nii.gz"), nib.load(case.images["a"][0])
        assert np.array_equal(found.affine, source.affine)
        labels = np.asarray(found.dataobj)
        if expected is None:
            expected = labels
            assert np.bincount(labels.ravel(), minlength=3).max() < 0.9 * labels.size, "the mask says too little"
        differing = (labels != turned(expected, affine, order, signs)[0]).sum()
        assert differing == 0, f"{differing} of {labels.size} voxels, axes {order}, directions {signs}"
