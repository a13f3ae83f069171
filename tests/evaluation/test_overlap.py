"""Ratios of counts by hand, and against an independent recomputation; the floor of a threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.evaluation.overlap import EmptyRule, case_overlaps, count_overlap, mask_of, ratio_scores
from tests.evaluation.masks import random_pair

NAN = float("nan")


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    result = np.zeros((3, 3, 3), bool)
    for voxel in voxels:
        result[voxel] = True
    return result


A, B, C = (0, 0, 0), (0, 0, 1), (2, 2, 2)


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [  # Dice, IoU, sensitivity, precision, specificity
        pytest.param(mask(A, B), mask(A, B), (1, 1, 1, 1, 1), id="identical"),
        pytest.param(mask(A), mask(A, B), (2 / 3, 1 / 2, 1 / 2, 1, 1), id="half-found"),
        pytest.param(mask(A, B), mask(A), (2 / 3, 1 / 2, 1, 1 / 2, 25 / 26), id="one-too-many"),
        pytest.param(mask(C), mask(A, B), (0, 0, 0, 0, 24 / 25), id="apart"),
        pytest.param(mask(), mask(A), (0, 0, 0, 0, 1), id="missed"),
        pytest.param(mask(), mask(), (1, 1, 1, 1, 1), id="both-empty"),
        pytest.param(mask(A), mask(), (0, 0, 0, 0, 26 / 27), id="false-positive"),
        pytest.param(~mask(), ~mask(), (1, 1, 1, 1, NAN), id="no-background"),
    ],
)
def test_by_hand(predicted: np.ndarray, reference: np.ndarray, expected: tuple[float, ...]) -> None:
    scores = ratio_scores(count_overlap(predicted, reference), "challenge")
    assert list(scores) == ["dice", "iou", "sensitivity", "precision", "specificity"]
    assert tuple(scores.values()) == pytest.approx(expected, nan_ok=True, abs=0, rel=1e-15)


@pytest.mark.parametrize(
    ("rule", "predicted", "expected"),
    [
        pytest.param("nan", mask(), (NAN, NAN, NAN, NAN, 1), id="nan-both-empty"),
        pytest.param("nan", mask(A), (0, 0, NAN, 0, 26 / 27), id="nan-false-positive"),
        pytest.param("skip", mask(), (NAN,) * 5, id="skip-both-empty"),
        pytest.param("skip", mask(A), (NAN,) * 5, id="skip-false-positive"),
    ],
)
def test_rules_for_an_empty_reference(rule: EmptyRule, predicted: np.ndarray, expected: tuple[float, ...]) -> None:
    scores = ratio_scores(count_overlap(predicted, mask()), rule)
    assert tuple(scores.values()) == pytest.approx(expected, nan_ok=True)
    found = ratio_scores(count_overlap(predicted, mask(A)), rule)
    assert found == ratio_scores(count_overlap(predicted, mask(A)), "challenge")


def test_random_pairs_exactly(soak: bool) -> None:
    for seed in range(500 if soak else 100):
        p, r, _ = random_pair(np.random.default_rng(seed))
        ps, rs = ({i for i, inside in enumerate(m.ravel("C").tolist()) if inside} for m in (p, r))
        counts = count_overlap(p, r)
        assert (counts.predicted, counts.reference, counts.both) == (len(ps), len(rs), len(ps & rs)), seed
        if rs and ps:
            background = p.size - len(rs)
            expected = (
                2 * len(ps & rs) / (len(ps) + len(rs)),
                len(ps & rs) / len(ps | rs),
                len(ps & rs) / len(rs),
                len(ps & rs) / len(ps),
                (background - len(ps - rs)) / background if background else NAN,
            )
            found = tuple(ratio_scores(counts, "nan").values())
            assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, expected, strict=True)), seed


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), values=st.lists(st.integers(0, 4), max_size=3))
def test_label_maps_by_target(seed: int, values: list[int]) -> None:
    rng = np.random.default_rng(seed)
    p, r = rng.integers(0, 5, (2, 4, 5, 6)).astype(np.uint8)
    assert np.array_equal(mask_of(p, values), np.isin(p, values))
    ps = {i for i, v in enumerate(p.ravel().tolist()) if v in values}
    rs = {i for i, v in enumerate(r.ravel().tolist()) if v in values}
    expected = 2 * len(ps & rs) / (len(ps) + len(rs)) if ps | rs else 1.0
    assert case_overlaps(p, r, {"t": values})["t"].dice == expected


def test_threshold_baseline_finds_a_separable_channel() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random((10, 10, 10)) < 0.2).astype(np.uint8)
    image = np.stack([rng.random(label.shape), label + 0.1 * rng.random(label.shape)]).astype(np.float32)
    baseline = ThresholdBaseline(["noise", "signal"], {"t": [1], "rest": [0]})
    baseline.add(image, label, np.ones(label.shape, bool))
    best = baseline.best()
    assert best["t"]["dice"] == pytest.approx(1.0)
    assert best["t"]["channel"] == "signal"
    assert best["t"]["rule"].startswith(">")
    assert best["rest"]["dice"] == pytest.approx(1.0)
    assert best["rest"]["rule"].startswith("<")
    baseline.add(
        image, 1 - label, np.ones(label.shape, bool), [0]
    )  # shows nothing of t, whatever is drawn; the rest is turned
    assert baseline.best()["t"]["dice"] == best["t"]["dice"]
    assert baseline.best()["rest"]["dice"] < 0.9
