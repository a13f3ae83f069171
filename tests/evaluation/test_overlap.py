"""Dice by hand, and against an independent recomputation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.evaluation.overlap import bootstrap_interval, case_overlaps, dice_of, summarise


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    result = np.zeros((3, 3, 3), bool)
    for voxel in voxels:
        result[voxel] = True
    return result


A, B, C = (0, 0, 0), (0, 0, 1), (2, 2, 2)


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        pytest.param(mask(A, B), mask(A, B), 1.0, id="identical"),
        pytest.param(mask(A), mask(A, B), 2 / 3, id="half-found"),
        pytest.param(mask(C), mask(A, B), 0.0, id="apart"),
        pytest.param(mask(), mask(A), 0.0, id="missed"),
        pytest.param(mask(), mask(), 1.0, id="both-empty"),
        pytest.param(mask(A), mask(), 0.0, id="false-positive"),
    ],
)
def test_by_hand(predicted: np.ndarray, reference: np.ndarray, expected: float) -> None:
    result = dice_of(predicted, reference, voxel_ml=0.5)
    assert result.dice == pytest.approx(expected)
    assert result.reference_ml == reference.sum() * 0.5


def test_the_nan_rule_leaves_out_empty_references_only() -> None:
    assert math.isnan(dice_of(mask(), mask(), voxel_ml=1, rule="nan").dice)
    assert math.isnan(dice_of(mask(A), mask(), voxel_ml=1, rule="nan").dice)
    assert dice_of(mask(), mask(A), voxel_ml=1, rule="nan").dice == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), values=st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_independent_recomputation(seed: int, values: list[int]) -> None:
    rng = np.random.default_rng(seed)
    p, r = rng.integers(0, 5, (2, 4, 5, 6)).astype(np.uint8)
    found = case_overlaps(p, r, {"t": values}, voxel_ml=1.0)["t"].dice
    ps = {i for i, v in enumerate(p.ravel().tolist()) if v in values}
    rs = {i for i, v in enumerate(r.ravel().tolist()) if v in values}
    assert found == pytest.approx(2 * len(ps & rs) / (len(ps) + len(rs)) if rs else float(not ps))


def test_summary_counts_what_it_stands_on() -> None:
    cases = {
        "found": {"t": dice_of(mask(A), mask(A), voxel_ml=1)},
        "missed": {"t": dice_of(mask(), mask(A), voxel_ml=1)},
        "empty": {"t": dice_of(mask(), mask(), voxel_ml=1)},
        "false": {"t": dice_of(mask(A), mask(), voxel_ml=1)},
    }
    row = summarise(cases, ["t"])["t"]
    assert (row["mean"], row["n"], row["n_empty"], row["n_missed"], row["n_false_positive"]) == (0.5, 4, 2, 1, 1)


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 200).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * np.std(values) / math.sqrt(200)
    assert low == pytest.approx(np.mean(values) - half, abs=0.003)
    assert high == pytest.approx(np.mean(values) + half, abs=0.003)
    assert math.isnan(bootstrap_interval([1.0])[0])


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
