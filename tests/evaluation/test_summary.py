"""Means that say what they stand on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmt_med.evaluation.lesions import LESION_RULES
from cmt_med.evaluation.metrics import METRICS, mask_metrics, metric_of
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule
from cmt_med.evaluation.summary import bootstrap_interval, describe, summarise

EMPTY = np.zeros((8, 8, 8), bool)
CUBE = EMPTY.copy()
CUBE[2:6, 2:6, 2:6] = True
PAIRS = {"found": (CUBE, CUBE), "missed": (EMPTY, CUBE), "empty": (EMPTY, EMPTY), "false": (CUBE, EMPTY)}


def rows(rule: EmptyRule) -> dict[str, dict[str, dict[str, float]]]:
    return {
        case: {"t": mask_metrics(*pair, spacing=(1, 1, 1), rule=rule, lesion_rule=LESION_RULES["gli"])}
        for case, pair in PAIRS.items()
    }


@pytest.mark.parametrize(
    ("rule", "dice", "n", "hd95", "n_hd95"),
    [
        ("challenge", 0.5, 4, 2 * 373.13 / 4, 4),
        ("diagonal", 0.5, 4, 2 * math.sqrt(3) * 8 / 4, 4),
        ("nan", 1 / 3, 3, math.sqrt(3) * 8 / 2, 2),
        ("skip", 0.5, 2, math.sqrt(3) * 8 / 2, 2),
    ],
)
def test_summary_by_rule(rule: EmptyRule, dice: float, n: int, hd95: float, n_hd95: int) -> None:
    row = summarise(rows(rule), ["t"])["t"]
    assert (row["mean"], row["n"], row["n_undefined"]) == (pytest.approx(dice), n, 4 - n)
    assert (row["n_empty"], row["n_missed"], row["n_false_positive"]) == (2, 1, 1)
    distance = row["metrics"]["hd95"]
    assert (distance["mean"], distance["n"]) == (pytest.approx(hd95), n_hd95)
    assert (distance["n_empty"], distance["n_missed"], distance["n_false_positive"]) == (2, 1, 1)
    assert set(METRICS) < set(row["metrics"])
    assert row["lesions"] == {
        "n_lesions": 2, "n_lesions_detected": 1, "n_lesions_missed": 1, "n_lesions_false_positive": 1,
    }  # fmt: skip


# What a miss can improve, as cmt_med.evaluation.metrics says: the background of silence is right, its volume error bounded.
NOT_HELD = {"specificity", "absolute_volume_error_ml", "absolute_relative_volume_error"}


@pytest.mark.parametrize("rule", list(EMPTY_RULES))
def test_a_miss_never_raises_a_mean(rule: EmptyRule) -> None:
    """Half of a lesion found, or nothing of it: whatever is better with nothing would reward silence."""
    half, long = CUBE.copy(), np.zeros((8, 8, 700), bool)
    half[4:] = False
    lesion, tail = long.copy(), long.copy()
    lesion[2:6, 2:6, 2:6] = tail[2:6, 2:6, 2:6] = tail[4, 4, 6:690] = True
    better = set()
    for partial, truth, slice_mm in (
        (half, CUBE, 1), (np.roll(CUBE, 2, 0), CUBE, 1), (~CUBE, CUBE, 1), (tail, lesion, 2), (np.roll(tail, 1, 0), lesion, 2),
    ):  # fmt: skip
        measured = {"spacing": (1, 1, slice_mm), "rule": rule, "lesion_rule": LESION_RULES["gli"]}
        shown = {"a": {"t": mask_metrics(partial, truth, **measured)}}  # type: ignore[arg-type]
        silent = {"a": {"t": mask_metrics(truth & False, truth, **measured)}}  # type: ignore[arg-type]
        found, missed = (summarise(cases, ["t"])["t"]["metrics"] for cases in (shown, silent))
        for name, row in missed.items():
            side = metric_of(name).better  # type: ignore[union-attr]
            sign = {"higher": 1, "lower": -1, "": 0}[side]
            assert row["n"] == 1
            if sign * row["mean"] > sign * found[name]["mean"]:
                better.add(name)
    assert better == NOT_HELD


def test_the_mean_over_targets_is_per_case() -> None:
    cases = {
        "a": {"x": mask_metrics(CUBE, CUBE, spacing=(1, 1, 1), rule="skip")},
        "b": {"x": mask_metrics(EMPTY, CUBE, spacing=(1, 1, 1), rule="skip")},
    }
    for case, other in (("a", EMPTY), ("b", CUBE)):  # undefined in a, found in b
        cases[case]["y"] = mask_metrics(other, other, spacing=(1, 1, 1), rule="skip")
    row = summarise(cases, ["x", "y"])["mean"]
    assert (row["mean"], row["n"]) == (0.75, 2)
    assert row["metrics"]["dice"]["mean"] == 0.75


def test_no_case_and_one_case() -> None:
    assert summarise({}, ["t"])["t"]["n"] == 0
    assert math.isnan(summarise({}, ["t"])["t"]["mean"])
    one = describe([0.5])
    assert (one["mean"], one["n"]) == (0.5, 1)
    assert math.isnan(one["low"])
    assert math.isnan(one["std"])
    assert summarise({}, ["t"], failed=3)["t"]["n_failed"] == 3


def test_cases_that_were_not_scored_stand_beside_every_mean() -> None:
    summary = summarise(rows("challenge"), ["t"], failed=2)
    assert {row["n_failed"] for target in summary.values() for row in target["metrics"].values()} == {2}
    assert [target["n_failed"] for target in summary.values()] == [2, 2]
    assert summary["t"]["n"] == 4


def test_describe_against_numpy() -> None:
    values = np.random.default_rng(0).random(31).tolist()
    row = describe([*values, float("nan")])
    expected = (np.mean(values), np.median(values), np.std(values, ddof=1))
    assert (row["mean"], row["median"], row["std"]) == pytest.approx(expected)
    assert (row["n"], row["n_undefined"]) == (31, 1)


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 200).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * np.std(values) / math.sqrt(200)
    assert low == pytest.approx(np.mean(values) - half, abs=0.003)
    assert high == pytest.approx(np.mean(values) + half, abs=0.003)
    assert math.isnan(bootstrap_interval([1.0])[0])


def test_cases_that_do_not_annotate_a_target_are_in_no_count_of_it() -> None:
    cases = {name: {"t": row["t"], "u": row["t"]} for name, row in rows("challenge").items()}
    cases["found"]["u"] = cases["empty"]["u"] = dict.fromkeys(cases["found"]["u"], float("nan"))
    found = summarise(cases, ["t", "u"])
    assert [found[name]["n"] for name in ("t", "u", "mean")] == [4, 2, 4]
    assert (found["u"]["mean"], found["u"]["n_undefined"], found["u"]["n_empty"], found["u"]["n_missed"]) == (
        0.0,
        0,
        1,
        1,
    )
    assert found["u"]["lesions"]["n_lesions"] == 1
    assert found["mean"]["mean"] == found["t"]["mean"] == 0.5
    for case in cases.values():
        case["u"] = dict.fromkeys(case["u"], float("nan"))
    nobody = summarise(cases, ["t", "u"])["u"]
    assert nobody["n"] == nobody["lesions"]["n_lesions"] == 0
    assert math.isnan(nobody["mean"])
