"""One mask for each structure: ``segmentations/liver.nii.gz``, ``masks/cup/x.png``, ``x_disc.png``, read as one label map.

Their path has a ``*`` where the structure's name stands: ``segmentations/*.nii.gz``. The label of a voxel is what the case list's
table ``segments`` says of the name; without a table, masks are numbered as their names sort.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.header import Opened, VolumeHeader
from cmt_med.data.volumes.painting import Painted, values_of
from cmt_med.data.volumes.streams import io_error, readable_name

ANY = "*"


def is_pattern(path: Path) -> bool:
    """Tell whether a path stands for several masks."""
    return str(path).count(ANY) == 1


def masks_of(path: Path) -> dict[str, Path]:
    """Name of a structure -> its file, sorted by name.

    Raises:
        DataError: E_IO if there is none.
    """
    parts = path.parts
    at = next(i for i, part in enumerate(parts) if ANY in part)
    folder, wanted = Path(*parts[:at]), parts[at]
    before, _, after = wanted.partition(ANY)
    found = {}
    try:
        for entry in sorted(folder.iterdir()):
            name = entry.name
            if (
                name.startswith(before)
                and name.endswith(after)
                and len(name) > len(before) + len(after)
                and name[0] != "."
            ):
                file = entry.joinpath(*parts[at + 1 :])
                if file.is_file():
                    found[name[len(before) : len(name) - len(after)]] = file
    except OSError as error:
        raise io_error(error, folder) from error
    if not found:
        raise DataError("there are no masks", where=readable_name(path), why="no file fits the pattern",
                        fix="correct the path in the case list", code="E_IO")  # fmt: skip
    return found


def read(path: Path, table: Mapping[str, int], opened: Callable[[Path], Opened]) -> Opened:
    """The label map that several masks make up.

    Args:
        path: with a ``*``.
        table: name of a structure -> label value, 0 for those that are left out; empty to number them.
        opened: reads one file.

    Raises:
        DataError: E_LABEL for masks that overlap, for more than two values in one, and for names that the table does not have;
            E_GRID for masks on different grids; and those of the readers.
    """
    where, masks = readable_name(path), masks_of(path)
    values = dict(zip(masks, values_of(list(masks), table, where, range(1, len(masks) + 1)), strict=True))
    used = [name for name in masks if values[name]] or list(masks)[:1]
    first = opened(masks[used[0]]).stored
    stored = VolumeHeader(first.format, first.shape[:3], "<u1", first.affine)
    return Opened(stored, _painted(masks, used, values, stored, where, opened))


def _painted(
    masks: Mapping[str, Path], used: list[str], values: Mapping[str, int], stored: VolumeHeader, where: str,
    opened: Callable[[Path], Opened],
) -> Iterator[bytes]:  # fmt: skip
    painted = Painted(np.zeros(stored.shape, np.uint8, order="F"), where)
    grid = Grid(stored.shape, np.array(stored.affine))
    for name in used:
        inside = _inside(masks[name], opened, grid)
        if values[name]:
            painted.paint(painted.array, inside, values[name], name)
    yield painted.array.tobytes(order="F")


def _inside(file: Path, opened: Callable[[Path], Opened], grid: Grid) -> NDArray[np.bool_]:
    stored, content = opened(file)
    array = stored.array(b"".join(content))
    own = Grid(stored.shape[:3], np.array(stored.affine))
    if array.ndim != 3 or not own.equals(grid):
        why = f"shape {array.shape}, not {grid.shape}" if array.shape != grid.shape else "other positions in space"
        raise DataError("the masks of one case lie on different grids", where=readable_name(file), why=why,
                        fix="resample them to one grid", code="E_GRID")  # fmt: skip
    found = np.unique(array)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0) or (len(found) == 1 and found[0] not in (0, 1, 255)):
        raise DataError(
            f"the mask has the values {', '.join(map(str, found[:8]))}", where=readable_name(file),
            why="a mask of one structure has 0 and one other", fix="save it as 0 and 1; a label map of several structures is "
            "one file for all", code="E_LABEL",
        )  # fmt: skip
    return array != 0


def pattern_between(files: Mapping[str, Path]) -> Path | None:
    """The path with a ``*`` that stands for all of these files, by the names of their structures; None if there is none."""
    found = set()
    for name, file in files.items():
        parts = list(file.parts)
        places = [i for i, part in enumerate(parts) if re.search(rf"(?:^|[_\-. ]){re.escape(name)}(?=$|[_\-. ])", part)]
        if not places:
            return None
        at = places[-1]
        begin = parts[at].rindex(name)
        parts[at] = parts[at][:begin] + ANY + parts[at][begin + len(name) :]
        found.add(Path(*parts))
    return found.pop() if len(found) == 1 else None
