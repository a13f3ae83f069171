"""Work ahead of its turn is done once, beside the main thread; what fails ahead fails in its turn."""

from __future__ import annotations

import threading

import pytest

from cmt_med.inference.prefetch import Prefetcher


def test_what_was_begun_is_taken() -> None:
    seen: list[tuple[str, bool]] = []
    go = threading.Event()

    def work(item: str) -> str:
        seen.append((item, threading.current_thread() is threading.main_thread()))
        assert go.wait(10) or item == "first"
        return item.upper()

    ahead = Prefetcher(work)
    first, second, third = "first", "second", "third"
    ahead.begin(second)
    while not seen:
        pass  # the thread runs although nobody has asked for its result
    go.set()
    assert ahead.take(second) == "SECOND"
    assert ahead.take(second) == "SECOND", "the second time it is work again"
    ahead.begin(first)
    assert ahead.take(third) == "THIRD", "another item than the one that was begun"
    assert [item for item, main in seen if main] == ["second", "third"]


def test_a_failure_ahead_is_the_failure_of_its_turn() -> None:
    where = []

    def work(item: str) -> str:
        where.append(threading.current_thread() is threading.main_thread())
        if item == "bad" or (item == "busy" and not where[-1]):
            raise MemoryError(item)
        return item

    ahead = Prefetcher(work)
    bad, busy = "bad", "busy"
    ahead.begin(bad)
    with pytest.raises(MemoryError, match="bad"):
        ahead.take(bad)
    ahead.begin(busy)
    assert ahead.take(busy) == "busy", "what failed for want of memory may go well later"
    assert where == [False, True, False, True]


@pytest.mark.fault(7)
def test_what_is_refused_ahead_is_done_in_its_turn() -> None:
    def early(item: str) -> str:
        raise MemoryError(item)

    ahead = Prefetcher(str.upper, early)
    item = "large"
    ahead.begin(item)
    assert ahead.take(item) == "LARGE"
