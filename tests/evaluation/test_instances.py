"""Scores of numbered objects: by hand, and against an independent recomputation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cmt_med.evaluation.instances import (
    THRESHOLDS,
    Overlaps,
    aggregated_jaccard,
    bowl_score,
    coco_ap,
    detections,
    object_scores,
    overlaps,
)

Map = NDArray[np.int64]

REFERENCE = np.array([1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0, 3, 3, 0, 0])
PREDICTED = np.array([9, 9, 9, 0, 0, 4, 4, 4, 4, 4, 4, 0, 5, 5, 5])
"""IoU 3/4 of 1 with 9, 5/6 of 2 with 4, 1/4 of 3 with 5."""


def test_scores_by_hand() -> None:
    found = overlaps(PREDICTED, REFERENCE)
    half = detections(found)
    assert (half.tp, half.fp, half.fn) == (2, 1, 1)
    assert half.f1 == pytest.approx(2 / 3)
    assert half.sq == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert half.pq == pytest.approx((3 / 4 + 5 / 6) / 3)
    assert half.pq == pytest.approx(half.sq * half.f1)
    # two matches at 0.50 to 0.70 (2 of 4), one at 0.75 and 0.80 (1 of 5), since 3/4 is not more than 0.75
    assert bowl_score(found) == pytest.approx((5 * 2 / 4 + 2 * 1 / 5) / 10)
    assert aggregated_jaccard(found) == pytest.approx((3 + 5 + 1) / (4 + 6 + 4))
    assert object_scores(found)["reference_objects"] == 3


def test_a_prediction_may_serve_two_references_in_the_jaccard_index() -> None:
    found = overlaps(np.array([1, 1, 1, 1, 2]), np.array([1, 1, 2, 2, 0]))
    assert aggregated_jaccard(found) == pytest.approx((2 + 2) / (4 + 4 + 1))


def test_precision_over_ranks_by_hand() -> None:
    """Three predictions ranked hit, miss, hit of two references: precision 1 up to recall 0.5, then 2/3."""
    found = overlaps(np.array([1, 1, 2, 2, 3, 3]), np.array([1, 1, 0, 0, 2, 2]))
    expected = (51 * 1.0 + 50 * 2 / 3) / 101
    assert coco_ap([found], [[0.9, 0.8, 0.7]]) == pytest.approx(expected)
    assert coco_ap([found], [[0.9, 0.1, 0.7]]) == pytest.approx(1.0)


def test_nothing_there_and_nothing_found() -> None:
    nothing, something = np.zeros(4, int), np.array([0, 1, 1, 0])
    none = object_scores(overlaps(nothing, nothing))
    assert (none["pq"], none["f1"], none["ap_bowl"], none["aji"]) == (1.0, 1.0, 1.0, 1.0)
    for pair in ((nothing, something), (something, nothing)):
        scores = object_scores(overlaps(*pair))
        assert (scores["pq"], scores["f1"], scores["ap_bowl"], scores["aji"]) == (0.0, 0.0, 0.0, 0.0)
        assert math.isnan(scores["sq"])
    assert math.isnan(coco_ap([overlaps(something, nothing)], [[0.5]]))
    assert coco_ap([overlaps(nothing, something)], [[]]) == 0.0


def table(predicted: Map, reference: Map) -> NDArray[np.float64]:
    """IoU of every object with every other one, by sets of places."""
    sets = [
        [{i for i, value in enumerate(array) if value == number} for number in sorted(set(array.tolist()) - {0})]
        for array in (reference, predicted)
    ]
    return np.array([[len(r & p) / len(r | p) for p in sets[1]] for r in sets[0]]).reshape(len(sets[0]), len(sets[1]))


def assigned(iou: NDArray[np.float64], threshold: float) -> tuple[int, float]:
    """Number and sum of the matches of an optimal assignment."""
    worth = np.where(iou > threshold, 1 + iou, 0)
    rows, columns = linear_sum_assignment(-worth)
    chosen = iou[rows, columns][worth[rows, columns] > 0]
    return len(chosen), float(chosen.sum())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 60))
def test_against_an_assignment(seed: int, objects: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    reference = np.sort(rng.integers(0, objects + 1, length)) * rng.integers(1, 9)
    predicted = np.roll(
        np.where(rng.random(length) < 0.8, reference, rng.integers(0, objects + 2, length)), rng.integers(2)
    )
    iou, found = table(predicted, reference), overlaps(predicted, reference)
    precision = []
    for threshold in THRESHOLDS:
        tp, total = assigned(iou, threshold)
        at = detections(found, threshold)
        assert (at.tp, at.tp + at.fn, at.tp + at.fp) == (tp, *iou.shape)
        assert at.iou == pytest.approx(total)
        precision.append(tp / (sum(iou.shape) - tp) if sum(iou.shape) else 1.0)
    assert bowl_score(found) == pytest.approx(np.mean(precision))
    assert aggregated_jaccard(found) == pytest.approx(jaccard(predicted, reference))
    chances = rng.permutation(iou.shape[1]).tolist()
    if iou.shape[0]:
        assert coco_ap([found], [chances]) == pytest.approx(np.mean([ranked(iou, chances, t) for t in THRESHOLDS]))


def jaccard(predicted: Map, reference: Map) -> float:
    """The aggregated Jaccard index, step by step."""
    shared = union = 0
    used = set()
    for number in sorted(set(reference.tolist()) - {0}):
        mine, best = reference == number, (0.0, 0, int((reference == number).sum()), 0)
        for other in sorted(set(predicted[mine].tolist()) - {0}):
            both, either = int((mine & (predicted == other)).sum()), int((mine | (predicted == other)).sum())
            if both / either > best[0]:
                best = (both / either, both, either, other)
        shared, union = shared + best[1], union + best[2]
        used.add(best[3])
    union += int(sum((predicted == other).sum() for other in set(predicted.tolist()) - {0} - used))
    return shared / union if union else 1.0


def ranked(iou: NDArray[np.float64], chances: list[float], threshold: float) -> float:
    """Mean over recalls 0, 0.01, ..., 1 of the best precision at that recall or more."""
    taken: set[int] = set()
    points = []
    order = sorted(range(len(chances)), key=lambda i: -chances[i])
    for n, j in enumerate(order, 1):
        hits = [i for i in range(len(iou)) if iou[i, j] > threshold and i not in taken]
        taken |= set(hits[:1])
        points.append((len(taken) / len(iou), len(taken) / n))
    return float(
        np.mean([max([p for r, p in points if r >= recall / 100 - 1e-12], default=0) for recall in range(101)])
    )


def test_sizes_and_pairs() -> None:
    found = overlaps(PREDICTED.reshape(3, 5), REFERENCE.reshape(3, 5))
    assert isinstance(found, Overlaps)
    assert (found.reference.tolist(), found.predicted.tolist()) == ([4, 5, 2], [6, 3, 3])
    assert found.pairs.tolist() == [[0, 2], [1, 0], [2, 1]]
    assert found.shared.tolist() == [3, 5, 1]
