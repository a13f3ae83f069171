"""DICOM slices to one volume: whether they lie behind each other at equal distances, and the matrix if they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError

SAME_DIRECTION = 1e-4
"""Between the direction cosines of two slices: scanners repeat the digits, and a volume of 500 voxels bends by 0.05 of one."""
UNEVEN = 0.05  # of the distance between slices; scanners round positions to 0.01 mm
DRIFT = 0.1  # of a pixel, sideways over the whole stack; 4e-6 in real series


@dataclass(frozen=True)
class Plane:
    """The position of a slice, in DICOM's coordinates (left-posterior-superior, mm).

    Attributes:
        name: file (and frame), for messages.
        position: centre of the first pixel.
        orientation: direction cosines along a row of pixels, then along a column.
        pixel: distance between rows, then between columns.
        shape: (columns, rows).
        between, thickness: what the header says of the distance between slices and of their thickness, if anything.
        instance: identity of the slice.
        number: its number within the series, if it has one.
    """

    name: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel: tuple[float, ...]
    shape: tuple[int, int]
    between: float | None
    thickness: float | None
    instance: str
    number: int | None


def stack_affine(planes: Sequence[Plane], where: str) -> tuple[NDArray[np.float64], list[int]]:
    """The matrix from (column, row, slice) to millimetres (RAS+), and the order of the slices.

    Raises:
        DataError: E_DICOM, naming what keeps the slices from being a volume.
    """
    first = planes[0]
    if len(planes) == 1:
        raise _fault(
            "there is only one slice", where, "a volume needs several", "give the folder with all slices of the series"
        )
    _require_alike(planes, where)
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(along_row @ along_column) > 1e-3:
        raise _fault("ImageOrientationPatient is no pair of perpendicular unit vectors", where, f"it is {first.orientation}",
                     "export the series again")  # fmt: skip
    normal = np.cross(along_row, along_column)
    positions = np.array([plane.position for plane in planes])
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    step = _even_step([planes[i] for i in order], depths[order], where)
    _require_straight(positions[order], normal, min(first.pixel), where)
    _require_no_gap([planes[i] for i in order], step, where)
    affine = np.eye(4)
    affine[:3, 0] = along_row * first.pixel[1]
    affine[:3, 1] = along_column * first.pixel[0]
    affine[:3, 2] = (positions[order[-1]] - positions[order[0]]) / (len(planes) - 1)
    affine[:3, 3] = positions[order[0]]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, [int(i) for i in order]


def _require_alike(planes: Sequence[Plane], where: str) -> None:
    first = planes[0]
    for plane in planes[1:]:
        if np.abs(np.subtract(plane.orientation, first.orientation)).max() > SAME_DIRECTION:
            raise _fault(
                "the slices have mixed orientations", where,
                f"{first.name} points to {_short(first.orientation)}, {plane.name} to {_short(plane.orientation)}",
                "put the slices of each orientation into a folder of their own; localizers are no volume",
            )  # fmt: skip
        if plane.shape != first.shape or not np.allclose(plane.pixel, first.pixel, rtol=1e-4):
            raise _fault(
                "the slices differ in size", where,
                f"{first.name} has {first.shape} pixels of {first.pixel} mm, {plane.name} {plane.shape} of {plane.pixel} mm",
                "put each series into a folder of its own",
            )  # fmt: skip


def _even_step(planes: Sequence[Plane], depths: NDArray[np.float64], where: str) -> float:
    gaps = np.diff(depths)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower one of two: gaps only grow where slices are missing
    at = int(np.argmin(gaps))
    one, other = planes[at], planes[at + 1]
    if gaps[at] < 0.01 or gaps[at] < 0.05 * usual:
        same = one.instance == other.instance and one.instance != ""
        raise _fault(
            "the same slice is there twice" if same else "two slices lie at the same place", where,
            f"{one.name} and {other.name}" + ("" if same else ": several echoes, time points or acquisitions in one series?"),
            "remove the copy" if same else "put each volume into a folder of its own",
        )  # fmt: skip
    at = int(np.argmax(np.abs(gaps - usual)))
    if abs(gaps[at] - usual) > UNEVEN * usual:
        times = gaps[at] / usual
        missing = round(float(times)) - 1
        lost = missing >= 1 and abs(times - round(float(times))) < 0.1
        raise _fault(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing" if lost else "the slices are not evenly spaced", where,
            f"{planes[at].name} and {planes[at + 1].name} lie {gaps[at]:.4g} mm apart, the others {usual:.4g} mm",
            "fetch the missing slices" if lost else "resample the series to even distances (dcm2niix does)",
        )  # fmt: skip
    return usual


def _require_straight(positions: NDArray[np.float64], normal: NDArray[np.float64], pixel: float, where: str) -> None:
    ways = positions - positions[0]
    aside = ways - np.outer(ways @ normal, normal)
    drift = float(np.linalg.norm(aside, axis=1).max())
    if drift > DRIFT * pixel + 0.005:
        angle = np.degrees(np.arctan2(np.linalg.norm(aside[-1]), abs(ways[-1] @ normal)))
        raise _fault(
            f"the slices are shifted sideways: a gantry tilt of {angle:.3g} degrees?", where,
            f"over the stack they move {drift:.4g} mm within their plane, so the volume is sheared",
            "correct the tilt when converting (dcm2niix does, and says so)",
        )  # fmt: skip


def _require_no_gap(planes: Sequence[Plane], step: float, where: str) -> None:
    """Every other slice missing leaves even distances; then only the header's own distance, or the slices' numbers, tell."""
    between, thickness = planes[0].between or 0.0, planes[0].thickness or 0.0
    apart = f"the {len(planes)} slices lie {step:.4g} mm apart"
    if (
        between > 0 and between >= 0.9 * thickness
    ):  # else absent, or the gap between slices, as some scanners write there
        times = step / between
        if times > 1.5 and abs(times - round(times)) < 0.02:
            raise _fault(
                f"only every {round(times)}. slice is there", where,
                f"{apart}, SpacingBetweenSlices is {between:.4g} mm", "fetch the missing slices",
            )  # fmt: skip
        return
    skipped = _steady_skip([plane.number for plane in planes])
    if skipped > 1 and 0 < 1.5 * thickness < step and abs(between + thickness - step) > 0.1 * step:
        raise _fault(
            f"only every {skipped}. slice is there", where,
            f"{apart} and are {thickness:.4g} mm thick, and their InstanceNumbers count in steps of {skipped}",
            "fetch the missing slices; if none is missing, convert the series (dcm2niix)",
        )  # fmt: skip


def _steady_skip(numbers: Sequence[int | None]) -> int:
    """By how much the numbers of the slices grow from one to the next; 0 if they do not grow evenly."""
    known = [number for number in numbers if number is not None]
    steps = {abs(one - other) for one, other in zip(known[1:], known, strict=False)}
    return steps.pop() if len(known) == len(numbers) and len(steps) == 1 else 0


def _short(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in numbers) + ")"


def _fault(what: str, where: str, why: str, fix: str) -> DataError:
    return DataError(what, where=where, why=why, fix=fix, code="E_DICOM")
