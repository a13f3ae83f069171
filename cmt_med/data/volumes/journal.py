"""What was seen of the files of a large data set, kept between calls: one that was killed goes on where it ended."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.base.files import append_bytes, read_lines
from cmt_med.data.volumes.formats import files_of

LARGE = 1_000
"""Cases from which on a journal is kept."""
_AT_ONCE = 250
"""Rows that are written together; so many are looked at again after a kill."""


class Journal:
    """Rows by what they were seen of: the paths of files, with size and time of change.

    Args:
        file: where they are kept, a line of JSON each.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: dict[str, dict[str, Any]] = {str(row.get("key")): row for row in read_lines(file)}
        self._new: list[bytes] = []
        self._lock = threading.Lock()

    def remembered(self, files: Sequence[Path], what: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was seen of these files before, or look now; an error that is raised is remembered, too.

        Args:
            files: on which the answer depends.
            what: all else on which it depends.
            look: makes a row of JSON.

        Raises:
            DataError: from ``look``, now or before.
        """
        key = _key(files, what)
        if key is None:
            return look()
        row = self._rows.get(key)
        if row is None:
            try:
                row = {"key": key} | look()
            except DataError as error:
                row = {"key": key, "error": error.as_dict()}
            self._add(row)
        if "error" in row:
            raise DataError(**row["error"])
        return row

    def close(self) -> None:
        """Write what is not yet written."""
        with self._lock:
            self._write()

    def _add(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._new.append(json.dumps(row).encode() + b"\n")
            if len(self._new) >= _AT_ONCE:
                self._write()

    def _write(self) -> None:
        if self._new:
            append_bytes(self.file, b"".join(self._new), separator=b"\n")
            self._new = []


def journal_of(folder: Path, path: Path, what: str) -> Journal:
    """The journal of a data set in the cache's folder, for one kind of look at it."""
    name = hashlib.sha256(f"{what} {path.absolute()}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Journal(folder / "looked_at" / f"{name}.jsonl")


def _key(files: Sequence[Path], what: str) -> str | None:
    """The sum of all that an answer depends on; None where a file cannot be looked at, whose answer is not kept."""
    parts = [what]
    try:
        for path in files:
            for file in [path] if path.is_file() else files_of(path):  # series, and masks of several structures
                found = file.stat()
                parts.append(f"{file.absolute()} {found.st_size} {found.st_mtime_ns}")
    except (OSError, ValueError, DataError):
        return None
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
