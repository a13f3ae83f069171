"""The plan of a run that is bound in minutes, on a clock that the test moves."""

from __future__ import annotations

import pytest

from cmt_med.config import Train
from cmt_med.training import budget
from cmt_med.training.budget import Budget


def _run(
    monkeypatch: pytest.MonkeyPatch, seconds_of_step: dict[range, float], **bounds: float
) -> tuple[float, list[tuple[float, float]]]:
    """Minutes of a run whose steps take a second, but for those named; after each step seconds and schedule done."""
    clock = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: clock[0])
    train = Train.model_validate({"patch_size": [8, 8, 8], "validate_every": 1000, **bounds})
    run = Budget(
        train, steps_per_epoch=10, seconds_before=0.0, started=0.0, reserve=lambda _: 30.0, path=None, plan=None
    )
    step, seen = 0, []
    while not run.is_over(step):
        clock[0] += next((seconds for steps, seconds in seconds_of_step.items() if step in steps), 1.0)
        step += 1
        run.after_step(step, lambda: None)
        assert 0.0 <= run.progress(step) <= 1.0
        seen.append((clock[0], run.progress(step)))
    return clock[0] / 60.0, seen


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
    assert len(_run(monkeypatch, {range(0, 60): 3.0}, max_minutes=200, epochs=30)[1]) == 300


@pytest.mark.parametrize(
    "slow",
    [
        {},
        {range(150, 10_000): 1.6},
        {range(0, 20): 20.0, range(90, 118): 10.0, range(280, 305): 10.0},
        {range(s, s + 10): 10.0 for s in range(100, 1200, 100)},
    ],
    ids=["steady", "slow for good", "three slow spells", "a slow spell now and then"],
)
def test_the_schedule_keeps_to_the_clock(slow: dict[range, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow spell takes is its own time: the rate is not annealed for steps that then come after all."""
    _, seen = _run(monkeypatch, slow, max_minutes=20)
    whole = 20 * 60 - 30.0
    assert max(progress - seconds / whole for seconds, progress in seen) < 0.15
    assert min(progress - seconds / whole for seconds, progress in seen) > -0.3
