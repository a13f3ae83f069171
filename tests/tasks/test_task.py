"""The metric that validation watches knows which way is better."""

from __future__ import annotations

from cmt_med.tasks.task import Metric


def test_the_direction_of_a_metric() -> None:
    up, down = Metric("dice", "Dice"), Metric("hd95", "HD95", higher_is_better=False)
    assert up.is_better(0.6, 0.5)
    assert not up.is_better(0.5, 0.5)
    assert down.is_better(3.0, 4.0)
    assert not down.is_better(4.0, 3.0)
    for metric in (up, down):
        assert metric.is_better(0.0, None)
        assert not metric.is_better(float("nan"), None)
        assert not metric.is_better(float("nan"), 0.5)
