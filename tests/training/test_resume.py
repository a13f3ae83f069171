"""A run that is killed, again and again, ends with the same weights."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_med.base.files import TEMPORARY_PREFIX
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from tests.helpers import tiny_config, tiny_dataset
from tests.processes import Running, cmt_med_main, command

SETS = ["--set", "train.epochs=10", "--set", "train.patch_size=[8, 8, 8]", "--set", "train.select=best",
        "--set", "data.split={by: last, count: 1}", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and the run that nothing interrupted, ``whole/``."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_config(folder, tiny_dataset(folder / "d", 4, (12, 11, 13)))
    _finish(folder, folder / "whole")
    return folder


def _finish(folder: Path, run: Path) -> None:
    """Train to the end; the report, which takes longer than this training, is left out."""
    with _train(folder, run) as running:
        running.wait_for((run / "model/model.json").exists)


def _train(folder: Path, output: Path, *more: str) -> Running:
    arguments = ["--config", folder / "tiny.yaml", "--output", output, *SETS, *more]
    return command("train", *arguments, log=folder / f"{output.name}.log")


def _weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def _log(run: Path) -> list[dict[str, Any]]:
    """Without the times."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    times = {"seconds", "step_seconds", "outside_share"}
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def _writes_checkpoint(run: Path) -> set[Path]:
    return set(run.glob(f"checkpoints/{TEMPORARY_PREFIX}*"))


def test_killed_at_random_moments(whole: Path, soak: bool) -> None:
    rng, kills, inside, number = random.Random(5), 0, 0, 0
    wanted = 20 if soak else 3
    while kills < wanted:
        run, number = whole / f"cut{number}", number + 1
        finished = False
        while kills < wanted and not finished:
            with _train(whole, run, "--set", f"data.workers={rng.choice((0, 1, 2))}") as running:
                left = _writes_checkpoint(run)  # by the kill before; removed at the start
                begun, wait = time.monotonic(), rng.uniform(0.2, 4.0)
                aims = kills % 3 == 1  # at a checkpoint that is being written
                while running.is_running() and time.monotonic() - begun < (30.0 if aims else wait):
                    if aims and _writes_checkpoint(run) - left:
                        break
                    time.sleep(0.0005)
                finished = not running.is_running()
                if not finished:
                    running.kill()
                    kills += 1
                    inside += bool(_writes_checkpoint(run) - left)
        if not finished:
            _finish(whole, run)
        assert _weights(run) == _weights(whole / "whole")
        assert _log(run) == _log(whole / "whole")
    assert inside >= wanted // 6, "too few kills hit a checkpoint"


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGTERM, "training"), (signal.SIGINT, "training"), (signal.SIGTERM, "at the start")]
)
def test_a_signal_is_exit_code_75(whole: Path, number: signal.Signals, moment: str) -> None:
    run = whole / f"signal-{number.name}-{moment[:2]}"
    with _train(whole, run) as running:
        log = run / "log.jsonl"
        ready = {"at the start": run.exists, "training": lambda: log.exists() and len(log.read_text().splitlines()) > 2}
        running.wait_for(ready[moment])
        running.send(number)
        assert running.wait(30) == 75
        assert "E_INTERRUPTED" in running.said()
        assert "Traceback" not in running.said()
    assert not (run / "model").exists()
    assert not (run / "report").exists()
    if moment == "at the start":
        return
    assert load_newest(run / "checkpoints") is not None
    _finish(whole, run)
    assert _weights(run) == _weights(whole / "whole")
    assert _log(run) == _log(whole / "whole")


EPOCHS = ("--set", "train.epochs=14")  # 28 steps: more than the probe of a run that is bound in minutes


@pytest.fixture(scope="module")
def longer(whole: Path) -> bytes:
    """The weights of a run that is bound by epochs alone, and uninterrupted."""
    with _train(whole, whole / "longer", *EPOCHS) as running:
        running.wait_for((whole / "longer/model/model.json").exists)
    return _weights(whole / "longer")


@pytest.mark.fault(4)
@pytest.mark.parametrize("step", range(1, 28) if os.environ.get("CMT_SOAK") else [1, 12, 22])
def test_interrupted_before_the_plan_was_made(whole: Path, longer: bytes, step: int) -> None:
    """A bound in minutes that does not bind: the weights are those of `train.epochs` alone, wherever the run was cut."""
    run = whole / f"minutes{step}"
    with Running(_interrupt_after, whole, run, step, log=whole / f"cut-{step}.log") as running:
        assert running.wait() == 75, running.said()
    with _train(whole, run, *EPOCHS, "--set", "train.max_minutes=20") as running:
        running.wait_for((run / "model/model.json").exists)
    assert _weights(run) == longer


def _interrupt_after(folder: Path, run: Path, step: int) -> int:
    """Runs in a process of its own: the command, which gets a SIGTERM at a step."""
    from cmt_med.training.budget import Budget

    after_step = Budget.after_step

    def signalling(self: Budget, number: int, *arguments: Any) -> None:
        after_step(self, number, *arguments)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    Budget.after_step = signalling  # type: ignore[method-assign]
    arguments = ["--config", folder / "tiny.yaml", "--output", run, *SETS, *EPOCHS, "--set", "train.max_minutes=20"]
    return cmt_med_main("train", [str(item) for item in arguments])


def _state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((500_000,), float(step))}


def write_checkpoints(folder: Path, step: int) -> None:
    """Runs in a process of its own, until it is killed; each step is saved twice, as at the end of an epoch."""
    while True:
        for closed in (False, True):
            save_checkpoint(folder, step, _state(step) | {"closed": closed})
            print(step, flush=True)
        step += 1


def test_killed_while_writing_checkpoints(tmp_path: Path, soak: bool, caplog: pytest.LogCaptureFixture) -> None:
    rng, folder, known, inside = random.Random(1), tmp_path / "checkpoints", 1, 0
    for step in (0, 1):
        save_checkpoint(folder, step, _state(step))
    for kill in range(50 if soak else 8):
        log = tmp_path / f"{kill}.log"
        with Running(write_checkpoints, folder, known + 1, log=log) as running:
            running.wait_for(lambda log=log: log.exists() and bool(log.read_text()))  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.05))
            while not any(folder.glob(f"{TEMPORARY_PREFIX}*")):
                pass
            time.sleep(rng.uniform(0, 0.003))
            running.kill()
            written = [int(line) for line in running.said().splitlines()]
        inside += any(folder.glob(f"{TEMPORARY_PREFIX}*"))
        for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
            left.unlink()
        state = load_newest(folder)
        assert state is not None
        assert state["step"] >= written[-1]  # what was said to be written is there, if not the one after it
        assert torch.equal(state["weights"], _state(state["step"])["weights"])
        assert "damaged" not in caplog.text
        newest = max(folder.glob("*.pt"))
        newest.write_bytes(newest.read_bytes()[:-1])  # the disk spoils it: there is one before
        before = load_newest(folder)
        assert before is not None
        assert before["step"] == state["step"] - 1
        assert "damaged" in caplog.text
        caplog.clear()
        newest.unlink()
        newest.with_suffix(".sha256").unlink()
        known = before["step"]
    assert inside >= (10 if soak else 2), "too few kills hit a file that was being written"
