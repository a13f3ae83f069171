"""Label images in which every object has a number of its own, through the gate; 0 is the background.

One file of 8, 16 or 32 bits, or a mask for each object (``masks/*.png``), which are numbered in the order of their names. Where
such masks overlap, the smaller object lies on top.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.decoder import Volume
from cmt_med.data.volumes.gate import grid_of, read_label_volume, require_same_grid
from cmt_med.data.volumes.grid import Grid, counted_like
from cmt_med.data.volumes.mask_files import is_pattern, masks_of
from cmt_med.data.volumes.values import LABEL_TOLERANCE, not_finite, not_whole, real_values

LARGEST_NUMBER = 65_535
"""Of an object in a reference: what 16 bits hold. Larger values are colours, or not numbers of objects at all."""


def load_instances(case: Case, like: Grid | None = None, *, any_number: bool = False) -> tuple[NDArray[np.int32], Grid]:
    """Read the numbered objects of a case (D1, D2, D3) and their grid.

    Args:
        case: whose ``instances`` are read.
        like: the grid of its image, which they must lie on; None for none.
        any_number: whether numbers may be larger than those of a reference: a prediction in 3D may have so many objects.

    Raises:
        DataError: E_LABEL for a case without objects' numbers, and for values that are none; E_GRID; and those of the gate.
    """
    path = case.instances
    if path is None:
        raise DataError(
            "the case has no numbered objects", where=f"case {case.name}", why="training and scoring need them",
            fix='add "instances" to the case list', code="E_LABEL",
        )  # fmt: skip
    numbers, own = _painted(path, case) if is_pattern(path) else _of_file(path, case, any_number=any_number)
    if like is None:
        return numbers, own
    numbers, own = counted_like(numbers, own, like)
    return numbers, require_same_grid(like, own, f"case {case.name}: {path}")


def _of_file(path: Path, case: Case, *, any_number: bool) -> tuple[NDArray[np.int32], Grid]:
    volume = read_label_volume(path, Case(case.name, {}, sha256=case.sha256))
    return object_numbers(volume, f"case {case.name}: {path}", any_number=any_number), grid_of(volume)


def object_numbers(volume: Volume, where: str, *, any_number: bool = False) -> NDArray[np.int32]:
    """The numbers in a label image (D1, D2, D3); arguments and errors as of :func:`load_instances`."""
    values = real_values(volume, volume.array)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise not_finite(where)
        apart = np.abs(values - np.rint(values))
        if float(apart.max(initial=0.0)) > LABEL_TOLERANCE:
            raise not_whole(where, int(np.count_nonzero(apart > LABEL_TOLERANCE)), float(apart.max()))
        values = np.rint(values)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > (np.iinfo(np.int32).max if any_number else LARGEST_NUMBER):
        raise DataError(
            f"objects are numbered from {low} to {high}", where=where,
            why=f"0 is the background, and numbers go from 1 to {LARGEST_NUMBER}; other values are those of colours or images",
            fix="number the objects of each image from 1 on, in one channel of 16 bits", code="E_LABEL",
        )  # fmt: skip
    return values.astype(np.int32)


def _painted(pattern: Path, case: Case) -> tuple[NDArray[np.int32], Grid]:
    """The objects of masks in files of their own, the larger ones first."""
    grid: Grid | None = None
    masks: list[tuple[int, NDArray[np.int64]]] = []
    for number, file in enumerate(masks_of(pattern).values(), 1):
        volume = read_label_volume(file, Case(case.name, {}))
        grid = require_same_grid(grid, grid_of(volume), f"case {case.name}: {file}", "the case's first mask")
        masks.append((number, np.flatnonzero(volume.array.ravel(order="F"))))
    assert grid is not None  # there is at least one, or an error
    numbers = np.zeros(int(np.prod(grid.shape)), np.int32)
    for number, places in sorted(masks, key=lambda mask: -len(mask[1])):
        numbers[places] = number
    return numbers.reshape(grid.shape, order="F"), grid
