"""The process that decodes foreign files: ``python -m cmt_med.data.worker FD MEMORY``, started by :mod:`cmt_med.data.decoder`.

It takes one request after the other from a socket: a line of JSON with a path, and a file descriptor for the voxels. It answers
with a line of JSON: what the file says, or the error. Voxels are passed on in pieces, so its own memory stays small whatever a
header claims, and is capped.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmt_med.data.formats import open_volume
from cmt_med.data.streams import MAX_BYTES, readable_name
from cmt_med.errors import CmtError


def main() -> int:
    """Answer requests until the other side closes the socket."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    limit(int(sys.argv[2]))
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not request:
            return 0
        answer = _answer(os.fsdecode(bytes.fromhex(json.loads(request)["path"])), descriptors[0])
        os.close(descriptors[0])
        channel.sendall(json.dumps(answer).encode() + b"\n")


def limit(memory: int) -> None:
    """Cap what this process may still allocate, write and leave behind when it crashes."""
    used = 0
    with contextlib.suppress(OSError):  # Linux only; elsewhere the cap includes what is loaded already
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_AS, used + memory), (resource.RLIMIT_FSIZE, MAX_BYTES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(OSError, ValueError):  # an administrator may have set less
            resource.setrlimit(kind, (value, value))


def _answer(path: str, descriptor: int) -> dict[str, Any]:
    try:
        opened = open_volume(Path(path))
        for piece in opened.content:
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        return {"stored": asdict(opened.stored)}
    except CmtError as error:
        return {"error": error.as_dict()}
    except MemoryError:
        return {"error": CmtError(
            "decoding needs more memory than is allowed", where=readable_name(Path(path)),
            why="what a file may take is bounded, so that a hostile one cannot stop the machine",
            fix="convert the image to .nii.gz", code="E_MEMORY",
        ).as_dict()}  # fmt: skip
    except Exception as error:  # a gap in a reader's checks; the process goes on, and the file is refused
        return {"error": CmtError(
            "the file cannot be decoded", where=readable_name(Path(path)),
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="convert the image to .nii.gz; report it if other programs read the file", code="E_DECODE",
        ).as_dict()}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
