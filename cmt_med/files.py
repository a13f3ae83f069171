"""The one writer: every file that the package leaves behind is written here.

A file appears under its final name only when it is complete: it is written under a temporary name in the same folder,
synced, and renamed. A kill, a full disk or an error at any byte leaves the previous file as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from cmt_med.errors import OutputError

TEMPORARY_PREFIX = ".partial-"


def write_file(path: Path, fill: Callable[[IO[bytes]], object], *, suffix: str = "") -> None:
    """Write ``path`` atomically.

    Args:
        path: the final name; missing folders are made.
        fill: writes the content to the binary file that it is given.
        suffix: ending of the temporary name, for writers that choose the format by it.

    Raises:
        OutputError: if the folder or the file cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            "a file cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="check free space and permissions of the folder, or choose another output",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically; see :func:`write_file`."""
    write_file(path, lambda stream: stream.write(content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_file`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; NaN and infinity, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object to a log of lines; a reader ignores a last line that was cut."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError("a log cannot be written", where=str(path), why=error.strerror or str(error)) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log written by :func:`append_line`."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut by a kill in the middle of the line
    return rows


def require_writable_folder(folder: Path) -> None:
    """Prove that a file can be written into ``folder``, before long work starts; nothing is left if that work fails.

    Raises:
        OutputError: if it cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f"{TEMPORARY_PREFIX}probe"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)
    for path in missing:
        with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # NumPy scalars
        return _finite(value.item())
    return value


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # once, before there are threads: it can be read only by setting it


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
