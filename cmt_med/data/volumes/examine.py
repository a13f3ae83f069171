"""A close look at cases that goes on after every fault: what each file holds, and all that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.compute.memory import no_memory
from cmt_med.data.case import COLOURS, Case, Codes, first_image, segments_of
from cmt_med.data.volumes.box_files import listed_boxes
from cmt_med.data.volumes.boxes import load_boxes
from cmt_med.data.volumes.decoder import Volume, decode
from cmt_med.data.volumes.flags import flags_of
from cmt_med.data.volumes.gate import as_listed, grid_of, require_same_grid
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.instances import is_annotations, load_objects, object_numbers
from cmt_med.data.volumes.mask_files import is_pattern
from cmt_med.data.volumes.streams import readable_name
from cmt_med.data.volumes.sums import check_sums
from cmt_med.data.volumes.values import from_colours, label_counts, statistics


@dataclass
class FileReport:
    """The content of one file of a case.

    Attributes:
        path: of the file, or of the folder of a DICOM series.
        role: channel name, ``label``, ``mask`` or ``instances``; several channels of a 4D file are joined with ``+``.
        format, shape, dtype: as stored.
        spacing: in mm.
        axes: directions that indices grow towards, for example ``RAS``.
        oblique_degrees: largest angle to the patient's axes.
        range: smallest and largest value; None for label maps.
        labels: value -> voxels; None for images.
        notes: what is remarkable and harmless.
        flags: what is suspicious.
        problem: the error with which the gate refuses the file; None if it does not.
    """

    path: str
    role: str
    format: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    spacing: tuple[float, ...] = ()
    axes: str = ""
    oblique_degrees: float = 0.0
    range: tuple[float, float] | None = None
    labels: dict[int, int] | None = None
    notes: tuple[str, ...] = ()
    flags: list[str] = field(default_factory=list)
    problem: dict[str, str] | None = None


@dataclass
class CaseReport:
    """The content of a case; ``problems`` are those of its files and of how they fit together."""

    name: str
    files: list[FileReport] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)


@dataclass
class _Seen:
    """Notes taken while the files of a case are read: their grids, and channels by content."""

    grids: list[tuple[FileReport, Grid, str]] = field(default_factory=list)
    contents: dict[bytes, str] = field(default_factory=dict)


def examine(case: Case, channels: Sequence[str], allowed: Sequence[int] | None, *, listed: bool = True) -> CaseReport:
    """Read all files of a case.

    Args:
        case: its files.
        channels: that it should have; empty if nothing says so.
        allowed: label values that may occur; None for any from 0 to 255.
        listed: whether a case list names the channels; without one, a 4D file is remarkable and not wrong.
    """
    report = CaseReport(case.name)
    seen = _Seen()
    missing = [name for name in channels if name not in case.images]
    if missing:
        report.problems.append(_missing(missing, case).as_dict())
    planes: dict[Path, list[tuple[str, int | None]]] = {}
    for name, (path, position) in case.images.items():
        planes.setdefault(path, []).append((name, position))
    for path, parts in planes.items():
        look = partial(_image, parts=parts, seen=seen, report=report, listed=listed)
        _file(report, case, path, "+".join(name for name, _ in parts), seen, look)
    if case.label is not None:
        values = allowed if allowed is not None else range(256)
        _file(report, case, case.label, "label", seen, partial(_label, allowed=values, colours=case.colours))
    if case.mask is not None:
        _file(report, case, case.mask, "mask", seen, partial(_label, allowed=None, colours={}))
    if case.instances is not None and (is_pattern(case.instances) or is_annotations(case.instances)):
        _masks_of_objects(report, case, case.instances, seen)
    elif case.instances is not None:
        _file(report, case, case.instances, "instances", seen, _objects)
    if case.boxes is not None:
        _boxes(report, case, case.boxes, seen)
    _check_grids(report, seen.grids)
    report.flags += [flag for file in report.files for flag in file.flags]
    return report


def _file(
    report: CaseReport, case: Case, path: Path, role: str, seen: _Seen, look: Callable[[Volume, str, FileReport], None]
) -> None:
    found = FileReport(readable_name(path), role)
    report.files.append(found)
    where = f"case {case.name}: {found.path}"
    try:
        if path in case.sha256:
            check_sums(path, case.sha256[path])
        volume = decode(path, labels=role in ("label", "mask", "instances"), segments=segments_of(case.colours))
        _describe(volume, found)
        seen.grids.append((found, grid_of(volume), where))
        look(volume, where, found)
    except DataError as error:
        named = error.where if error.where.startswith("case ") else f"case {case.name}: {error.where or found.path}"
        _add(report, found, error.as_dict() | {"where": named})
    except MemoryError:
        _add(report, found, no_memory(where).as_dict())


def _add(report: CaseReport, found: FileReport, problem: dict[str, str]) -> None:
    found.problem = found.problem or problem
    report.problems.append(problem)


def _check_grids(report: CaseReport, grids: Sequence[tuple[FileReport, Grid, str]]) -> None:
    """Name the files that lie on another grid than most of the case."""
    if not grids:
        return
    usual = max((grid for _, grid, _ in grids), key=lambda grid: sum(grid.equals(other) for _, other, _ in grids))
    for found, grid, where in grids:
        try:
            if grid.reordering(usual) is not None:
                continue
            require_same_grid(usual, grid, where, "most files of the case" if len(grids) > 2 else "the case's image")
        except DataError as error:
            _add(report, found, error.as_dict())


def _describe(volume: Volume, found: FileReport) -> None:
    stored, grid = volume.stored, grid_of(volume)
    found.format, found.shape, found.dtype = stored.format, stored.shape, np.dtype(stored.dtype).name
    found.spacing, found.axes = tuple(round(v, 6) for v in grid.spacing), grid.axes
    found.oblique_degrees, found.notes = round(grid.oblique_degrees, 3), stored.notes


def _image(
    volume: Volume, where: str, found: FileReport, parts: Sequence[tuple[str, int | None]], seen: _Seen, report: CaseReport,
    listed: bool,
) -> None:  # fmt: skip
    named = [position for _, position in parts if position is not None]
    if listed or (named and volume.stored.is_picture):  # in grey, it has the colours that the others of its folder have
        volume = as_listed(volume, [name for name, _ in parts] if named else None, where)
    extra = volume.stored.shape[3:]
    if len(extra) > 1 or (listed and extra != ((len(named),) if named else ())):
        expected = f"{len(named)} channels in one file" if named else "3D"
        raise DataError(
            f"the image has the shape {volume.stored.shape}, {expected} is expected", where=where,
            why="channels would be matched to the wrong names",
            fix="name each channel under 'modality' in the case list, or save one volume alone", code="E_NDIM",
        )  # fmt: skip
    if extra == (3,) and not named and volume.stored.is_picture:
        parts = [(name, i) for i, name in enumerate(COLOURS)]
    elif extra and not named:
        found.notes = (*found.notes, f"{extra[0]} volumes in one file: a case list has to name them under 'modality'")
        parts = [(f"volume {i + 1}", i) for i in range(extra[0])]
    low, high = np.inf, -np.inf
    for name, position in parts:
        values = statistics(volume, where, position)
        low, high = min(low, values.low), max(high, values.high)
        found.flags += flags_of(name, values.low, values.high, values.sample)
        if values.digest in seen.contents and not volume.stored.is_picture:  # shades of grey are often saved in colour
            report.flags.append(f"{seen.contents[values.digest]} and {name} are the same image")
        seen.contents.setdefault(values.digest, name)
    found.range = (low, high)


def _label(volume: Volume, where: str, found: FileReport, allowed: Sequence[int] | None, colours: Codes) -> None:
    if colours:
        volume = from_colours(volume, colours, where)
    if len(volume.stored.shape) != 3:
        raise DataError(
            f"the label map has the shape {volume.stored.shape}", where=where, why="one label for each voxel is expected",
            fix="save one 3D label map", code="E_NDIM",
        )  # fmt: skip
    counts = label_counts(volume, allowed or (0, 1), where, binary=allowed is None)
    found.labels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    if allowed is None and set(found.labels) == {0}:
        raise DataError("the mask is empty", where=where, why="nothing would be left of the image",
                        fix="correct the mask, or leave it out of the case list", code="E_MASK")  # fmt: skip
    if set(found.labels) == {0}:
        found.flags.append("the label map is empty")


def _objects(volume: Volume, where: str, found: FileReport) -> None:
    found.notes = (*found.notes, counted(len(np.setdiff1d(object_numbers(volume, where), [0])), "object"))


def _masks_of_objects(report: CaseReport, case: Case, path: Path, seen: _Seen) -> None:
    kind = "COCO annotations" if is_annotations(path) else "masks of objects"
    found = FileReport(readable_name(path), "instances", format=kind)
    report.files.append(found)
    try:
        objects = load_objects(case)
        grid, numbers = objects.grid, objects.numbers
        found.shape, found.spacing, found.axes, found.dtype = grid.shape, grid.spacing, grid.axes, numbers.dtype.name
        found.notes = (counted(len(np.setdiff1d(numbers, [0])), "object"),)
        if objects.covered:
            share = objects.covered / (objects.covered + np.count_nonzero(numbers))
            found.notes += (f"{share:.1%} of their voxels lie under a smaller object",)
        seen.grids.append((found, grid, f"case {case.name}: {found.path}"))
    except DataError as error:
        _add(report, found, error.as_dict())


def _boxes(report: CaseReport, case: Case, path: Path, seen: _Seen) -> None:
    """Examine the boxes of a case against its image; which classes there are is a matter of the whole data set."""
    found = FileReport(readable_name(path), "boxes", format="boxes")
    report.files.append(found)
    try:
        listed = listed_boxes(path, first_image(case))
        counts = Counter(box.class_name for box in listed)
        found.notes = (", ".join(f"{count} {name}" for name, count in counts.most_common(8)) or "no box",)
        if seen.grids:
            load_boxes(case, {name: number for number, name in enumerate(counts, 1)}, seen.grids[0][1])
    except DataError as error:
        _add(report, found, error.as_dict())


def _missing(names: Sequence[str], case: Case) -> DataError:
    return DataError(
        f"channel {', '.join(names)} is missing", where=f"case {case.name}",
        why=f"the case has {', '.join(case.images) or 'no images'}", fix="add the file, or leave the case out",
        code="E_CHANNEL",
    )  # fmt: skip
