"""What goes wrong while training: it ends soon, and the message names what it was."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine

from cmt_med.base.errors import ConfigError, Interrupted
from cmt_med.base.files import LOCK_NAME
from cmt_med.config.schema import Train
from cmt_med.data.patches.loader import WorkerGoneError, patch_batches
from cmt_med.data.patches.sampler import Order, shuffled
from cmt_med.inference.model import load_model
from cmt_med.networks import build_network
from cmt_med.training.averaging import AveragedWeights
from cmt_med.training.checkpoint import load_newest
from cmt_med.training.faults import explained
from cmt_med.training.steps import training_step
from tests.helpers import tiny_config, tiny_dataset
from tests.processes import Running, command

SETS = ["--set", "train.patch_size=[8, 8, 8]", "--set", "data.split={by: last, count: 1}", "--threads", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 4, (12, 11, 13)))
    return tmp_path


def _train(folder: Path, name: str, *sets: str, **settings: int) -> Running:
    changes = [part for item in sets for part in ("--set", item)]
    arguments = ["--config", folder / "tiny.yaml", "--output", folder / name, *SETS, *changes]
    return command("train", *arguments, log=folder / f"{name}-{len(list(folder.glob('*.log')))}.log", **settings)


def _has_checkpoint(run: Path) -> bool:
    return any(run.glob("checkpoints/*.pt"))


def test_a_second_train_on_a_live_run(folder: Path) -> None:
    run = folder / "run"
    with _train(folder, "run", "train.epochs=1000") as first:
        first.wait_for(lambda: _has_checkpoint(run))
        with _train(folder, "run", "train.epochs=1000") as second:
            assert second.wait() == 73
            assert "[E_LOCKED]" in second.said()
            assert f"host {socket.gethostname()}, process {first.pid}" in second.said()
        assert first.is_running()
        first.kill()
    assert (run / LOCK_NAME).exists()  # stale
    steps = load_newest(run / "checkpoints")
    assert steps is not None
    with _train(folder, "run", "train.epochs=1000") as third:
        third.wait_for(lambda: "resuming" in third.said())
        third.send(signal.SIGTERM)
        assert third.wait(30) == 75
    assert not (run / LOCK_NAME).exists()


def test_more_epochs_continue_a_finished_run(folder: Path) -> None:
    run = folder / "run"
    for epochs in (2, 4):
        with _train(folder, "run", f"train.epochs={epochs}") as running:
            running.wait_for((run / "report/report.html").exists)
            assert running.wait() == 0, running.said()
        assert load_model(run)[0].provenance["epochs"] == epochs
    assert "going on to 4" in running.said()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    weights = (run / "model/model.safetensors").read_bytes()
    with _train(folder, "run", "train.epochs=3") as running:
        assert running.wait() == 64
    assert (run / "model/model.safetensors").read_bytes() == weights


@pytest.mark.fault(33)
def test_more_minutes_continue_a_finished_run(folder: Path) -> None:
    run = folder / "run"
    steps = []
    for minutes in (0.15, 0.3):
        with _train(folder, "run", "train.epochs=null", f"train.max_minutes={minutes}") as running:
            assert running.wait() == 0, running.said()
        provenance = load_model(run)[0].provenance
        steps.append(provenance["steps"])
        assert provenance["minutes"] < minutes
    assert "finished before with 0.15 minutes; going on to 0.3 minutes" in running.said()
    assert steps[1] > steps[0]
    with _train(folder, "run", "train.epochs=null", "train.max_minutes=0.25") as running:
        assert running.wait() == 64
    assert "scheduled for 0.3 minutes" in running.said()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_rate_that_blows_up(folder: Path, norm: str) -> None:
    sets = ["train.epochs=9", "optimizer={lr: 1e30, clip: 1e30, warmup: 0}", f"network.options.norm={norm}",
            "train.validate_every=100"]  # fmt: skip
    with _train(folder, "run", *sets) as running:
        assert running.wait() == 65, running.said()
        said = running.said()
    assert "[E_NAN]" in said
    assert said.count("is not finite; skipped; cases: case") == 3
    assert "batch of case" in said
    assert not (folder / "run/model").exists()
    if _has_checkpoint(folder / "run"):
        state = load_newest(folder / "run/checkpoints")
        assert state is not None
        assert all(tensor.isfinite().all() for tensor in state["network"].values())


@pytest.mark.fault(1)
def test_a_validation_of_what_has_blown_up(folder: Path) -> None:
    with _train(folder, "run", "train.epochs=9", "optimizer={lr: 1e30, clip: 1e30, warmup: 0}") as running:
        assert running.wait() == 65, running.said()
    assert "[E_NAN] the network's output is not finite\n  where: case case3, validated while training" in running.said()


@pytest.mark.parametrize("scale", [5e18, 1e20])  # of the first, loss and gradient are finite
def test_a_batch_that_is_skipped_leaves_no_trace(scale: float) -> None:
    network = build_network("cmt_unetr_ti", spatial_dims=2, in_channels=1, num_classes=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert any("running_var" in name for name in before)
    step = training_step(
        network, torch.optim.AdamW(network.parameters()), lambda output, _: output.softmax(1)[:, 0].mean(),
        rate_at=lambda _: 1e-3, average=AveragedWeights(network, 0.9), seed=0, clip=1.0, amp=False,
    )  # fmt: skip
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * scale
    engine = Engine(step)
    engine.run([[{"image": image, "label": torch.zeros(2, 1, 64, 64)}]])
    assert engine.state.output["finite"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_dead_data_worker(folder: Path) -> None:
    run = folder / "run"
    with _train(folder, "run", "train.epochs=1000", "data.workers=1") as running:
        running.wait_for(lambda: _has_checkpoint(run))
        worker = _data_worker(running.pid)
        os.kill(worker, signal.SIGKILL)
        assert running.wait(60) == 75, running.said()
        assert "[E_WORKER]" in running.said()
        assert str(worker) in running.said()
        assert "Traceback" not in running.said()


def test_data_workers_go_with_a_killed_training(folder: Path) -> None:
    with _train(folder, "run", "train.epochs=1000", "data.workers=2") as running:
        running.wait_for(lambda: _has_checkpoint(folder / "run"))
        worker = _data_worker(running.pid)
        running.kill()
    end = time.monotonic() + 60
    while _is_alive(worker):
        assert time.monotonic() < end, f"data worker {worker} outlives the training"
        time.sleep(0.1)


def _is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _data_worker(parent: int) -> int:
    """The child that was forked, not the decoder, which was started anew."""
    children = [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    command_line = Path(f"/proc/{parent}/cmdline").read_bytes()
    return next(c for c in children if Path(f"/proc/{c}/cmdline").read_bytes() == command_line)


class _Stuck(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Its worker waits for ever at the fourth item, or is stopped or ended there, maybe while it hands over the third."""

    seed = 0

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 8

    def order(self) -> Order:
        return shuffled(len(self), self.seed)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        if key[1] == 3:
            if self.how != "asleep":
                os.kill(os.getpid(), {"stopped": signal.SIGSTOP, "ended": signal.SIGTERM}[self.how])
            time.sleep(1e6)
        return {"image": torch.zeros(1)}


def wait_for_a_stuck_worker(how: str) -> int:
    """Runs in a process of its own."""
    stream = patch_batches(_Stuck(how), batch_size=1, start=0, workers=1, seconds=2.0)  # type: ignore[arg-type]
    with pytest.raises(Interrupted) as raised, explained(Train(epochs=1, patch_size=[8])):
        list(stream)
    print(raised.value.message())
    return raised.value.exit_code


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_hung_data_worker(tmp_path: Path, how: str) -> None:
    with Running(wait_for_a_stuck_worker, how, log=tmp_path / "log") as running:
        assert running.wait(60) == 75, running.said()
        assert "[E_WORKER] a data worker hangs" in running.said()


def test_out_of_memory(folder: Path) -> None:
    sets = [
        "train.batch_size=4096",
        "train.fit_device=false",
        "train.patches_per_case=4096",
        "train.patch_size=[32, 32, 32]",
    ]
    with _train(folder, "run", *sets, memory=1_500_000_000) as running:
        assert running.wait() == 64, running.said()
        assert "[E_MEMORY]" in running.said()
        assert "train.batch_size=4096" in running.said()
        assert "Traceback" not in running.said()


def test_a_damaged_newest_checkpoint(folder: Path) -> None:
    for name in ("whole", "cut"):
        with _train(folder, name, "train.epochs=6") as running:
            running.wait_for(lambda name=name: (folder / name / "model/model.json").exists())  # type: ignore[misc]
    newest = max((folder / "cut").glob("checkpoints/*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 16
    newest.write_bytes(content)
    (folder / "cut/model/model.safetensors").unlink()
    (folder / "cut/model/model.json").unlink()
    with _train(folder, "cut", "train.epochs=6") as running:
        running.wait_for(lambda: (folder / "cut/model/model.json").exists())
        assert f"{newest.name} is damaged; falling back to the one before" in running.said()
    whole, cut = ((folder / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.fault(26)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_step_that_cannot_fit_is_refused_before_the_first(folder: Path, more: list[str]) -> None:
    """400 GB of activations: said at once, and not after minutes of pages that the system takes back again."""
    sets = ["train.batch_size=64", "train.patch_size=[512, 512, 512]", "train.fit_device=false"]
    arguments = ["--config", folder / "tiny.yaml", "--output", folder / "run", *SETS, *more]
    changes = [part for item in sets for part in ("--set", item)]
    with command("train", *arguments, *changes, log=folder / "log") as running:
        assert running.wait(60) == 64, running.said()
    assert "[E_MEMORY] a training step would take about" in running.said()
    assert "train.batch_size=64, patches of 512×512×512" in running.said()
    assert not (folder / "run/checkpoints").exists()


@pytest.mark.fault(22)
def test_a_worker_that_the_launcher_ends_is_a_lost_rank(folder: Path) -> None:
    """When a rank is gone, torchrun sends SIGTERM to all processes of the others: to their data workers, too."""
    with Running(_second_rank_of_none, log=folder / "log") as running:
        assert running.wait(60) == 75, running.said()
    assert "[E_RANK] another process of this job is gone" in running.said()


def _second_rank_of_none() -> int:
    """Runs in a process of its own: a job of two ranks, in one of which a worker is ended while its batch is waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = multiprocessing.get_context("fork").Process(target=_join, args=(port, 1))
    other.start()
    _join(port, 0)
    stream = patch_batches(_Stuck("ended"), batch_size=2, start=0, workers=1)  # type: ignore[arg-type]
    with pytest.raises(Interrupted) as raised, explained(Train(epochs=1, patch_size=[8])):
        list(stream)
    other.kill()
    print(raised.value.message())
    return raised.value.exit_code


def _join(port: int, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    idist.sync()
    if rank:
        signal.pause()


@pytest.mark.fault(22)
def test_a_signal_for_all_processes_saves(folder: Path) -> None:
    """A job that is cancelled: the data workers end first, and the training saves all the same."""
    sets = ["train.epochs=1000", "data.workers=1", "augmentation={blur: 1, low_resolution: 1, affine: 1}",
            "train.validate_every=1000", "train.patch_size=[48, 48, 48]", "train.fit_device=false"]  # fmt: skip
    with _train(folder, "run", *sets) as running:
        running.wait_for(lambda: (folder / "run/log.jsonl").exists())
        worker = _data_worker(running.pid)
        running.send(signal.SIGSTOP)
        for process in (worker, running.pid):
            os.kill(process, signal.SIGTERM)
        while _is_alive(worker):
            time.sleep(0.01)
        running.send(signal.SIGCONT)
        assert running.wait(60) == 75, running.said()
    assert "[E_INTERRUPTED] training was asked to stop" in running.said()
    assert _has_checkpoint(folder / "run")


@pytest.mark.fault(6)
@pytest.mark.parametrize("options", ["size=1m,ro", *(["size=1m"] if os.environ.get("CMT_SOAK") else [])])
def test_little_shared_memory(folder: Path, options: str) -> None:
    """What a container has unless it is told otherwise: too little for batches of workers, or none."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare to mount another /dev/shm")
    sets = [part for item in ("data.workers=2", "train.patch_size=[64, 64, 64]", "train.fit_device=false", "train.epochs=1")
            for part in ("--set", item)]  # fmt: skip
    train = [sys.executable, "-m", "cmt_med.train", "--config", str(folder / "tiny.yaml"), *sets]
    script = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "bash", *train], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "data.workers=2 is not used" in done.stderr
    assert "--shm-size" in done.stderr


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "said", [RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
             WorkerGoneError([3], -signal.SIGBUS)],
)  # fmt: skip
def test_shared_memory_that_fills_up(said: RuntimeError) -> None:
    """Others may use it, too: what the worker or the system then says becomes advice."""
    with (
        pytest.raises(ConfigError, match="shared memory is full") as raised,
        explained(Train(epochs=1, patch_size=[8])),
    ):
        raise said
    assert "--shm-size" in raised.value.fix
    assert raised.value.code == "E_MEMORY"
