"""Label images in which every object has a number of its own, through the gate; 0 is the background.

One file of 8, 16 or 32 bits; a mask for each object (``masks/*.png``), which are numbered in the order of their names; or the
annotations of COCO, in their order. Where such masks overlap, the smaller object lies on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.coco import ENDING, read_coco
from cmt_med.data.volumes.coco_masks import key_of, object_masks
from cmt_med.data.volumes.decoder import Volume, header
from cmt_med.data.volumes.gate import content_of, grid_of, read_label_volume, require_same_grid
from cmt_med.data.volumes.grid import Grid, counted_like
from cmt_med.data.volumes.mask_files import is_pattern, masks_of
from cmt_med.data.volumes.painting import paint_objects
from cmt_med.data.volumes.streams import readable_name
from cmt_med.data.volumes.sums import check_sums
from cmt_med.data.volumes.values import LABEL_TOLERANCE, not_finite, not_whole, real_values

LARGEST_NUMBER = 65_535
"""Of an object in a reference: what 16 bits hold. Larger values are colours, or not numbers of objects at all."""


@dataclass(frozen=True)
class Objects:
    """Numbered objects: ``numbers`` (D1, D2, D3) on a grid, and how many of their voxels lie under another object."""

    numbers: NDArray[np.int32]
    grid: Grid
    covered: int = 0


def load_instances(case: Case, like: Grid | None = None, *, any_number: bool = False) -> tuple[NDArray[np.int32], Grid]:
    """Read the numbered objects of a case (D1, D2, D3) and their grid; arguments and errors as of :func:`load_objects`."""
    found = load_objects(case, like, any_number=any_number)
    return found.numbers, found.grid


def load_objects(case: Case, like: Grid | None = None, *, any_number: bool = False) -> Objects:
    """Read the numbered objects of a case.

    Args:
        case: whose ``instances`` are read.
        like: the grid of its image, which they must lie on; None for none.
        any_number: whether numbers may be larger than those of a reference: a prediction in 3D may have so many objects.

    Raises:
        DataError: E_LABEL for a case without objects' numbers, and for values that are none; E_GRID; E_MANIFEST for annotations
            that are none; and those of the gate.
    """
    path = case.instances
    if path is None:
        raise DataError(
            "the case has no numbered objects", where=f"case {case.name}", why="training and scoring need them",
            fix='add "instances" to the case list', code="E_LABEL",
        )  # fmt: skip
    if is_annotations(path):
        found = _annotated(path, case, like)
    elif is_pattern(path):
        found = _painted(path, case)
    else:
        found = Objects(*_of_file(path, case, any_number=any_number))
    if like is None:
        return found
    numbers, own = counted_like(found.numbers, found.grid, like)
    return Objects(numbers, require_same_grid(like, own, f"case {case.name}: {readable_name(path)}"), found.covered)


def is_annotations(path: Path) -> bool:
    """Tell whether the objects at a path are annotations in a file, by its ending."""
    return path.suffix.lower() == ENDING


def objects_key(case: Case) -> str:
    """The content of a case's objects as part of a key; see :func:`cmt_med.data.volumes.gate.content_of`.

    Raises:
        DataError: E_HASH, naming case and file.
    """
    assert case.instances is not None  # by the callers
    if not is_annotations(case.instances):
        return content_of(case.instances, case)
    try:
        return key_of(case.instances, _image(case))
    except DataError:
        return "missing"  # the gate will name it


def _annotated(path: Path, case: Case, like: Grid | None) -> Objects:
    """The objects of annotations, on the grid of their image."""
    try:
        if path in case.sha256:
            check_sums(path, case.sha256[path], read_coco(path).sha256)
        image = _image(case)
        stored = header(image) if like is None else None
        grid = like or Grid(stored.shape[:3], np.array(stored.affine))  # type: ignore[union-attr]
        width, height, pages = grid.shape
        if pages != 1:
            raise DataError(
                "the annotations are of a 2D image", where=readable_name(image), why=f"the image has {pages} slices",
                fix="give a label image of the volume", code="E_NDIM",
            )  # fmt: skip
        masks = object_masks(path, image, (width, height))
    except DataError as error:
        raise error.within(f"case {case.name}") from error
    numbers, covered = paint_objects(masks, grid.shape, "C")
    return Objects(numbers, grid, covered)


def _image(case: Case) -> Path:
    if not case.images:
        raise DataError("annotations alone have no grid", where=f"case {case.name}", why="they are those of an image",
                        fix="give the data set with its images", code="E_GRID")  # fmt: skip
    return next(iter(case.images.values()))[0]


def _of_file(path: Path, case: Case, *, any_number: bool) -> tuple[NDArray[np.int32], Grid]:
    volume = read_label_volume(path, Case(case.name, {}, sha256=case.sha256))
    return object_numbers(volume, f"case {case.name}: {readable_name(path)}", any_number=any_number), grid_of(volume)


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


def _painted(pattern: Path, case: Case) -> Objects:
    """The objects of masks in files of their own."""
    grid: Grid | None = None
    masks: list[tuple[int, NDArray[np.int64]]] = []
    for number, file in enumerate(masks_of(pattern).values(), 1):
        volume = read_label_volume(file, Case(case.name, {}))
        grid = require_same_grid(
            grid, grid_of(volume), f"case {case.name}: {readable_name(file)}", "the case's first mask"
        )
        masks.append((number, np.flatnonzero(volume.array.ravel(order="F"))))
    assert grid is not None  # there is at least one, or an error
    numbers, covered = paint_objects(masks, grid.shape, "F")
    return Objects(numbers, grid, covered)
