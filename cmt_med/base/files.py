"""The one writer: every file that the package leaves behind is written here.

A file appears under its final name only when it is complete: it is written under a temporary name in the same folder,
synced, read back, and renamed. A kill, a full disk or an error at any byte leaves the previous file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import mmap
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from cmt_med.base.errors import OutputError

TEMPORARY_PREFIX = ".partial-"
LOCK_NAME = ".lock"
_CHUNK = 1 << 20


def write_file(
    path: Path,
    fill: Callable[[IO[bytes]], object],
    *,
    suffix: str = "",
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write ``path`` atomically.

    Args:
        path: the final name; missing folders are made.
        fill: writes the content to the binary file that it is given.
        suffix: ending of the temporary name, for writers that choose the format by it.
        check: is given the complete temporary file; if it raises, ``path`` stays as it was.

    Raises:
        OutputError: if the folder or the file cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "w+b") as stream:
            summed = _Summed(stream)
            fill(summed)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
            _require_as_written(stream, summed.digest.digest())
        if check is not None:
            check(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable("a file cannot be written", path, error) from error
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


def append_bytes(path: Path, content: bytes, *, separator: bytes = b"") -> None:
    """Append to a file; where that is not possible as a whole, the file is as it was.

    Args:
        path: the file, which may be new.
        content: to append.
        separator: what the file must end with before; put there if a kill has cut it.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("a+b", buffering=0) as stream:
            size = stream.seek(0, io.SEEK_END)
            if size and separator and (stream.seek(size - 1), stream.read(1))[1] != separator:
                content = separator + content
            try:
                if stream.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(stream.fileno())
                stream.seek(size)
                if stream.read(len(content)) != content:
                    raise OSError(errno.EIO, "what was read back is not what was written")
            except OSError:
                stream.truncate(size)
                if not existed:
                    path.unlink()
                raise
    except OSError as error:
        raise _unwritable("a file cannot be written", path, error) from error


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object to a log of lines, whose reader ignores a line that was cut; see :func:`append_bytes`."""
    line = json.dumps(_finite(value), ensure_ascii=False).encode() + b"\n"
    append_bytes(path, line, separator=b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log written by :func:`append_line`."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):  # text would end lines at more characters, which names may have
        try:
            row = json.loads(line.decode())
        except ValueError:
            continue  # cut by a kill in the middle of the line, or of a character
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Replace the folder ``path`` once its new content is complete; for folders in one that is :func:`locked`.

    A kill between the two renames leaves no folder of that name: the next call first puts back the one before.

    Args:
        path: the final name.
        fill: writes files into the folder that it is given.

    Raises:
        OutputError: if it cannot be written.
    """
    temporary, before = (path.with_name(f"{TEMPORARY_PREFIX}{word}-{path.name}") for word in ("new", "old"))
    try:
        if before.exists() and not path.exists():
            before.rename(path)
        for left in (temporary, before):
            shutil.rmtree(left, ignore_errors=True)
        fill(temporary)
        if path.exists():
            path.rename(before)
        temporary.rename(path)
        _sync_folder(path.parent)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise _unwritable("a folder cannot be written", path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable_folder(folder: Path) -> None:
    """Prove that a file can be written into ``folder``, before long work starts; nothing is left if that work fails.

    Raises:
        OutputError: if it cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)
    _remove_empty(missing)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the context, ``folder`` belongs to this process; made if missing, and gone again if nothing came into it.

    The lock is the kernel's, on a file that says who holds it: however that process ends, the next one takes over.

    Raises:
        OutputError: E_LOCKED if another process has it, naming host and process; E_OUTPUT if it cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = _locked_file(path)
    except OSError as error:
        raise _unwritable("the folder cannot be locked", path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: nobody else's
        stream.close()
        _remove_empty(missing)


def _locked_file(path: Path) -> IO[bytes]:
    """The lock file, opened, locked and empty."""
    while True:
        stream = path.open("a+b", buffering=0)
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read(200).decode(errors="replace").strip()
            stream.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise OutputError(
                "the folder is in use by another process", where=str(path.parent), why=f"held by {holder or 'it'}",
                fix="wait for it or stop it, or give another --output", code="E_LOCKED",
            ) from error  # fmt: skip
        # Its last holder may have removed it between our opening and locking it: that lock would be one of nothing.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                stream.truncate(0)
                with contextlib.suppress(OSError):  # on a full disk the lock holds, but does not say whose it is
                    stream.write(f"host {socket.gethostname()}, process {os.getpid()}\n".encode())
                return stream
        stream.close()


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files and folders that killed processes have left; only for folders that are :func:`locked`.

    Raises:
        OutputError: if one cannot be removed.
    """
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable("what an earlier run has left cannot be removed", path, error) from error


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


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            path.rmdir()


class _Summed(io.RawIOBase):
    """A stream that hashes what is written through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.stream.write(content)


def _require_as_written(stream: IO[bytes], digest: bytes) -> None:
    """Read the file back from the disk, as far as the system lets go of what it remembers."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stream.seek(0)
    found = hashlib.sha256()
    while piece := stream.read(_CHUNK):
        found.update(piece)
    if found.digest() != digest:
        raise OSError(errno.EIO, "what was read back is not what was written")


def _unwritable(what: str, path: Path, error: OSError) -> OutputError:
    fix = "check free space and permissions of the folder, or choose another output"
    return OutputError(what, where=str(path), why=error.strerror or str(error), fix=fix)


@contextlib.contextmanager
def private_file(text: str, *, prefix: str, suffix: str) -> Iterator[Path]:
    """A file in ``$TMPDIR`` that only this user can read, removed on leaving.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        file = tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=suffix, encoding="utf-8")  # noqa: SIM115
        file.write(text)
        file.flush()
    except OSError as error:
        raise OutputError(
            "a temporary file cannot be written", where=tempfile.gettempdir(), why=error.strerror or str(error),
            fix="free space there, or set TMPDIR to another folder",
        ) from error  # fmt: skip
    with file:
        yield Path(file.name)


def scratch(size: int) -> mmap.mmap:
    """Zeros in a file without a name (in ``$TMPDIR``), which is gone with the last use of the mapping.

    Its place on the disk is reserved: a disk that fills up later would end the process without a word.

    Args:
        size: in bytes.

    Raises:
        OutputError: if there is no room for it.
    """
    try:
        with tempfile.TemporaryFile() as file:  # the mapping outlives it
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return mmap.mmap(file.fileno(), 0)
    except OSError as error:
        raise OutputError(
            f"there is no room for {size / 1e9:.1f} GB of intermediate results", where=tempfile.gettempdir(),
            why=error.strerror or str(error), fix="free space there, or set TMPDIR to a folder on a larger disk",
        ) from error  # fmt: skip
