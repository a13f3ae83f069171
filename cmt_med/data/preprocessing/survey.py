"""A look at every file of a data set: which labels there are, which cases are faulty, which channels are copies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.compute.memory import no_memory
from cmt_med.data.case import Case
from cmt_med.data.phantom import BANNER
from cmt_med.data.preprocessing.normalisation import foreground_of
from cmt_med.data.volumes import nifti
from cmt_med.data.volumes.flags import copied_channels
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.instances import load_instances

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


@dataclass(frozen=True)
class _Seen:
    values: list[int] | None
    copies: list[tuple[str, str]]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    demo: bool


def survey(cases: Sequence[Case], channels: Sequence[str], *, tick: Callable[[], None] = lambda: None) -> Survey:
    """Read all files of ``cases`` through the gate.

    Args:
        cases: to be read.
        channels: wanted of each, if it has them.
        tick: called after each case.
    """

    def look(case: Case) -> _Seen | DataError:
        try:
            return _look(case, channels)
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
            if seen.copies:
                result.copies[case.name] = seen.copies
            if seen.values is not None:
                result.labelled += 1
                result.values.update(seen.values)
                result.values_in[case.name] = frozenset(seen.values)
    return result


def _look(case: Case, channels: Sequence[str]) -> _Seen:
    channels = [
        name for name in channels if name in case.images
    ]  # cases that lack one are among these only if it may lack
    loaded = load_case(case, channels, range(256))
    inside = foreground_of(loaded)
    values = None if loaded.label is None else [int(v) for v in np.unique(loaded.label) if v != case.ignore]
    if case.instances is not None:
        values = [1] if bool(load_instances(case, loaded.grid)[0].any()) else []
    copies = copied_channels(channels, loaded.image)
    demo = BANNER.encode() in nifti.description(next(iter(case.images.values()))[0])
    return _Seen(values, copies, _box(inside), loaded.grid.spacing, demo)


def _box(inside: NDArray[np.bool_]) -> tuple[int, ...]:
    """Extent of the foreground (D1, D2, D3) in voxels."""
    extent = []
    for axis in range(inside.ndim):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        extent.append(int(found[-1] - found[0] + 1) if len(found) else 0)
    return tuple(extent)
