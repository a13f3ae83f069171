"""The process that decodes foreign files: ``python -m cmt_med.data.volumes.worker FD MEMORY``, started by the decoder.

It takes one request after the other from a socket, a line of JSON with a path: of a volume to read, or of its header alone, or of
a file to repair. It answers in messages, each behind its length in four bytes: JSON with what the file says, or what is done to
it, or the error; then the voxels in pieces; then an empty message, and JSON with the error if one came up on the way. Its own
memory stays small whatever a header claims, and is capped.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmt_med.base.errors import CmtError
from cmt_med.data.volumes.formats import open_volume
from cmt_med.data.volumes.streams import io_error, readable_name


def main() -> int:
    """Answer requests until the other side closes the socket."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    limit(int(sys.argv[2]))
    with channel.makefile("rb") as requests, contextlib.suppress(_GoneError):
        for request in requests:
            asked = json.loads(request)
            path = Path(os.fsdecode(bytes.fromhex(asked["path"])))
            _answer(path, asked, channel)
    return 0


def limit(memory: int) -> None:
    """Cap what this process may still allocate, and forbid it to write files and to leave any behind when it crashes."""
    used = 0
    with contextlib.suppress(OSError):  # Linux only; elsewhere the cap includes what is loaded already
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_AS, used + memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(OSError, ValueError):  # an administrator may have set less
            resource.setrlimit(kind, (value, value))


class _GoneError(Exception):
    """The other side has closed the socket."""


def _opened(path: Path, asked: dict[str, Any]) -> tuple[dict[str, Any], Iterable[bytes]]:
    """The first message, and the bytes that follow."""
    repair = asked.get("repair")
    if repair is None:
        opened = open_volume(path, labels=asked.get("labels", False), segments=asked.get("segments"))
        return {"stored": asdict(opened.stored)}, () if asked.get("header") else opened.content
    from cmt_med.data.volumes.repair import repaired  # stands on the decoder, which stands on this process

    found = repaired(path, label=repair == "label")
    return ({"done": []}, ()) if found is None else ({"done": found.done, "size": found.size}, found.content)


def _answer(path: Path, asked: dict[str, Any], channel: socket.socket) -> None:
    begun = False
    last: dict[str, Any] = {}
    try:
        said, content = _opened(path, asked)
        for piece in content:
            if not begun:  # only now is it known that the file can hold what its header claims
                _send(channel, _json(said))
                begun = True
            _send(channel, piece)
        if not begun:  # nothing follows
            last = said
    except _GoneError:
        raise
    except Exception as error:
        last = {"error": _refusal(error, path).as_dict()}
    if begun:
        _send(channel, b"")
    _send(channel, _json(last))


def _send(channel: socket.socket, message: bytes) -> None:
    try:
        channel.sendall(len(message).to_bytes(4, "little"))
        channel.sendall(message)
    except OSError as error:
        raise _GoneError from error


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _refusal(error: Exception, path: Path) -> CmtError:
    where = readable_name(path)
    if isinstance(error, CmtError):
        return error
    if isinstance(error, OSError):  # the disk or the network failed while it was read
        return io_error(error, path)
    if isinstance(error, MemoryError):
        return CmtError(
            "decoding needs more memory than is allowed", where=where,
            why="what a file may take is bounded, so that a hostile one cannot stop the machine",
            fix="convert the image to .nii.gz", code="E_MEMORY",
        )  # fmt: skip
    return CmtError(  # a gap in a reader's checks; the process goes on, and the file is refused
        "the file cannot be decoded", where=where, why=f"{type(error).__name__}: {str(error)[:200]}",
        fix="convert the image to .nii.gz; report it if other programs read the file", code="E_DECODE",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
