"""The plan of a run that is bound in minutes, on a clock that the test moves."""

from __future__ import annotations

import pytest

from cmt_med.config import Train
from cmt_med.training import budget
from cmt_med.training.budget import Budget


def _run(monkeypatch: pytest.MonkeyPatch, seconds_of_step: dict[range, float], **bounds: float) -> tuple[float, int]:
    """Minutes and steps of a run whose steps take a second, but for those named."""
    clock = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: clock[0])
    train = Train.model_validate({"patch_size": [8, 8, 8], "validate_every": 1000, **bounds})
    run = Budget(
        train, steps_per_epoch=10, seconds_before=0.0, started=0.0, reserve=lambda _: 30.0, path=None, plan=None
    )
    step = 0
    while not run.is_over(step):
        clock[0] += next((seconds for steps, seconds in seconds_of_step.items() if step in steps), 1.0)
        step += 1
        run.after_step(step, lambda: None)
        assert 0.0 <= run.progress(step) <= 1.0
    return clock[0] / 60.0, step


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("steady", {}),
        ("slow for good", {range(150, 10_000): 1.6}),
        ("slow for a while", {range(150, 250): 4.0}),
        ("slow while the probe runs", {range(0, 60): 3.0}),
    ],
)
def test_the_minutes_are_used_and_not_exceeded(
    name: str, slow: dict[range, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes, _ = _run(monkeypatch, slow, max_minutes=20)
    assert 0.93 * 20 <= minutes + 0.5 <= 20.2, name  # half a minute is kept for what comes after


def test_epochs_bind_when_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, {range(0, 60): 3.0}, max_minutes=200, epochs=30)[1] == 300
