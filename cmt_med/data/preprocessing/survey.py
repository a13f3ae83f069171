"""A look at every file of a data set: which labels there are, which cases are faulty, which channels are copies."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.compute.memory import no_memory
from cmt_med.data.case import Case, first_image
from cmt_med.data.phantom import BANNER
from cmt_med.data.preprocessing.normalisation import foreground_of
from cmt_med.data.volumes import nifti
from cmt_med.data.volumes.box_files import listed_boxes
from cmt_med.data.volumes.boxes import load_boxes
from cmt_med.data.volumes.flags import copied_channels
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.instances import load_objects
from cmt_med.data.volumes.journal import Journal

MIDDLE = (0.5, 99.5)
"""Percentiles of the labelled voxels."""
READERS = 4  # decompression leaves Python's lock; more readers only add memory


@dataclass
class Survey:
    """The content of a data set's files.

    Attributes:
        cases: those that could be read.
        values: in how many cases each label value occurs, but that of voxels that nobody has annotated.
        values_in: case -> its label values, likewise.
        labelled: cases with a label map, or with numbered objects, whose value is 1.
        problems: cases that could not be read.
        copies: case -> channels that are the same image.
        shapes: voxels of each case's foreground box, per axis of the volume.
        spacings: voxel sizes in mm, per axis.
        demo: whether a header says that its volume is synthetic.
        ranges: channel -> smallest and largest value of each case.
        inside: channel -> percentiles 0.5 and 99.5 of the labelled voxels of each case that has some.
        covered: voxels of objects that lie under a smaller object, and voxels that show one, of each case with the former.
        same: names of the cases whose images are equal, by their content.
    """

    cases: list[Case] = field(default_factory=list)
    values: Counter[int] = field(default_factory=Counter)
    values_in: dict[str, frozenset[int]] = field(default_factory=dict)
    labelled: int = 0
    problems: list[DataError] = field(default_factory=list)
    copies: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    demo: bool = False
    covered: dict[str, tuple[int, int]] = field(default_factory=dict)
    same: dict[str, list[str]] = field(default_factory=dict)
    ranges: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    inside: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    values: list[int] | None
    copies: list[tuple[str, str]]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    demo: bool
    content: str
    ranges: dict[str, tuple[float, float]]
    labelled: dict[str, tuple[float, float]]
    covered: tuple[int, int] = (0, 0)


def survey(
    cases: Sequence[Case], channels: Sequence[str], *, tick: Callable[[], None] = lambda: None,
    journal: Journal | None = None,
) -> Survey:  # fmt: skip
    """Read all files of ``cases`` through the gate.

    Args:
        cases: to be read.
        channels: wanted of each, if it has them.
        tick: called after each case.
        journal: remembers what was seen by an earlier call.
    """

    def look(case: Case) -> _Seen | DataError:
        try:
            return _look(case, channels) if journal is None else _remembered(case, channels, journal)
        except DataError as error:
            return error
        except MemoryError:
            return no_memory(f"case {case.name}")
        finally:
            tick()

    result = Survey()
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for case, seen in zip(cases, pool.map(look, cases), strict=True):
            if isinstance(seen, DataError):
                result.problems.append(seen)
                continue
            result.cases.append(case)
            result.shapes.append(seen.shape)
            result.spacings.append(seen.spacing)
            result.demo |= seen.demo
            for name, pair in seen.ranges.items():
                result.ranges.setdefault(name, []).append(pair)
            for name, pair in seen.labelled.items():
                result.inside.setdefault(name, []).append(pair)
            if seen.content:
                result.same.setdefault(seen.content, []).append(case.name)
            if seen.covered[0]:
                result.covered[case.name] = seen.covered
            if seen.copies:
                result.copies[case.name] = seen.copies
            if seen.values is not None:
                result.labelled += 1
                result.values.update(seen.values)
                result.values_in[case.name] = frozenset(seen.values)
    if journal is not None:
        journal.close()
    result.same = {content: names for content, names in result.same.items() if len(names) > 1}
    return result


def _remembered(case: Case, channels: Sequence[str], journal: Journal) -> _Seen:
    files = [
        *(file for file, _ in case.images.values()),
        *filter(None, (case.label, case.mask, case.instances, case.boxes)),
    ]
    what = f"3 {list(channels)} {sorted(case.images)} {case.ignore} {list(map(str, case.colours.items()))}"
    row = journal.remembered(files, what, lambda: asdict(_look(case, channels)))
    pairs = [(str(one), str(other)) for one, other in row["copies"]]
    ranges, labelled = ({name: (p[0], p[1]) for name, p in row[key].items()} for key in ("ranges", "labelled"))
    return _Seen(
        row["values"],
        pairs,
        tuple(row["shape"]),
        tuple(row["spacing"]),
        row["demo"],
        row["content"],
        ranges,
        labelled,
        (row["covered"][0], row["covered"][1]),
    )


def _look(case: Case, channels: Sequence[str]) -> _Seen:
    channels = [
        name for name in channels if name in case.images
    ]  # cases that lack one are among these only if it may lack
    loaded = load_case(case, channels, range(256))
    inside = foreground_of(loaded)
    covered = (0, 0)
    values = None if loaded.label is None else [int(v) for v in np.unique(loaded.label) if v != case.ignore]
    if case.instances is not None:
        objects = load_objects(case, loaded.grid)
        shown = int(np.count_nonzero(objects.numbers))
        values, covered = [1] if shown else [], (objects.covered, shown)
    if case.boxes is not None:
        names = {box.class_name for box in listed_boxes(case.boxes, first_image(case))}
        values = [1] if len(load_boxes(case, dict.fromkeys(names, 1), loaded.grid)) else []
    copies = copied_channels(channels, loaded.image)
    demo = BANNER.encode() in nifti.description(next(iter(case.images.values()))[0])
    flat = loaded.image.min() == loaded.image.max()  # an empty image is no copy of another
    content = "" if flat else hashlib.blake2b(np.ascontiguousarray(loaded.image).data, digest_size=16).hexdigest()
    ranges = {name: (float(c.min()), float(c.max())) for name, c in zip(channels, loaded.image, strict=True)}
    labelled: dict[str, tuple[float, float]] = {}
    within = None if loaded.label is None else (loaded.label != 0) & (loaded.label != (case.ignore or 0))
    if within is not None and within.any():
        for name, c in zip(channels, loaded.image, strict=True):
            low, high = np.percentile(c[within], MIDDLE)
            labelled[name] = (float(low), float(high))
    return _Seen(values, copies, _box(inside), loaded.grid.spacing, demo, content, ranges, labelled, covered)


def _box(inside: NDArray[np.bool_]) -> tuple[int, ...]:
    """Extent of the foreground (D1, D2, D3) in voxels."""
    extent = []
    for axis in range(inside.ndim):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        extent.append(int(found[-1] - found[0] + 1) if len(found) else 0)
    return tuple(extent)
