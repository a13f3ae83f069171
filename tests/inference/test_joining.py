"""Objects of windows, joined again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.inference.joining import joined
from cmt_med.inference.windows import window_starts
from cmt_med.tasks.instances.pieces import Pieces


def some_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Connected objects of any shape, which touch each other."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    inside, _ = ndimage.label(noise > np.quantile(noise, 0.4))
    halves = np.add.outer(*(np.arange(n) // 9 for n in shape[:2])) % 3
    cut = inside * 3 + halves.reshape(*halves.shape, *[1] * (len(shape) - 2))
    cut[inside == 0] = 0
    numbers = np.zeros(shape, np.int32)
    for value in np.unique(cut[cut > 0]):
        parts, count = ndimage.label(cut == value)
        numbers[parts > 0] = parts[parts > 0] + numbers.max()
        assert count
    return numbers


def seen(numbers: NDArray[np.int32], start: tuple[int, ...], window: tuple[int, ...]) -> Pieces:
    """What a network that makes no error says of a window: each connected number, in an order of its own."""
    here = numbers[tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))]
    found, order = np.unique(here[here > 0], return_inverse=True)
    local = np.zeros(window, np.int32)
    local[here > 0] = len(found) - order
    return Pieces(local, (found[::-1] % 7) / 10 + 0.1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dims=st.integers(2, 3), overlap=st.sampled_from([0.25, 0.5, 0.7]))
def test_a_known_map_comes_back(seed: int, dims: int, overlap: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(20, 40, dims).tolist()) if dims == 2 else tuple(rng.integers(12, 24, dims).tolist())
    window = tuple(rng.integers(8, 13, dims).tolist())
    numbers = some_numbers(rng, shape)
    starts = itertools.product(*(window_starts(n, w, overlap) for n, w in zip(shape, window, strict=True)))
    found, chances = joined(((start, seen(numbers, start, window)) for start in starts), shape)
    assert ((found > 0) == (numbers > 0)).all()
    pairs = np.unique(np.stack([found[found > 0], numbers[found > 0]]), axis=1)
    assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == len(chances)
    assert pairs[0].tolist() == list(range(1, len(chances) + 1))
    assert chances[pairs[0] - 1] == pytest.approx(pairs[1] % 7 / 10 + 0.1)


def test_windows_that_disagree_are_two_objects() -> None:
    """In the overlap of six columns, the pieces share two of ten: IoU 0.2. Each window is believed where it is nearer."""
    first, second = np.zeros((4, 10), np.int32), np.zeros((4, 10), np.int32)
    first[:, 2:8], second[:, 2:] = 1, 1  # columns 2 to 7, and 6 to 13
    found, chances = joined(
        [((0, 0), Pieces(first, np.array([0.5]))), ((0, 4), Pieces(second, np.array([0.9])))], (4, 14)
    )
    assert found[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert chances.tolist() == [0.5, 0.9]


def test_a_padded_window_and_nothing() -> None:
    numbers = np.zeros((8, 8), np.int32)
    numbers[2:5, 3:6] = 1
    found, chances = joined([((-2, -3), Pieces(numbers, np.array([0.7])))], (3, 3))
    assert (found == 1).all()
    assert chances.tolist() == [0.7]
    found, chances = joined([((0, 0), Pieces(np.zeros((3, 3), np.int32), np.zeros(0)))], (3, 3))
    assert not found.any()
    assert len(chances) == 0
