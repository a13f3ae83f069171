"""The boxes of a case, through the gate: from a file of boxes, or around numbered objects or connected parts of labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.boxes import Boxes
from cmt_med.base.errors import DataError
from cmt_med.data.case import Case, first_image
from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.volumes.box_files import ListedBox, listed_boxes
from cmt_med.data.volumes.gate import load_labels, require_same_grid
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.instances import load_instances

SLACK = 1.0
"""Voxels by which a box may stick out of its image, where it is cut: some tools count pixels from 0, and some from 1."""
OBJECT = "object"
"""The class of numbered objects."""


def has_boxes(case: Case) -> bool:
    """Tell whether a case has boxes, or something that they can be derived from."""
    return case.boxes is not None or case.instances is not None or case.label is not None


def with_one_source(case: Case) -> Case:
    """The case with what its boxes come from alone: a file of boxes, else numbered objects, else labels."""
    if case.boxes is not None:
        return replace(case, instances=None, label=None, ignore=None, annotated=None)
    return replace(case, label=None, ignore=None, annotated=None) if case.instances is not None else case


def boxes_key(case: Case) -> str:
    """The boxes of a case's file as part of a key: of a file for several images, those of its own."""
    assert case.boxes is not None  # by the callers
    try:
        return hashlib.sha256(repr(listed_boxes(case.boxes, first_image(case))).encode()).hexdigest()
    except DataError:
        return "missing"  # the gate will name it


def load_boxes(case: Case, labels: Mapping[str, int], grid: Grid, *, min_component_mm3: float = 0.0) -> Boxes:
    """The boxes of a case, in voxels of its image's grid; along the one slice of a picture from 0 to 1.

    Args:
        case: with ``boxes``, ``instances`` or ``label``; the first that it has counts.
        labels: class -> value, with the background.
        grid: of its image.
        min_component_mm3: connected parts of a label that are smaller are no objects.

    Raises:
        DataError: E_LABEL for boxes that lie outside, are empty or inverted, or whose class is unknown; those of the files.
    """
    if case.boxes is not None:
        listed = listed_boxes(case.boxes, first_image(case))
        return _checked(listed, labels, grid.shape, f"case {case.name}: {case.boxes}")
    if case.instances is not None:
        numbers, _ = load_instances(case, grid)
        value = labels.get(OBJECT, 1)
        return _around(numbers, dict.fromkeys(np.unique(numbers[numbers > 0]).tolist(), value))
    if case.label is None:
        raise DataError(
            "the case has no boxes", where=f"case {case.name}", why="training and scoring need them",
            fix='add "boxes" to the case list', code="E_LABEL",
        )  # fmt: skip
    allowed = [*labels.values(), *([] if case.ignore is None else [case.ignore])]
    label, own = load_labels(case.label, case.name, allowed, sums=case.sha256, colours=case.colours, like=grid)
    require_same_grid(grid, own, f"case {case.name}: {case.label}")
    least = min_component_mm3 / math.prod(grid.spacing)
    return _of_parts(label, [value for value in labels.values() if value], least)


def _of_parts(label: NDArray[np.uint8], values: list[int], least: float) -> Boxes:
    """Boxes around the connected parts of each label of at least so many voxels; corners connect."""
    parts = np.zeros(label.shape, np.int32)
    classes: dict[int, int] = {}
    for value in values:
        found, _ = ndimage.label(label == value, np.ones((3,) * label.ndim, bool))
        sizes = np.bincount(found.ravel())
        keep = np.zeros(len(sizes), np.int32)
        kept = [number for number in range(1, len(sizes)) if sizes[number] >= least]
        for number in kept:
            keep[number] = len(classes) + 1
            classes[len(classes) + 1] = value
        parts += keep[found]
    return _around(parts, classes)


def _around(numbers: NDArray[np.int32], classes: Mapping[int, int]) -> Boxes:
    low, high, values = [], [], []
    for number, place in enumerate(ndimage.find_objects(numbers), 1):
        if place is not None and number in classes:
            low.append([part.start for part in place])
            high.append([part.stop for part in place])
            values.append(classes[number])
    return Boxes.of(low, high, values)


def _checked(listed: list[ListedBox], labels: Mapping[str, int], shape: tuple[int, ...], where: str) -> Boxes:
    """Boxes in three axes, cut to the image.

    Raises:
        DataError: E_LABEL, naming the box.
    """
    rows = []
    values = {canonical_label(name): value for name, value in labels.items()}
    for number, box in enumerate(listed, 1):
        said = f"box {number}, {box.class_name} from {_said(box.low)} to {_said(box.high)}"
        value = values.get(canonical_label(box.class_name), 0)
        if not value:
            known = ", ".join(name for name, value in labels.items() if value)
            raise _refused(f"{said}, has an unknown class", where, f"the classes are {known}", "name it under labels")
        low, high = [*box.low, 0.0][:3], [*box.high, 1.0][:3]
        if len(box.low) == 2 and shape[2] > 1:
            raise _refused(f"{said}, has two axes", where, f"the image has {shape[2]} slices", "give zmin and zmax")
        if any(a >= b for a, b in zip(low, high, strict=True)):
            what = "is empty" if all(a <= b for a, b in zip(low, high, strict=True)) else "ends before it begins"
            raise _refused(f"{said}, {what}", where, "nothing is inside it", "correct or remove the box")
        if any(a < -SLACK or b > n + SLACK for a, b, n in zip(low, high, shape, strict=True)):
            size = " × ".join(map(str, shape[: len(box.low)]))
            raise _refused(
                f"{said}, sticks out of the image", where, f"the image has {size} voxels",
                "correct it, or give the image that it is of",
            )  # fmt: skip
        rows.append((low, high, value, box.score, box.ignored))
    lows, highs, classes, scores, ignored = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    found = Boxes.of(lows, highs, classes, scores, ignored).within(shape)
    if len(found) < len(rows):  # cut to nothing: within the slack, but outside
        raise _refused("a box lies outside of the image", where, "nothing of it is inside", "correct or remove the box")
    return found


def _said(faces: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in faces)})"


def _refused(what: str, where: str, why: str, fix: str) -> DataError:
    return DataError(what, where=where, why=why, fix=fix, code="E_LABEL")


def on_grid(boxes: Boxes, source: NDArray[np.float64], target: NDArray[np.float64]) -> Boxes:
    """The boxes in voxels of another grid, whose axes run along the same directions.

    Args:
        boxes: in voxels of the first.
        source, target: matrices from indices to millimetres.
    """
    between = np.linalg.inv(target) @ source
    ends = [
        faces @ between[:3, :3].T + (between[:3, 3] - 0.5 * between[:3, :3].sum(1) + 0.5)
        for faces in (boxes.low, boxes.high)
    ]
    return Boxes(np.minimum(*ends), np.maximum(*ends), boxes.classes, boxes.scores, boxes.ignored)
