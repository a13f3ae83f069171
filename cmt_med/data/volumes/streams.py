"""Reading bytes of foreign files: opened without ever hanging, inflated to the end and never beyond a bound.

The decoders that people use stop at the last voxel and so never reach the checksum behind it; here every stream is read to its
end. What a header claims bounds what is inflated, so a file of some megabytes cannot fill the memory.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.endings import SERIES_ENDING

CHUNK = 1 << 20
MAX_RATIO = 1032  # what deflate can gain at most (zlib technical notes)
MAX_VOXELS = 2**30
MAX_BYTES = 2**32
EXCESS = 16 << 20
"""Inflated bytes beyond what the header claims, after which a stream is called a bomb and not a header with wrong sizes."""

_SERIES = re.compile(rf"[0-9.]{{1,64}}{re.escape(SERIES_ENDING)}")
_GZIP, _GZIP_OR_ZLIB = 31, 47  # window bits, as zlib takes them


def readable_name(path: Path) -> str:
    """The path as text for messages, with bytes that are not UTF-8 written as escapes.

    One DICOM series of several in a folder, which is no file, is the folder and the series' identifier.
    """
    if _SERIES.fullmatch(path.name):
        return f"{readable_name(path.parent)} (series {path.name.removesuffix(SERIES_ENDING)})"
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; nothing else is opened, so a FIFO or a device cannot block.

    Raises:
        DataError: E_IO, saying what is there instead or why it cannot be opened.
    """
    where = readable_name(path)
    try:
        os.fsencode(path).decode("utf-8")
        if not stat.S_ISREG(path.stat().st_mode):
            raise _not_regular(path.stat().st_mode, where)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except UnicodeDecodeError as error:
        raise DataError(
            "the file's name is not UTF-8", where=where, why="results and reports could not name it",
            fix="rename the file", code="E_IO",
        ) from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise io_error(error, path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # exchanged since it was looked at
        os.close(handle)
        raise _not_regular(0, where)
    return os.fdopen(handle, "rb", buffering=0)


def _not_regular(mode: int, where: str) -> DataError:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device",
             stat.S_IFBLK: "a device"}  # fmt: skip
    return DataError(
        f"{kinds.get(stat.S_IFMT(mode), 'something')} stands where a file is expected",
        where=where,
        why="only regular files, and folders of DICOM slices, hold a volume",
        fix="give the path of the image file",
        code="E_IO",
    )


def io_error(error: OSError | ValueError, path: Path) -> DataError:
    """An error of the operating system as E_IO, with what the user can do about it."""
    number = getattr(error, "errno", None)
    what, why, fix = "the file cannot be read", getattr(error, "strerror", None) or str(error), "check disk and network"
    if number == errno.ENOENT and path.is_symlink():
        what, why = "the file is a symbolic link to nothing", f"it points to {readable_name(path.readlink())}"
        fix = "fetch the content (git annex get, datalad get), or correct the link"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        what, fix = "the file does not exist", "check the path; in a case list, relative paths start at its folder"
    elif number in (errno.EACCES, errno.EPERM):
        what, fix = "no permission to read the file", "give yourself read permission (chmod u+r), or ask its owner"
    elif number == errno.ELOOP:
        what, fix = "the file is a symbolic link that leads back to itself", "replace the link by the file"
    elif number == errno.ENAMETOOLONG:
        what, fix = "the file's name is too long", "shorten the name"
    elif isinstance(error, ValueError):
        what, fix = "the path is not one", "correct the path"
    return DataError(what, where=readable_name(path), why=why, fix=fix, code="E_IO")


class Stream:
    """Forward reading of a file, inflated on the way where it is gzip-compressed.

    Args:
        path: the file; compression is told by its first bytes.
        start: offset of the first byte, for formats with a text header in front.
        deflated: None to look for gzip's magic; True for a gzip or zlib stream at ``start``; False for plain bytes.

    Raises:
        DataError: E_IO at once; while reading E_GZIP for damage, E_TRUNCATED at a premature end.
    """

    def __init__(self, path: Path, *, start: int = 0, deflated: bool | None = None) -> None:
        self.path = path
        self._file = open_regular(path)
        self.size = os.fstat(self._file.fileno()).st_size
        self._start = start
        self._file.seek(start)
        magic = self._file.read(2) or b""
        self.compressed = magic == b"\x1f\x8b" if deflated is None else deflated
        self._window = _GZIP if magic == b"\x1f\x8b" else _GZIP_OR_ZLIB
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(self._start)
        self._inflater = zlib.decompressobj(self._window)
        self._raw = self._ahead = b""
        self._end = False
        self.position = 0
        self._claimed = -1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or as many as there are, without consuming them."""
        while len(self._ahead) < count:
            more = self._next(count - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:count]

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only at the end."""
        found = self.peek(count)
        self._ahead = self._ahead[len(found) :]
        self.position += len(found)
        return found

    def payload(self, count: int, expected: str) -> Iterator[bytes]:
        """Exactly ``count`` bytes in chunks, after which the stream must end with a right checksum.

        Raises:
            DataError: E_TRUNCATED if there are fewer, E_HEADER if there are more, E_SIZE if there are far more, E_GZIP.
        """
        left = count
        self._claimed = self.position + count
        while left:
            chunk = self.read(min(CHUNK, left))
            if not chunk:
                raise self.truncated(f"it holds {count - left} bytes of voxels, the header claims {count} ({expected})")
            left -= len(chunk)
            yield chunk
        beyond = 0
        limit = count + EXCESS
        while more := len(self.read(CHUNK)):
            beyond += more
            if beyond > limit:
                raise DataError(
                    f"the file inflates to more than {limit} bytes beyond what its header claims",
                    where=readable_name(self.path), why=f"the header claims {count} bytes ({expected}): a decompression bomb?",
                    fix="do not open it; ask for the file where it came from", code="E_SIZE",
                )  # fmt: skip
        if beyond:
            raise DataError(
                "the file holds more voxels than its header claims", where=readable_name(self.path),
                why=f"{beyond} bytes follow after the {count} of {expected}: the sizes in the header are wrong",
                fix="convert the original image again", code="E_HEADER",
            )  # fmt: skip

    def require(self, count: int, expected: str) -> None:
        """Refuse, before anything is allocated, a file that cannot hold ``count`` more bytes.

        Raises:
            DataError: E_TRUNCATED.
        """
        room = self.size - self._start
        possible = room * MAX_RATIO if self.compressed else room - self.position
        if count > possible:
            found = f"{self.size} compressed bytes" if self.compressed else f"{possible} bytes"
            raise self.truncated(f"{found} cannot hold the {count} that the header claims ({expected})")

    def truncated(self, why: str) -> DataError:
        """The error for a file that ends too early."""
        return DataError(
            "the file ends too early", where=readable_name(self.path), why=why,
            fix="copy or download the file again; if it is so at its source, convert the original again",
            code="E_TRUNCATED",
        )  # fmt: skip

    def blame(self, error: DataError) -> DataError:
        """The error to report for ``error``: E_GZIP if the stream is damaged, whatever nonsense its content seemed to be."""
        if not self.compressed or error.code in ("E_GZIP", "E_IO", "E_SIZE"):
            return error
        try:
            self._rewind()
            total = 0
            while total < 16 * EXCESS and (chunk := self.read(CHUNK)):
                total += len(chunk)
        except DataError as damage:
            if damage.code != "E_TRUNCATED":
                return damage
            # A file that was only cut has a right beginning, so nonsense there and an early end are damage.
            return error if error.code == "E_TRUNCATED" else self._damaged(damage.why)
        return error

    def _next(self, count: int) -> bytes:
        """Some of the next ``count`` bytes, b"" at the end."""
        if not self.compressed:
            return self._file.read(count)
        while not self._end:
            if self._inflater.eof and not self._begin_member():
                self._end = True
                break
            if not self._raw:
                self._raw = self._file.read(CHUNK)
                if not self._raw:
                    raise self._cut_short()
            try:
                found = self._inflater.decompress(self._raw, count)
            except zlib.error as error:
                raise self._damaged(str(error)) from error
            self._raw = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if found:
                return found
        return b""

    def _begin_member(self) -> bool:
        """Go on with the next gzip member behind the one that ended; False at the end of the file."""
        rest = self._raw.lstrip(b"\0")  # padding behind the last member is allowed
        while not rest:
            block = self._file.read(CHUNK)
            if not block:
                return False
            rest = block.lstrip(b"\0")
        if not rest.startswith(b"\x1f"):
            raise self._damaged("something else follows behind the end of the compressed data")
        self._raw, self._inflater = rest, zlib.decompressobj(_GZIP)
        return True

    def _cut_short(self) -> DataError:
        # Damage can make the inflater run on past the end; then the length that gzip keeps in its last bytes is in its place.
        self._file.seek(-min(4, self.size), os.SEEK_END)
        if self._claimed >= 0 and self._file.read(4) == (self._claimed % 2**32).to_bytes(4, "little"):
            return self._damaged("the compressed data does not end where it should")
        return self.truncated("the compressed data stops before its end")

    def _damaged(self, why: str) -> DataError:
        return DataError(
            "the compressed data is damaged", where=readable_name(self.path), why=f"{why}: voxels may have changed",
            fix="copy or download the file again", code="E_GZIP",
        )  # fmt: skip
