"""The files under a folder and behind links, each folder once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.streams import io_error

MAX_DEPTH = 12
"""Levels of folders below the one that is given."""


def walk(
    root: Path,
    depth: int,
    problems: list[DataError],
    *,
    is_leaf: Callable[[Path], bool],
    repeated: list[Path] | None = None,
) -> Iterator[Path]:
    """Files under ``root``, and folders that are one item, sorted by name within each folder; hidden ones are left out.

    Folders that are linked come last, and no folder comes twice: a link to a folder's own parent leads nowhere new.

    Args:
        root: the folder.
        depth: levels of folders below it that are looked into.
        problems: receives E_IO for what cannot be listed or looked at, and what ``is_leaf`` raises.
        is_leaf: tells whether a folder is one item, such as the slices of a DICOM series.
        repeated: receives links to folders that came before.
    """
    entered: set[tuple[int, int]] = set()
    links: list[tuple[Path, int]] = []

    def inside(folder: Path, left: int) -> Iterator[Path]:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                if repeated is not None:
                    repeated.append(folder)
                return
            entered.add((status.st_dev, status.st_ino))
            paths = sorted(folder.iterdir())
        except OSError as error:
            problems.append(io_error(error, folder))
            return
        for path in paths:
            if path.name.startswith("."):
                continue
            try:
                single = not path.is_dir() or is_leaf(path)
            except DataError as error:
                problems.append(error)
                continue
            except OSError as error:
                problems.append(io_error(error, path))
                continue
            if single:
                yield path
            elif left and path.is_symlink():
                links.append((path, left - 1))
            elif left:
                yield from inside(path, left - 1)

    yield from inside(root, depth)
    while links:
        yield from inside(*links.pop(0))
