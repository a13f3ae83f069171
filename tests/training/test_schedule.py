"""The schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_med.training.schedule import StepPlan, affordable_steps, learning_rate


def test_learning_rate_by_hand() -> None:
    assert learning_rate(0.05, peak=1.0, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate(0.1, peak=1.0, warmup=0.1) == pytest.approx(1.0)
    assert learning_rate(0.55, peak=1.0, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate(1.0, peak=1.0, warmup=0.1) == pytest.approx(0.0)


def test_affordable_steps_by_hand() -> None:
    # 100 s, 1 s a step and 10 s a validation after every 10 steps: 2 s a step
    assert affordable_steps(seconds_left=100, step_seconds=1, validation_seconds=10, validate_every=10) == 50
    assert affordable_steps(seconds_left=-5, step_seconds=1, validation_seconds=0, validate_every=1) == 1


@given(total=st.integers(2, 500), bends=st.dictionaries(st.integers(0, 499), st.integers(1, 900), max_size=4))
def test_progress_rises_and_ends_at_one(total: int, bends: dict[int, int]) -> None:
    plan = StepPlan(total)
    seen = [0.0]
    step = 0
    while step < plan.total_steps:
        if step in bends:
            before = plan.progress(step)
            plan.bend(step, bends[step])
            assert plan.total_steps == max(step, bends[step])
            if plan.total_steps == step:
                break
            assert plan.progress(step) == pytest.approx(before)
        seen.append(plan.progress(step))
        step += 1
    assert seen == sorted(seen)
    assert plan.progress(plan.total_steps) == pytest.approx(1.0)
