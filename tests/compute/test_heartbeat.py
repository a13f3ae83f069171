"""What is late, by a clock that the test turns."""

from __future__ import annotations

import pytest

from cmt_med.compute import heartbeat as heartbeat
from cmt_med.compute.heartbeat import LATELY, LEAST_SECONDS, TIMES_LONGEST, Heartbeat


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def _work(does: Heartbeat, clock: Clock, **seconds: float) -> None:
    for what, takes in seconds.items():
        does.at(what)
        clock.now += takes


def test_what_is_done_for_the_first_time_may_take_any_time(clock: Clock) -> None:
    does = Heartbeat()
    _work(does, clock, data=500.0, step=900.0)
    assert not does.late()
    for _ in range(5):  # windows of the first validation, and what is made of a whole case
        _work(does, clock, validation=1.0)
    clock.now += 800.0
    assert not does.late()


def test_late_is_what_takes_much_longer_than_lately(clock: Clock) -> None:
    does = Heartbeat()
    _work(does, clock, data=0.1, step=90.0)
    for _ in range(LATELY - 1):
        _work(does, clock, data=0.1, step=12.0)
    _work(does, clock, data=LEAST_SECONDS - 1)
    assert not does.late()
    clock.now += 2
    assert does.late() == f"data for {LEAST_SECONDS + 1:.0f} s"
    _work(does, clock, step=TIMES_LONGEST * 90.0 - 1)  # the slow first one still counts
    assert not does.late()
    for _ in range(LATELY + 1):
        _work(does, clock, data=0.1, step=12.0)
    clock.now += TIMES_LONGEST * 12.0
    assert "step" in does.late()
    does.at("")
    clock.now += 1e6
    assert not does.late()


def test_a_kind_of_work_is_as_long_as_its_longest_piece(clock: Clock) -> None:
    does = Heartbeat()
    for _ in range(100):
        _work(does, clock, window=0.1)
    _work(does, clock, window=30.0, step=1.0)
    for _ in range(100):
        _work(does, clock, window=0.1)
    clock.now += TIMES_LONGEST * 30.0 - 1
    assert not does.late()
    clock.now += 2
    assert does.late()
