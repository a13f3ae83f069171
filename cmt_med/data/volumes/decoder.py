"""Decoding in another process, which may crash, hang or run out of memory without harm.

One worker is started at a thread's first volume and used again for all others; after a crash or a timeout a new one takes over.
Voxels come back as bytes, what the file says as JSON, so nothing is unpickled. It costs 0.2 s once, 0.5 ms a file and a tenth
of the time for large ones, so it is the only way in which volumes are read.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import cmt_med
from cmt_med.base.errors import DataError
from cmt_med.data.volumes.formats import files_of, is_series_path
from cmt_med.data.volumes.header import DTYPES, VolumeHeader, check_shape
from cmt_med.data.volumes.mask_files import is_pattern
from cmt_med.data.volumes.nifti import MAX_EXTENSIONS
from cmt_med.data.volumes.streams import MAX_BYTES, readable_name

MEMORY = 1 << 30
"""Bytes that a worker may allocate beside what it has loaded; voxels do not count, they are bounded by their own size."""
SECONDS = 60.0
MAX_MESSAGE = 1 << 20
_Answer = TypeVar("_Answer")
Check = Callable[[VolumeHeader], None]
BYTES_PER_SECOND = 2e6  # a slow network drive; allowed on top of SECONDS


@dataclass(frozen=True)
class Volume:
    """A decoded file: what it says, and its voxels as stored, unscaled, read-only."""

    stored: VolumeHeader
    array: NDArray[np.generic]


@dataclass(frozen=True)
class Repair:
    """The bytes of a repaired file, not compressed, and what was done, a clause each."""

    done: tuple[str, ...]
    content: memoryview


class Decoder:
    """A worker process and its restarts; for use by one thread.

    Args:
        memory: bytes that the worker may allocate.
        seconds: for a small file; larger ones get more.
    """

    def __init__(self, *, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()
        self._deadline = 0.0
        self._channel: socket.socket | None = None

    def decode(
        self, path: Path, check: Check | None = None, *, labels: bool = False, segments: Mapping[str, int] | None = None
    ) -> Volume:
        """Read a volume: a file or the folder of a DICOM series.

        Args:
            path: of the volume.
            check: is given what the header says before anything is allocated for the voxels; what it raises is passed on.
            labels: whether it is a label map, which matters for pictures and DICOM.
            segments: label values of a DICOM segmentation, by the names of its segments.

        Raises:
            DataError: from the readers; E_TIMEOUT, E_MEMORY, E_DECODE if the worker did not survive the file.
        """
        request: dict[str, Any] = {"labels": True, "segments": dict(segments or {})} if labels else {}
        return self._asked(path.absolute(), request, partial(self._volume, check=check))

    def header(self, path: Path) -> VolumeHeader:
        """Read what a volume's header says, and none of its voxels; the errors are those of :meth:`decode`."""
        return self._asked(path.absolute(), {"header": True}, self._header)

    def repair(self, path: Path, *, label: bool) -> Repair | None:
        """Repair a file with :func:`cmt_med.data.volumes.repair.repaired`, an image or a label map; the errors are the same."""
        return self._asked(path.absolute(), {"repair": "label" if label else "image"}, self._repair)

    def _asked(self, path: Path, request: dict[str, Any], answer: Callable[[Path], _Answer | DataError]) -> _Answer:
        answered = False
        try:
            channel = self._connected()
            self._deadline = time.monotonic() + self.seconds + _bytes_of(path) / BYTES_PER_SECOND
            channel.sendall(json.dumps({"path": os.fsencode(path).hex()} | request).encode() + b"\n")
            result = answer(path)
            answered = True
        except TimeoutError as error:
            raise DataError(
                "decoding takes too long", where=readable_name(path), why="its process hung, and was stopped",
                fix="copy the file to a faster disk; if it still hangs, convert it to .nii.gz", code="E_TIMEOUT",
            ) from error  # fmt: skip
        except (OSError, KeyError, TypeError, ValueError) as error:  # it is gone, or says what no sound one says
            raise self._crashed(path) if isinstance(error, OSError) else nonsense(path) from error
        finally:
            if not answered:  # also when interrupted: the next answer must not be that to this request
                self.close()
        if isinstance(result, DataError):
            raise result
        return result

    def close(self) -> None:
        """End the worker."""
        if self._channel is not None:
            self._channel.close()
        if self.process is not None and self.owner == os.getpid():  # not in a fork: it is still the parent's
            self.process.kill()
            self.process.wait()
        self.process = self._channel = None

    def __del__(self) -> None:
        """End the worker with its thread."""
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.close()

    def _start(self) -> socket.socket:
        self.close()
        ours, theirs = socket.socketpair()
        source = str(Path(cmt_med.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cmt_med.data.volumes.worker", str(theirs.fileno()), str(self.memory)],
                pass_fds=[theirs.fileno()], env=environment, cwd="/", start_new_session=True,  # Ctrl-C is for us alone
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._channel = ours
        return ours

    def _connected(self) -> socket.socket:
        if self._channel is None or self.process is None or self.process.poll() is not None:
            return self._start()
        return self._channel

    def _volume(self, path: Path, check: Check | None) -> Volume | DataError:
        """The worker's answer; an error in its form is raised, and ends the worker."""
        first = self._message()
        if "stored" not in first:
            return DataError(**first["error"])
        stored = stored_of(first["stored"], path)
        if check is not None:
            check(stored)
        content = self._content(stored.size, path)
        return content if isinstance(content, DataError) else Volume(stored, stored.array(content))

    def _header(self, path: Path) -> VolumeHeader | DataError:
        first = self._message()
        return DataError(**first["error"]) if "error" in first else stored_of(first["stored"], path)

    def _repair(self, path: Path) -> Repair | DataError | None:
        first = self._message()
        if "error" in first:
            return DataError(**first["error"])
        if not first["done"]:
            return None
        size = int(first["size"])
        if not 0 <= size <= MAX_BYTES + MAX_EXTENSIONS:
            raise nonsense(path)
        content = self._content(size, path)
        return content if isinstance(content, DataError) else Repair(tuple(map(str, first["done"])), content)

    def _content(self, size: int, path: Path) -> memoryview | DataError:
        content = np.empty(size, np.uint8).data
        place = 0
        while length := self._length():
            if place + length > size:
                raise nonsense(path)
            self._receive(content[place : place + length])
            place += length
        last = self._message()
        if "error" in last:
            return DataError(**last["error"])
        if place != size:
            raise nonsense(path)
        return content.toreadonly()

    def _message(self) -> dict[str, Any]:
        length = self._length()
        found = json.loads(self._bytes(length)) if length <= MAX_MESSAGE else None
        return found if isinstance(found, dict) else {}

    def _length(self) -> int:
        return int.from_bytes(self._bytes(4), "little")

    def _bytes(self, count: int) -> bytes:
        found = bytearray(count)
        self._receive(memoryview(found))
        return bytes(found)

    def _receive(self, view: memoryview) -> None:
        assert self._channel is not None  # by decode
        while view:
            self._channel.settimeout(max(1e-3, self._deadline - time.monotonic()))
            count = self._channel.recv_into(view)
            if count == 0:
                raise ConnectionError("the worker is gone")
            view = view[count:]

    def _crashed(self, path: Path) -> DataError:
        status = None
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(1)
        ended = f"signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"status {status}"
        return DataError(
            "the decoder crashed on the file", where=readable_name(path), why=f"its process ended with {ended}",
            fix="convert the image to .nii.gz; report it if other programs read the file", code="E_DECODE",
        )  # fmt: skip


_here = threading.local()


def decode(
    path: Path, check: Check | None = None, *, labels: bool = False, segments: Mapping[str, int] | None = None
) -> Volume:
    """Read a volume through this thread's worker; see :meth:`Decoder.decode`."""
    return _decoder().decode(path, check, labels=labels, segments=segments)


def header(path: Path) -> VolumeHeader:
    """Read a volume's header through this thread's worker; see :meth:`Decoder.header`."""
    return _decoder().header(path)


def repair(path: Path, *, label: bool) -> Repair | None:
    """Repair a file through this thread's worker; see :meth:`Decoder.repair`."""
    return _decoder().repair(path, label=label)


def _decoder() -> Decoder:
    decoder: Decoder | None = getattr(_here, "decoder", None)
    if decoder is None or decoder.owner != os.getpid():  # a fork must not talk to its parent's worker
        decoder = _here.decoder = Decoder()
    return decoder


def _bytes_of(path: Path) -> int:
    """Size on disk as far as it is known; what cannot be looked at is reported by the worker."""
    total = 0
    with contextlib.suppress(OSError, ValueError, DataError):
        for file in files_of(path) if is_series_path(path) or is_pattern(path) else [path]:
            total += file.stat().st_size
    return total


def stored_of(said: Mapping[str, Any], path: Path) -> VolumeHeader:
    """Check a worker's description of a file, believing nothing that was not checked: the worker has read a foreign file.

    Raises:
        DataError: E_DECODE, E_SIZE.
    """
    try:
        stored = VolumeHeader(
            format=str(said["format"]), shape=tuple(int(n) for n in said["shape"]), dtype=str(said["dtype"]),
            affine=tuple(tuple(float(value) for value in row) for row in said["affine"]), slope=float(said["slope"]),
            intercept=float(said["intercept"]), channels_first=bool(said["channels_first"]),
            notes=tuple(str(note) for note in said["notes"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise nonsense(path) from error
    square = [len(row) for row in stored.affine] == [4] * 4
    if stored.dtype[:1] not in "<>" or stored.dtype[1:] not in DTYPES or not square or len(stored.shape) < 3:
        raise nonsense(path)
    check_shape(stored.shape, int(stored.dtype[-1]), readable_name(path))
    return stored


def nonsense(path: Path) -> DataError:
    """The error for an answer that no sound worker gives."""
    return DataError(
        "the decoder's answer makes no sense", where=readable_name(path),
        why="the file may have taken over the process that read it", code="E_DECODE",
        fix="do not open the file with other programs; report it",
    )  # fmt: skip
