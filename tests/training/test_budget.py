"""The plan of a run that is bound in minutes, on a clock that the test moves."""

from __future__ import annotations

import logging

import pytest

from cmt_med.config.schema import Train
from cmt_med.training import budget
from cmt_med.training.budget import PROBE_SKIP, PROBE_STEPS, Budget, Pace


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


class Clocked:
    """A run on a clock that the test moves: steps, validations and checkpoints take what they are said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float = 1.0, started: float = 0.0) -> None:
        self.now, self.step_seconds, self.started = started, step, started
        self.validation_seconds = self.checkpoint_seconds = 0.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)

    def budget(self, *, per_epoch: int = 10, reserve: float = 0.0, **more: object) -> Budget:
        train = Train.model_validate({"patch_size": [8, 8, 8], "validate_every": 1, **more.pop("bounds")})  # type: ignore[dict-item]
        arguments = {"seconds_before": 0.0, "started": self.started, "path": None, "plan": None} | more
        return Budget(train, steps_per_epoch=per_epoch, reserve=lambda _: reserve, **arguments)  # type: ignore[arg-type]

    def validate(self, run: Budget) -> None:
        self.now += self.validation_seconds
        run.pace.validations.append(self.validation_seconds)

    def go(self, run: Budget, step: int, until: int | None = None) -> tuple[int, list[float]]:
        """Steps, each with the share of the schedule that its learning rate came from, and the pauses of every epoch."""
        rates = []
        while not run.is_over(step) and step != until:
            rates.append(run.progress(step))
            self.now += self.step_seconds
            step += 1
            run.after_step(step, lambda: self.validate(run))
            if step % run.steps_per_epoch == 0:
                self.validate(run)
                self.now += self.checkpoint_seconds
                run.pace.checkpoints.append(self.checkpoint_seconds)
                run.skip_pause()
        return step, rates


@pytest.mark.fault(4)
@pytest.mark.parametrize("cut", range(1, PROBE_SKIP + PROBE_STEPS + 3))
@pytest.mark.parametrize("bounds", [{"epochs": 4, "max_minutes": 60}, {"max_minutes": 2}], ids=["both", "minutes"])
def test_a_plan_is_a_function_of_what_was_saved(
    cut: int, bounds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at any step before the plan was made: the same schedule and the same length as without."""
    clock = Clocked(monkeypatch)
    whole = clock.go(clock.budget(bounds=bounds), 0)
    clock = Clocked(monkeypatch)
    first = clock.budget(bounds=bounds)
    step, before = clock.go(first, 0, until=cut)
    plan, pace, spent = first.plan, first.pace.as_dict(), first.seconds()
    clock.started = clock.now
    second = clock.budget(bounds=bounds, plan=plan, pace=Pace(pace), step=step, seconds_before=spent)
    end, after = clock.go(second, step)
    assert (end, before + after) == whole
    assert whole[0] == (40 if "epochs" in bounds else 120)


@pytest.mark.fault(4)
def test_a_bound_in_minutes_that_does_not_bind_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `train.epochs` alone gives, bit for bit: phantom data get their minutes by themselves."""
    runs = []
    for more in ({}, {"max_minutes": 60}):
        clock = Clocked(monkeypatch)
        runs.append(clock.go(clock.budget(bounds={"epochs": 9, **more}), 0))
    assert runs[0] == runs[1]


@pytest.mark.fault(13)
def test_pauses_are_no_slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation of 60 s and a checkpoint of 10 s after every tenth step of 1.4 s, and one validation of five minutes."""
    clock = Clocked(monkeypatch, step=1.4)
    clock.validation_seconds, clock.checkpoint_seconds = 60.0, 10.0
    run = clock.budget(bounds={"max_minutes": 60})
    step, _ = clock.go(run, 0, until=100)
    assert run.pace.mean_step == pytest.approx(1.4)
    assert run.plan is not None
    planned = run.plan.total_steps
    clock.validation_seconds = 300.0
    step, _ = clock.go(run, step, until=110)
    clock.validation_seconds = 60.0
    step, _ = clock.go(run, step, until=160)
    assert run.plan.total_steps > 0.9 * planned
    left, now = run.seconds_left(step), clock.now
    clock.go(run, step)
    assert left == pytest.approx(clock.now - now, rel=0.1)
    assert 0.97 * 60 < clock.now / 60 < 60.5 + 60.0 / 60


@pytest.mark.fault(28)
@pytest.mark.parametrize("start", [5.0, 20.0, 40.0])
def test_a_few_seconds_are_kept_to(
    start: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 24 s, some are used up before the first step, and 6 s kept for the report: no floor of 24 steps of 2 s."""
    clock = Clocked(monkeypatch, step=2.0)
    clock.validation_seconds = 3.0
    run = clock.budget(bounds={"max_minutes": 0.4}, reserve=6.0)
    clock.now += start
    run.skip_pause()
    with caplog.at_level(logging.WARNING):
        step, _ = clock.go(run, 0)
    assert clock.now <= max(24.0 - 6.0 + 2.0, start + 2.0)
    assert step >= 1
    assert ("is used up after" in caplog.text) == (start > 10)


@pytest.mark.fault(33)
def test_more_minutes_for_a_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its schedule goes on where twice the time would have had it; the rate neither jumps to its peak nor stays at 0."""
    clock = Clocked(monkeypatch)
    first = clock.budget(bounds={"max_minutes": 2})
    step, _ = clock.go(first, 0)
    clock.started = clock.now
    second = clock.budget(
        bounds={"max_minutes": 4},
        pace=Pace(first.pace.as_dict()),
        step=step,
        seconds_before=first.seconds(),
        finished=True,
    )
    assert second.progress(step) == pytest.approx(0.5, abs=0.05)
    end, rates = clock.go(second, step)
    assert end == pytest.approx(240, abs=5)
    assert rates == sorted(rates)
