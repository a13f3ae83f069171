"""The volumes of a report, and how they are brought to be looked at.

Everything shown is in the order of the patient's axes (left to right, back to front, foot to head), and labels are
painted by target: value i + 1 is the target numbered i, smaller regions over those that contain them. Where prediction
and reference number their labels differently, the painted maps agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.errors import DataError
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.volumes.gate import Grid, load_case, load_labels
from cmt_med.evaluation.overlap import known_voxels, mask_of
from cmt_med.evaluation.surface import bounding_box
from cmt_med.reports.listing import CaseFiles

LONGEST_AXIS = 2048
"""Voxels along an axis of a volume for the browser: most graphics cards' limit for 3D textures, and NIfTI-1 ends at 32767."""
LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL

Targets = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Shown:
    """One case to look at: arrays (R, A, S) on one grid, the affine of their voxels, and the size of a voxel in mm.

    Labels are painted by target; ``predicted`` or ``reference`` is None where there is no such file. ``known`` is the mask of
    what somebody has annotated; None where all is.
    """

    image: NDArray[np.float32]
    predicted: NDArray[np.uint8] | None
    reference: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    known: NDArray[np.bool_] | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def wrong(self) -> NDArray[np.bool_] | None:
        """The mask where prediction and reference differ, of what is annotated; None unless there are both."""
        if self.predicted is None or self.reference is None:
            return None
        wrong: NDArray[np.bool_] = self.predicted != self.reference
        return wrong if self.known is None else wrong & self.known


def load_shown(files: CaseFiles, targets: Targets, reference_targets: Targets, channel: str | None = None) -> Shown:
    """Read a case for looking at it.

    Args:
        files: of the case.
        targets, reference_targets: name -> label values, in the prediction and in the reference.
        channel: which image; the last one by default, of a picture in colour the mean. Without images, the background is black.

    Raises:
        DataError: of the gate, or E_GRID if the files lie on different grids, or E_IO if there are none.
    """
    grid: Grid | None = None
    found: dict[str, NDArray[Any]] = {}
    wanted = channel or next(reversed(files.images), None)
    if wanted is not None:
        # the volumes of a 4D file are read together: the gate wants them all named
        in_colour = channel is None and tuple(files.images) == COLOURS
        loaded = load_case(Case(files.name, files.images, sha256=files.sha256), COLOURS if in_colour else [wanted])
        grid, found["image"] = loaded.grid, loaded.image.mean(axis=0) if in_colour else loaded.image[0]
    for kind, path, values in (
        ("predicted", files.prediction, targets),
        ("reference", files.reference, reference_targets),
    ):
        if path is not None:
            colours = files.colours if kind == "reference" else None
            labels, own = load_labels(path, files.name, sums=files.sha256, colours=colours, like=grid)
            if grid is not None and not grid.equals(own):
                raise DataError(
                    "the volumes lie on different grids", where=f"case {files.name}: {path}",
                    why="they would be shown over one another where they do not belong",
                    fix="predict on the reference's image", code="E_GRID",
                )  # fmt: skip
            grid, found[kind] = own, paint(labels, values)
            unknown = _unknown(found[kind], labels, values, files, kind)
            if unknown is not None:
                found["known"] = found.get("known", True) & ~unknown
    if grid is None:
        raise DataError("there is nothing to show", where=f"case {files.name}", why="no file is known", code="E_IO")
    arrays, affine = turned(found, grid)
    image = arrays.get("image", np.zeros(grid.shape, np.float32))
    return Shown(
        np.ascontiguousarray(image), arrays.get("predicted"), arrays.get("reference"), affine, arrays.get("known")
    )


def _unknown(
    painted: NDArray[np.uint8], labels: NDArray[np.uint8], targets: Targets, files: CaseFiles, kind: str
) -> NDArray[np.bool_] | None:
    """The mask of what nobody has annotated: voxels of a reference, targets of a prediction; None where there is nothing."""
    if kind == "reference":
        known = known_voxels(labels, files.ignore)
        return None if known is None else ~known
    numbers = [i + 1 for i, name in enumerate(targets) if name in files.unscored]
    return mask_of(painted, numbers) if numbers else None


def paint(labels: NDArray[np.uint8], targets: Targets) -> NDArray[np.uint8]:
    """A map where the target numbered i has the value i + 1; those of fewer label values lie over those of more."""
    painted = np.zeros(labels.shape, dtype=np.uint8)
    order = sorted(enumerate(targets.values()), key=lambda item: -len(item[1]))
    for i, values in order[:255]:
        painted[mask_of(labels, values)] = min(i + 1, 255)
    return painted


def largest_error(shown: Shown) -> tuple[int, int, int]:
    """The voxel to look at: the deepest of the largest connected error, else the middle of what is segmented."""
    wrong = shown.wrong
    if wrong is not None and wrong.any():
        box = _box(wrong)
        parts, count = ndimage.label(wrong[box])
        largest = parts == int(np.argmax(np.bincount(parts.ravel())[1:])) + 1 if count > 1 else wrong[box]
        inside = _box(largest)
        # one voxel of margin: the border of the box is no part of the error
        depth = ndimage.distance_transform_edt(np.pad(largest[inside], 1), sampling=shown.spacing)
        peak = np.unravel_index(int(np.argmax(depth)), depth.shape)
        offsets = zip(peak, inside, box, strict=True)
        i, j, k = (int(p) - 1 + inner.start + outer.start for p, inner, outer in offsets)
        return i, j, k
    masks = [mask for mask in (shown.reference, shown.predicted) if mask is not None and mask.any()]
    if not masks:
        i, j, k = (n // 2 for n in shown.image.shape)
        return i, j, k
    i, j, k = (int(np.argmax((masks[0] > 0).sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3))
    return i, j, k


def reduced(shown: Shown, longest: int, margin_mm: float) -> Shown:
    """The part of a case around its labels, with at most ``longest`` voxels per axis; coarser where it must be.

    Args:
        shown: a case.
        longest: voxels per axis that are left at most.
        margin_mm: how much image is kept around the labels.
    """
    masks = [mask > 0 for mask in (shown.predicted, shown.reference) if mask is not None]
    union = np.logical_or.reduce(masks) if masks else np.zeros(shown.image.shape, bool)
    if union.any():
        box = _box(union, tuple(int(np.ceil(margin_mm / s)) for s in shown.spacing))
    else:
        box = tuple(slice(0, n) for n in shown.image.shape)
    steps = [max(1, -(-(part.stop - part.start) // longest)) for part in box]
    return _taken(shown, box, steps)


def coarsened(shown: Shown, most: int) -> Shown:
    """All of a case with at most ``most`` voxels; of a larger one every second, third ... voxel of the longest axes.

    No axis is left longer than ``LONGEST_AXIS``.
    """
    steps = [-(-n // LONGEST_AXIS) for n in shown.image.shape]
    while math.prod(left := [-(-n // step) for n, step in zip(shown.image.shape, steps, strict=True)]) > most:
        steps[int(np.argmax(left))] += 1
    return _taken(shown, [slice(0, n) for n in shown.image.shape], steps)


def _taken(shown: Shown, box: Sequence[slice], steps: Sequence[int]) -> Shown:
    taken = tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps, strict=True))
    affine = shown.affine.copy()
    affine[:3, 3] += shown.affine[:3, :3] @ [part.start for part in box]
    affine[:3, :3] = affine[:3, :3] * steps
    return Shown(
        _cut(shown.image, taken),
        _cut(shown.predicted, taken),
        _cut(shown.reference, taken),
        affine,
        _cut(shown.known, taken),
    )


def _cut(array: Any, taken: tuple[slice, ...]) -> Any:
    return None if array is None else np.ascontiguousarray(array[taken])


def display_window(image: NDArray[np.float32]) -> tuple[float, float]:
    """Brightness shown black and white: percentiles 1 and 99.5 of what is not background."""
    inside = image[image != image.flat[0]]
    values = inside if inside.size else image.ravel()
    low, high = np.percentile(values[:: max(1, values.size // 200_000)], [1, 99.5])  # of a sample: sorting all is slow
    return float(low), float(high if high > low else low + 1)


def nifti_bytes(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    labels: bool = False,
    window: tuple[float, float] | None = None,
) -> bytes:
    """An uncompressed NIfTI file for the viewer, which shows the values of ``window`` from black to white."""
    image = nib.Nifti1Image(array, affine)
    if window is not None:
        image.header["cal_min"], image.header["cal_max"] = window
    if labels:
        image.header.set_intent(LABEL_INTENT)
    return bytes(image.to_bytes())


def turned(found: Mapping[str, NDArray[Any]], grid: Grid) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """Arrays of a grid in the order of the patient's axes, and the affine of their voxels."""
    order = nib.orientations.io_orientation(grid.affine)
    arrays = {kind: nib.orientations.apply_orientation(array, order) for kind, array in found.items()}
    return arrays, grid.affine @ nib.orientations.inv_ornt_aff(order, grid.shape)


def _box(mask: NDArray[np.bool_], margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    parts = zip(bounding_box(mask), margin, mask.shape, strict=True)
    return tuple(slice(max(0, part.start - extra), min(size, part.stop + extra)) for part, extra, size in parts)


# ---- where they lie
