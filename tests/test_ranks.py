"""Two processes of one job, of which one is killed or stopped: the other ends soon, and the job started again ends the same."""

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
from tests.processes import Running, command

SETS = ["--set", "train.epochs=10", "--set", "train.patch_size=[8, 8, 8]", "--set", "data.split={by: last, count: 1}",
        "--threads", "1"]  # fmt: skip

SOAK = bool(os.environ.get("CMT_SOAK"))  # a stopped process is waited for: only one of the cases is quick


def _start(folder: Path, output: Path) -> list[Running]:
    """Both ranks, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = ["--config", folder / "tiny.yaml", "--output", output, *SETS]
    return [
        command("train", *arguments, log=folder / f"{output.name}-{rank}.log",
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


@pytest.mark.parametrize(
    ("number", "lost"),
    [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 0)][: None if SOAK else 1],
)
def test_a_lost_rank(whole: tuple[Path, bytes], number: signal.Signals, lost: int) -> None:
    folder, weights = whole
    run = folder / f"{number.name}{lost}"
    ranks = _start(folder, run)
    try:
        ranks[0].wait_for(lambda: len(list(run.glob("checkpoints/*.pt"))) > 1)
        ranks[lost].send(number)
        left = ranks[1 - lost]
        assert left.wait(60) == 75, left.said()
        assert "[E_RANK]" in left.said()
        assert "resumes" in left.said()
        assert "Traceback" not in left.said()
    finally:
        for rank in ranks:
            rank.kill()
    assert not (run / "model").exists()
    assert _finish(folder, run) == weights


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP] if SOAK else [signal.SIGKILL])
def test_a_lost_rank_under_torchrun(whole: tuple[Path, bytes], number: signal.Signals) -> None:
    folder, weights = whole
    run = folder / f"torchrun-{number.name}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "cmt_med.train",
              "--config", str(folder / "tiny.yaml"), "--output", str(run), *SETS]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(launch, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list(run.glob("checkpoints/*.pt"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    ranks = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_rank(p, job.pid, 1)]
    assert len(ranks) == 1
    os.kill(ranks[0], number)
    begun = time.monotonic()
    _, said = job.communicate(timeout=100)  # torchrun itself gives a stopped process 30 s more
    assert job.returncode != 0
    if number == signal.SIGSTOP:
        assert "[E_RANK]" in said
    assert time.monotonic() - begun < 90
    again = subprocess.run(launch, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (run / "model/model.safetensors").read_bytes() == weights


def _is_rank(process: Path, parent: int, rank: int) -> bool:
    try:
        child = f"PPid:\t{parent}\n" in (process / "status").read_text()
        return child and f"\0RANK={rank}\0".encode() in (process / "environ").read_bytes()
    except OSError:
        return False
