"""Depths of objects: by hand, and what they promise."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.data.preprocessing.depth import depth_map, renumbered


def test_depths_by_hand() -> None:
    """A bar of five, whose middle lies 2 from its border voxels: (0 + ½) / (2 + ½), (1 + ½) / (2 + ½), 1."""
    numbers = np.array([0, 1, 1, 1, 1, 1, 2, 2, 2, 0])
    assert depth_map(numbers, (1.0,)).tolist() == [0, 51, 153, 255, 153, 51, 85, 255, 85, 0]


def test_the_border_of_the_volume_ends_no_object() -> None:
    assert depth_map(np.array([1, 1, 1, 0]), (1.0,)).tolist() == [255, 153, 51, 0]
    assert depth_map(np.ones((3, 3), int), (1.0, 1.0)).tolist() == [[255] * 3] * 3
    assert not depth_map(np.zeros((3, 3), int), (1.0, 1.0)).any()


def test_distances_are_in_mm() -> None:
    numbers = np.zeros((7, 7), int)
    numbers[1:6, 1:6] = 1
    flat = depth_map(numbers, (1.0, 10.0))
    assert flat[3, 3] == 255
    assert flat[3, 2] == 255  # 2 mm to the border along the first axis, 10 along the second
    assert depth_map(numbers, (1.0, 1.0))[3, 2] == 153


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_every_object_is_there_and_has_a_middle(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = renumbered(rng.integers(0, count + 1, (9, 8, 3)) * 700)
    depth = depth_map(numbers, (1.0, 1.0, 2.0))
    assert ((depth > 0) == (numbers > 0)).all()
    assert all(depth[numbers == n].max() == 255 for n in range(1, int(numbers.max()) + 1))


def test_numbers_are_made_consecutive() -> None:
    assert renumbered(np.array([0, 7, 300, 7, 65_535])).tolist() == [0, 1, 2, 1, 3]
    assert renumbered(np.array([9, 4])).tolist() == [2, 1]
    assert renumbered(np.zeros(2, int)).tolist() == [0, 0]
