"""Two processes of one job, of which one is killed, stopped or hangs: the other ends soon, and says so.

The job started again ends the same.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import tiny_config, tiny_dataset
from tests.processes import Running, cmt_med_main

SETS = ["--set", "train.epochs=10", "--set", "train.patch_size=[8, 8, 8]", "--set", "data.split={by: last, count: 1}",
        "--threads", "1"]  # fmt: skip

SOAK = bool(os.environ.get("CMT_SOAK"))
KILL, STOP, HANG = signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1
CASES = [(number, lost) for lost in (1, 0) for number in (KILL, STOP, HANG)][
    : None if SOAK else 1
]  # the others wait long
SECONDS = 60.0

LISTENING = """
import signal, sys, time
from cmt_med.train import main
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1e6))
sys.exit(main())
"""


def train_until_told_to_hang(arguments: list[str]) -> int:
    """Runs in a process of its own: SIGUSR1 makes its main thread hang, and leaves the others."""
    signal.signal(HANG, lambda *_: time.sleep(1e6))
    return cmt_med_main("train", arguments)


def _start(folder: Path, output: Path) -> list[Running]:
    """Both ranks, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = ["--config", str(folder / "tiny.yaml"), "--output", str(output), *SETS]
    return [
        Running(train_until_told_to_hang, arguments, log=folder / f"{output.name}-{rank}.log",
                environment=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip


def _finish(folder: Path, output: Path) -> bytes:
    ranks = _start(folder, output)
    codes = [rank.wait() for rank in ranks]
    assert codes == [0, 0], "".join(rank.said() for rank in ranks)
    return (output / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with a config, and the weights of a job that nothing interrupted."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_config(folder, tiny_dataset(folder / "d", 4, (12, 11, 13)))
    return folder, _finish(folder, folder / "whole")


@pytest.mark.parametrize(("number", "lost"), CASES)
def test_a_lost_rank(whole: tuple[Path, bytes], number: signal.Signals, lost: int) -> None:
    folder, weights = whole
    run = folder / f"{number.name}{lost}"
    ranks = _start(folder, run)
    try:
        ranks[0].wait_for(lambda: len(list(run.glob("checkpoints/*.pt"))) > 1)
        ranks[lost].send(number)
        left = ranks[1 - lost]
        assert left.wait(SECONDS) == 75, left.said()
        _require_message(left.said(), 1 - lost)
        if number == HANG:  # it has other threads, which notice
            assert ranks[lost].wait(SECONDS) == 75
            _require_message(ranks[lost].said(), lost)
    finally:
        for rank in ranks:
            rank.kill()
    assert not (run / "model").exists()
    assert _finish(folder, run) == weights


def _require_message(said: str, rank: int) -> None:
    assert "[E_RANK] another process of this job is gone" in said, said
    assert f"seen by rank {rank}" in said
    assert "resumes" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "lost"), CASES)
def test_a_lost_rank_under_torchrun(whole: tuple[Path, bytes], number: signal.Signals, lost: int) -> None:
    folder, weights = whole
    run, logs = folder / f"torchrun-{number.name}{lost}", folder / f"logs-{number.name}{lost}"
    script = folder / "listening.py"
    script.write_text(LISTENING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    training = ["--config", str(folder / "tiny.yaml"), "--output", str(run), *SETS]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*launch, "--redirects=3", f"--log-dir={logs}", str(script), *training],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while len(list(run.glob("checkpoints/*.pt"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    processes = [
        next(p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_rank(p, job.pid, i)) for i in (0, 1)
    ]
    os.kill(int(processes[lost].name), number)
    begun = time.monotonic()
    while _is_rank(processes[1 - lost], job.pid, 1 - lost):
        assert time.monotonic() - begun < SECONDS
        time.sleep(0.1)
    [log] = logs.glob(f"*/attempt_0/{1 - lost}/stderr.log")
    _require_message(log.read_text(), 1 - lost)
    assert job.wait(SECONDS) != 0  # torchrun itself gives a stopped process 30 s more
    again = subprocess.run(
        [*launch, "-m", "cmt_med.train", *training],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert (run / "model/model.safetensors").read_bytes() == weights


def _is_rank(process: Path, parent: int, rank: int) -> bool:
    try:
        child = f"PPid:\t{parent}\n" in (process / "status").read_text()
        return child and f"\0RANK={rank}\0".encode() in (process / "environ").read_bytes()
    except OSError:
        return False
