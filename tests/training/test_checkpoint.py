"""Checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Optimizer, Train
from cmt_med.tasks.segmentation.labels import Regions
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.training import checkpoint
from cmt_med.training.budget import Pace
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from cmt_med.training.state import Run, TrainingSetup


def test_three_are_kept_and_a_damaged_newest_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_newest(tmp_path) is None
    for step in range(5):
        save_checkpoint(tmp_path, step, {"step": step, "w": torch.full((3,), float(step))})
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [f"step-{s:09d}.pt" for s in (2, 3, 4)]
    newest = tmp_path / "step-000000004.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    state = load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.full((3,), 3.0))
    assert "damaged" in caplog.text
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="all checkpoints"):
        load_newest(tmp_path)


def test_killed_while_a_step_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 10, {"closed": 0})
    for _ in range(2):
        with monkeypatch.context() as context:
            context.setattr(checkpoint, "write_bytes", _killed)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(tmp_path, 10, {"closed": 10})
        assert load_newest(tmp_path) == {"closed": 0}
    save_checkpoint(tmp_path, 10, {"closed": 10})
    assert load_newest(tmp_path) == {"closed": 10}
    assert len((tmp_path / "step-000000010.sha256").read_text().split()) == 1


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _run(folder: Path) -> Run:
    parts = TrainingSetup(torch.nn.Linear(2, 1), Segmentation(Regions([]), {}), lambda _: iter(()), None, 1, [], "x")
    return Run(parts, Train(epochs=9, select="best", ema=0, patch_size=[8]), Optimizer(), folder)


def test_the_best_weights_go_back_with_their_checkpoint(tmp_path: Path) -> None:
    run = _run(tmp_path)
    for step, dice in ((1, 0.5), (2, 0.9)):
        torch.nn.init.constant_(run.setup.network.weight, float(step))  # type: ignore[arg-type]
        run.position.step = step
        run.note_scores({"dice": dice})
        run.save(0.0, None, Pace())
    (tmp_path / "checkpoints/step-000000002.pt").write_bytes(b"x")
    run = _run(tmp_path)
    run.resume()
    assert run.position.best == {"dice": 0.5, "step": 1}
    assert run.chosen_weights()["weight"].tolist() == [[1.0, 1.0]]
