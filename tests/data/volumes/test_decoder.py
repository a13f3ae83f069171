"""The worker: it may die, hang or eat, and the file is refused while the next one is read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.decoder import SECONDS, Decoder, decode
from tests.data.made import AFFINE, IMAGE, SHAPE, nifti


def test_one_worker_for_many_files(tmp_path: Path) -> None:
    decoder = Decoder()
    path = nifti(tmp_path / "i.nii.gz")
    pids = set()
    for _ in range(50):
        assert np.array_equal(decoder.decode(path).array, IMAGE)
        assert decoder.process is not None
        pids.add(decoder.process.pid)
    assert len(pids) == 1
    decoder.close()


def test_crash_between_files_and_within_one(tmp_path: Path) -> None:
    decoder = Decoder()
    path = nifti(tmp_path / "i.nii.gz")
    decoder.decode(path)
    assert decoder.process is not None
    first = decoder.process
    first.send_signal(signal.SIGSEGV)
    first.wait()
    assert np.array_equal(decoder.decode(path).array, IMAGE)  # a new worker
    assert decoder.process is not None
    second = decoder.process
    assert second.pid != first.pid
    second.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, second.send_signal, [signal.SIGKILL]).start()
    with pytest.raises(DataError) as raised:
        decoder.decode(path)
    assert raised.value.code == "E_DECODE"
    assert "SIGKILL" in raised.value.why
    assert np.array_equal(decoder.decode(path).array, IMAGE)
    decoder.close()


def test_hang(tmp_path: Path) -> None:
    decoder = Decoder()  # its start may take long beside other work
    path = nifti(tmp_path / "i.nii.gz")
    decoder.decode(path)
    assert decoder.process is not None
    decoder.seconds = 0.5
    hung = decoder.process
    hung.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(DataError) as raised:
        decoder.decode(path)
    assert raised.value.code == "E_TIMEOUT"
    assert time.monotonic() - began < 5
    assert hung.poll() is not None  # ended and waited for
    decoder.seconds = SECONDS
    assert np.array_equal(decoder.decode(path).array, IMAGE)
    decoder.close()


def test_worker_ends_with_its_owner(tmp_path: Path) -> None:
    decoder = Decoder()
    decoder.decode(nifti(tmp_path / "i.nii"))
    process = decoder.process
    assert process is not None
    del decoder
    process.wait(5)


def test_a_fork_starts_its_own(tmp_path: Path) -> None:
    path = nifti(tmp_path / "i.nii")
    decode(path)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        same = np.array_equal(decode(path).array, IMAGE)
        theirs.send(b"1" if same else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert ours.recv(1) == b"1"
    assert np.array_equal(decode(path).array, IMAGE)


def test_voxels_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    array = decode(nifti(tmp_path / "i.nii")).array
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1


def test_a_limit_on_file_sizes_does_not_matter(tmp_path: Path) -> None:
    """Reading must go on where nothing can be written."""
    path = nifti(tmp_path / "i.nii")
    program = (
        "import resource, sys; from pathlib import Path; from cmt_med.data.volumes.decoder import decode\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); sys.exit(decode(Path(sys.argv[1])).array.size != 210)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False).returncode == 0


SAID = {"format": "NIfTI-1", "shape": list(SHAPE), "dtype": "<f4", "affine": AFFINE.tolist(), "slope": 1.0, "intercept": 0.0,
        "channels_first": False, "notes": []}  # fmt: skip
VOXELS = IMAGE.tobytes(order="F")


def message(content: bytes | dict[str, object]) -> bytes:
    content = json.dumps(content).encode() if isinstance(content, dict) else content
    return len(content).to_bytes(4, "little") + content


def answered(*messages: bytes | dict[str, object]) -> NDArray[np.generic]:
    """What a decoder makes of an answer."""
    decoder = Decoder(seconds=2)
    ours, theirs = socket.socketpair()
    decoder.process = subprocess.Popen(["sleep", "60"])
    decoder._channel = ours
    for item in messages:
        theirs.sendall(message(item))
    theirs.shutdown(socket.SHUT_WR)
    try:
        return decoder.decode(Path("/nowhere.nii")).array
    finally:
        decoder.close()


def test_sound_answers() -> None:
    assert np.array_equal(answered({"stored": SAID}, VOXELS[:100], VOXELS[100:], b"", {}), IMAGE)
    with pytest.raises(DataError) as raised:
        answered({"stored": SAID}, VOXELS[:100], b"", {"error": DataError("x", where="y", code="E_GZIP").as_dict()})
    assert raised.value.code == "E_GZIP"


@pytest.mark.parametrize(
    "messages",
    [
        *(({"stored": SAID | change}, VOXELS, b"", {}) for change in (
            {"dtype": "|O"}, {"dtype": "<c8"}, {"dtype": "<f4junk"}, {"shape": [5, 6, 8]}, {"shape": [5, 6, 6]}, {"shape": []},
            {"shape": [5, 6, -7]}, {"shape": [2**62, 1, 1]}, {"affine": [[1.0]]}, {"affine": "nonsense"}, {"slope": None},
        )),
        ({"stored": []}, VOXELS, b"", {}),
        ({"stored": SAID}, VOXELS, VOXELS, b"", {}),
        ({"stored": SAID}, VOXELS[:-4], b"", {}),
        ({"stored": SAID}, VOXELS[:-4]),
        ({"stored": SAID}, VOXELS, b""),
        ({}, ),
        (b"no json", ),
        (b"[1, 2]", ),
        (b"\xff" * 50, ),
        ({"error": {"unknown": 1}}, ),
        (),
    ],
    ids=lambda messages: str(messages)[:60],
)  # fmt: skip
def test_answers_are_not_believed(messages: tuple[bytes | dict[str, object], ...]) -> None:
    """A worker that was taken over by a file can say anything."""
    with pytest.raises(DataError) as raised:
        answered(*messages)
    assert raised.value.code in ("E_DECODE", "E_SIZE", "E_HEADER")
