"""One box for each object, from windows and networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.base.boxes import Boxes, iou
from cmt_med.inference.windows import window_starts
from cmt_med.tasks.detection.fusion import View, fused, without_repeats


def scattered(rng: np.random.Generator, count: int) -> Boxes:
    """Boxes of up to 16 voxels in 96 × 64 × 1, of which none of one class overlaps another."""
    cells = list(itertools.product(range(6), range(4)))
    chosen = rng.permutation(len(cells))[:count]
    low = np.array([[16.0 * cells[i][0], 16.0 * cells[i][1], 0.0] for i in chosen]).reshape(count, 3)
    low[:, :2] += rng.uniform(0, 4, (count, 2))
    size = np.column_stack([rng.uniform(4, 12, (count, 2)), np.ones(count)]) if count else np.zeros((0, 3))
    return Boxes.of(low, low + size, rng.integers(1, 4, count), rng.uniform(0.5, 1, count))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 20), seed=st.integers(0, 10_000))
def test_windows_give_the_objects_once(count: int, seed: int) -> None:
    """Windows that see whole objects, and pieces at their faces: every object once, where it is, and pieces far below it."""
    rng = np.random.default_rng(seed)
    objects = scattered(rng, count)
    views = []
    for x, y in itertools.product(window_starts(96, 48, 0.5), window_starts(64, 32, 0.5)):
        start, size = np.array([x, y, 0.0]), np.array([48.0, 32.0, 1.0])
        seen = objects.moved(-start).within([48, 32, 1]).moved(start)
        views.append(View(seen, start, size))
    found = fused(views, 0.5, dims=3)
    best = iou(objects, found) * (objects.classes[:, None] == found.classes[None])
    assert (best.max(axis=1, initial=0.0) > 0.99).all()
    which = best.argmax(axis=1) if count else np.zeros(0, int)
    assert len(set(which.tolist())) == count
    np.testing.assert_allclose(found.scores[which], objects.scores, rtol=0.05)
    pieces = np.setdiff1d(np.arange(len(found)), which)
    assert (found.scores[pieces] < 0.5).all()


def test_networks_are_averaged() -> None:
    """By their scores; what one of two has missed counts half."""
    whole = (np.zeros(3), np.full(3, 40.0))
    one = View(Boxes.of([[10, 10, 10]], [[20, 20, 20]], [1], [0.9]), *whole)
    other = View(Boxes.of([[12, 10, 10], [0, 0, 0]], [[20, 20, 20], [5, 5, 5]], [1, 2], [0.3, 0.8]), *whole)
    found = fused([one, other], 0.5, dims=3)
    assert found.classes.tolist() == [1, 2]
    assert found.low[0, 0] == pytest.approx(10.5)
    np.testing.assert_allclose(found.scores, [0.6, 0.4])


def test_one_view_is_left_alone() -> None:
    boxes = scattered(np.random.default_rng(0), 5)
    assert fused([View(boxes, np.zeros(3), np.full(3, 96.0))], 0.5, dims=3) is boxes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_two_repeats_are_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (15, 2))
    boxes = Boxes.of(low, low + rng.uniform(2, 15, (15, 2)), rng.integers(1, 3, 15), rng.random(15), dims=2)
    kept = without_repeats(boxes, 0.4)
    assert (np.diff(kept.scores) <= 0).all()
    same = (kept.classes[:, None] == kept.classes[None]) & ~np.eye(len(kept), dtype=bool)
    assert (iou(kept, kept)[same] < 0.4).all()
    better = (
        (iou(boxes, kept) >= 0.4)
        & (boxes.classes[:, None] == kept.classes[None])
        & (boxes.scores[:, None] <= kept.scores[None])
    )
    assert better.any(axis=1).all()  # whatever is gone, a better one has its place
