"""Decoding in another process, which may crash, hang or run out of memory without harm.

One worker is started at a thread's first volume and used again for all others; after a crash or a timeout a new one takes over.
Voxels come back as bytes, what the file says as JSON, so nothing is unpickled. It costs 0.15 s once and 0.4 ms a
file, so it is the only way in which volumes are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cmt_med
from cmt_med.data.formats import files_of
from cmt_med.data.stored import DTYPES, Stored, check_shape
from cmt_med.data.streams import readable_name
from cmt_med.errors import DataError

MEMORY = 1 << 30
"""Bytes that a worker may allocate beside what it has loaded; voxels do not count, they are bounded by their own size."""
SECONDS = 60.0
BYTES_PER_SECOND = 2e6  # a slow network drive; allowed on top of SECONDS


@dataclass(frozen=True)
class Volume:
    """A decoded file: what it says, and its voxels as stored, unscaled, read-only."""

    stored: Stored
    array: NDArray[np.generic]


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
        self._channel: socket.socket | None = None

    def decode(self, path: Path) -> Volume:
        """Read a volume: a file or the folder of a DICOM series.

        Raises:
            DataError: from the readers; E_TIMEOUT, E_MEMORY, E_DECODE if the worker did not survive the file.
        """
        path = path.absolute()
        answered = False
        try:
            request = json.dumps({"path": os.fsencode(path).hex()}).encode() + b"\n"
            channel = self._connected()
            self._deadline = time.monotonic() + self.seconds + _bytes_of(path) / BYTES_PER_SECOND
            channel.sendall(request)
            volume = self._answer(path)
            answered = True
            return volume
        except TimeoutError as error:
            raise DataError(
                "decoding takes too long", where=readable_name(path), why="its process was stopped",
                fix="copy the file to a faster disk; if it still hangs, convert it to .nii.gz", code="E_TIMEOUT",
            ) from error  # fmt: skip
        except OSError as error:
            raise self._crashed(path) from error
        except DataError as error:
            answered = error.code not in ("E_SIZE", "E_DECODE")  # after these, more may be on its way
            raise
        finally:
            if not answered:  # also when interrupted: the next answer must not be that to this request
                self.close()

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
                [sys.executable, "-P", "-m", "cmt_med.data.worker", str(theirs.fileno()), str(self.memory)],
                pass_fds=[theirs.fileno()], env=environment, cwd="/", start_new_session=True,  # Ctrl-C is for us alone
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._channel = ours
        return ours

    def _ask(self, path: Path, shared: int) -> dict[str, Any]:
        channel = self._channel
        if channel is None or self.process is None or self.process.poll() is not None:
            channel = self._start()
        answered = False
        try:
            request = json.dumps({"path": os.fsencode(path).hex()}).encode()
            channel.settimeout(self.seconds + _bytes_of(path) / BYTES_PER_SECOND)
            socket.send_fds(channel, [request], [shared])
            reply = b""
            while not reply.endswith(b"\n"):
                piece = channel.recv(1 << 16)
                if not piece:
                    raise self._crashed(path)
                reply += piece
            answered = True
            return json.loads(reply)
        except TimeoutError as error:
            raise DataError(
                "decoding takes too long", where=readable_name(path), why=f"it was stopped after {channel.gettimeout():.0f} s",
                fix="copy the file to a faster disk; if it still hangs, convert it to .nii.gz", code="E_TIMEOUT",
            ) from error  # fmt: skip
        except OSError as error:
            raise self._crashed(path) from error
        finally:
            if not answered:  # also when interrupted: the next answer must not be that to this request
                self.close()

    def _crashed(self, path: Path) -> DataError:
        status = None
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(5)
        ended = f"signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"status {status}"
        return DataError(
            "the decoder crashed on the file", where=readable_name(path), why=f"its process ended with {ended}",
            fix="convert the image to .nii.gz; report it if other programs read the file", code="E_DECODE",
        )  # fmt: skip


_here = threading.local()


def decode(path: Path) -> Volume:
    """Read a volume through this thread's worker; see :meth:`Decoder.decode`."""
    decoder: Decoder | None = getattr(_here, "decoder", None)
    if decoder is None or decoder.owner != os.getpid():  # a fork must not talk to its parent's worker
        decoder = _here.decoder = Decoder()
    return decoder.decode(path)


def _bytes_of(path: Path) -> int:
    """Size on disk as far as it is known; what cannot be looked at is reported by the worker."""
    total = 0
    with contextlib.suppress(OSError, ValueError, DataError):
        for file in files_of(path) if path.is_dir() else [path]:
            total += file.stat().st_size
    return total


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cmt_med", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())


def _seal(shared: int) -> bool:
    """Whether from now on nobody can change or shorten the file behind our back; where not, its content must be copied.

    The kernel refuses for as long as it holds on to one of the pages itself, as it may on a busy machine.
    """
    if not hasattr(os, "memfd_create"):
        return False
    try:
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except OSError:
        return False
    return True


def _copied(shared: int, size: int) -> bytearray:
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size and (read := os.preadv(shared, [view[done : done + (1 << 30)]], done)):
        done += read
    return content


def _volume(said: Mapping[str, Any], shared: int, path: Path) -> Volume:
    """Take over the voxels, believing nothing that was not checked: the worker has read a foreign file."""
    where = readable_name(path)
    sealed = _seal(shared)
    try:
        affine = tuple(tuple(float(value) for value in row) for row in said["affine"])
        stored = Stored(
            format=str(said["format"]), shape=tuple(int(n) for n in said["shape"]), dtype=str(said["dtype"]), affine=affine,
            slope=float(said["slope"]), intercept=float(said["intercept"]), channels_first=bool(said["channels_first"]),
            notes=tuple(str(note) for note in said["notes"]),
        )  # fmt: skip
        sensible = stored.dtype[:1] in "<>" and stored.dtype[1:] in DTYPES and [len(row) for row in affine] == [4] * 4
    except (KeyError, TypeError, ValueError):
        sensible = False
    if not sensible or len(stored.shape) < 3:
        raise DataError(
            "the decoder's answer makes no sense", where=where, why="the file may have taken over the process that read it",
            fix="do not open the file with other programs; report it", code="E_DECODE",
        )  # fmt: skip
    check_shape(stored.shape, int(stored.dtype[-1]), where)
    if os.fstat(shared).st_size != stored.size:
        raise DataError(
            "the decoder returned another number of voxels than it says", where=where,
            why=f"{os.fstat(shared).st_size} bytes for the shape {stored.shape}", fix="report it with the file", code="E_DECODE",
        )  # fmt: skip
    content = memoryview(
        mmap.mmap(shared, stored.size, prot=mmap.PROT_READ) if sealed else _copied(shared, stored.size)
    )
    return Volume(stored, stored.array(content))
