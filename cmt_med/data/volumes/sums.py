"""SHA-256 sums of volumes: one for each, whether it is a file, a header with its voxels beside it, or a folder of slices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.formats import files_of
from cmt_med.data.volumes.streams import CHUNK, io_error, open_regular, readable_name


def volume_sum(path: Path) -> str:
    """The sum of a volume: that of its file, or of its files' names and sums, one a line, as ``sha256sum`` prints them.

    Raises:
        DataError: E_IO.
    """
    files = files_of(path)
    if files == [path]:
        return _file_sum(path)
    lines = "".join(f"{_file_sum(file)}  {readable_name(Path(file.name))}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def content_key(path: Path, sums: Mapping[Path, str] | None = None) -> str:
    """The sum of a volume as part of a key; of what cannot be read, which the gate will name, a word.

    Raises:
        DataError: E_HASH, if ``sums``, those of a case list, have another one for it.
    """
    try:
        found = volume_sum(path)
    except DataError:
        return "missing"
    _require(path, found, (sums or {}).get(path, found))
    return found


def sum_of_sums(sums: Iterable[str]) -> str:
    """A short sum of the contents of several files, whatever their order: it names an image, and says nothing of it."""
    return hashlib.sha256("\n".join(sorted({*sums})).encode()).hexdigest()[:16]


def check_sums(path: Path, expected: str, found: str | None = None) -> None:
    """Refuse a volume whose content is not the expected one; ``found`` is its sum where that is known.

    Raises:
        DataError: E_HASH, E_IO.
    """
    _require(path, volume_sum(path) if found is None else found, expected)


def _require(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            "the file is not the one that the case list was made for", where=readable_name(path),
            why=f"its SHA-256 is {found[:16]}…, the case list says {expected[:16]}…",
            fix="restore the file; if the change is meant, make the sums again with `inspect LIST --hash`", code="E_HASH",
        )  # fmt: skip


def _file_sum(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
    except OSError as error:
        raise io_error(error, path) from error
    return digest.hexdigest()
