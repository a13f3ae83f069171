"""The order of an epoch's cases."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cmt_med.data.patches.sampler import KeyedBatches, balanced, shuffled


@given(st.integers(1, 50), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_shuffled_shows_each_once(length: int, seed: int, epoch: int) -> None:
    order = shuffled(length, seed)(epoch)
    assert sorted(order) == list(range(length))
    np.testing.assert_array_equal(order, shuffled(length, seed)(epoch))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_balanced_shows_classes_alike(classes: list[int], seed: int, epoch: int) -> None:
    order = balanced(classes, seed)(epoch)
    assert len(order) == len(classes)
    np.testing.assert_array_equal(order, balanced(classes, seed)(epoch))
    shown = Counter(classes[i] for i in order)
    share = -(-len(classes) // len(set(classes)))
    # each has the same share, but for what the length of an epoch cuts off
    assert all(count <= share for count in shown.values())
    assert len(classes) - sum(shown.values()) == 0
    for number in set(classes):  # all of a class are shown before one of them comes again
        times = Counter(i for i in order if classes[i] == number)
        members = classes.count(number)
        if share <= members:
            assert all(count == 1 for count in times.values())


def test_batches_go_on_where_they_were_cut() -> None:
    order = shuffled(7, 3)
    whole, later = (iter(KeyedBatches(order, length=7, batch_size=3, start=s)) for s in (0, 4))
    every = [next(whole) for _ in range(8)]
    assert [next(later) for _ in range(4)] == every[4:]
    parts = [iter(KeyedBatches(order, length=7, batch_size=3, start=0, rank=r, world=3)) for r in range(3)]
    assert [[key for part in parts for key in next(part)] for _ in range(8)] == every
