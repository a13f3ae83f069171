"""Checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmt_med.errors import DataError
from cmt_med.training.checkpoint import load_newest, save_checkpoint


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
