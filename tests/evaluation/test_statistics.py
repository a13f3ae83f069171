"""Paired statistics against scipy, enumeration, and sums done by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from cmt_med.evaluation.statistics import compare_pairs, holm, standings, wilcoxon
from cmt_med.evaluation.summary import bootstrap_interval

NAN = float("nan")


def enumerated(differences: np.ndarray) -> float:
    """The exact two-sided p-value: all ways to give signs to the ranks of what is not zero."""
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    observed = ranks[kept > 0].sum()
    sums = np.array([ranks[list(signs)].sum() for signs in product((False, True), repeat=len(kept))])
    return float(min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean())))


@pytest.mark.parametrize("n", [3, 6, 9, 12])
@pytest.mark.parametrize("kind", ["plain", "ties", "zeros"])
def test_small_samples_by_enumeration(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    differences = rng.normal(0.4, 1, n)
    if kind != "plain":
        differences = np.round(differences)
    if kind == "zeros":
        differences[0] = 0
    if kind == "ties":
        differences[differences == 0] = 1
        differences[:2] = 1, -1
    p, method = wilcoxon(differences)
    assert p == pytest.approx(enumerated(differences))
    assert method == ("exact" if kind == "plain" else "exact (enumerated)")


@pytest.mark.parametrize(("n", "method"), [(13, "exact"), (50, "exact"), (51, "normal approximation")])
def test_p_values_are_those_of_scipy(n: int, method: str) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.random(n), rng.random(n)
    assert wilcoxon(a - b) == (float(stats.wilcoxon(a, b).pvalue), method)


def test_zeros_and_ties_in_larger_samples() -> None:
    differences = np.array([0.0, 1.0, -1.0, 2.0] * 5)
    p, method = wilcoxon(differences)
    assert method == "normal approximation"
    assert p == pytest.approx(float(stats.wilcoxon(differences).pvalue))


def test_nothing_to_rank() -> None:
    assert wilcoxon(np.zeros(7)) == (1.0, "no case differs")
    assert wilcoxon(np.zeros(0)) == (1.0, "no case differs")


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.01, 0.01, 0.9, 0.02], [0.04, 0.04, 0.9, 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected)


def three_reports(n: int = 30) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.9, n)
    return {"good": base + rng.normal(0.05, 0.01, n), "plain": base, "same": base + rng.normal(0, 0.01, n)}


@pytest.mark.parametrize("higher", [True, False])
def test_the_right_winner(higher: bool) -> None:
    reports = three_reports()
    tests = {(t.first, t.second): t for t in compare_pairs({"t": reports}, higher_is_better=higher)}
    for (first, second), test in tests.items():
        a, b = reports[first], reports[second]
        assert test.p == float(stats.wilcoxon(a, b).pvalue)
        assert test.mean == pytest.approx((a - b).mean())
        assert test.median == pytest.approx(np.median(a - b))
        assert test.low < test.mean < test.high
        won = (a > b).sum() if higher else (a < b).sum()
        assert (test.wins, test.ties, test.losses) == (won, 0, 30 - won)
    assert tests["good", "plain"].winner == ("first" if higher else "second")
    assert tests["good", "same"].winner == ("first" if higher else "second")
    assert tests["plain", "same"].winner == ""
    order = sorted(tests.values(), key=lambda t: t.p)
    assert order[0].p_holm == pytest.approx(3 * order[0].p)


def test_the_family_is_all_pairs_and_targets() -> None:
    reports = three_reports()
    scores = {target: {name: values.copy() for name, values in reports.items()} for target in ("x", "y")}
    tests = compare_pairs(scores, higher_is_better=True)
    assert len(tests) == 6
    assert [t.p_holm for t in tests] == pytest.approx(holm([t.p for t in tests]))
    assert min(t.p_holm for t in tests) == pytest.approx(6 * min(t.p for t in tests))


def test_a_winner_holds_after_the_correction() -> None:
    better = np.linspace(0.01, 0.06, 6)
    scores = {target: {"a": better, "b": np.zeros(6)} for target in ("x", "y")}
    (alone,) = compare_pairs({"x": scores["x"]}, higher_is_better=True)
    assert (alone.p, alone.p_holm, alone.winner) == (0.03125, 0.03125, "first")
    for test in compare_pairs(scores, higher_is_better=True):
        assert (test.p, test.p_holm, test.winner) == (0.03125, 0.0625, "")


def test_a_report_against_itself_finds_nothing() -> None:
    values = np.random.default_rng(0).random(20)
    (test,) = compare_pairs({"t": {"a": values, "b": values.copy()}}, higher_is_better=True)
    assert (test.p, test.p_holm, test.winner, test.method) == (1.0, 1.0, "", "no case differs")
    assert (test.wins, test.ties, test.losses, test.mean, test.low, test.high) == (0, 20, 0, 0, 0, 0)
    rows = standings("t", {"a": values, "b": values.copy()}, higher_is_better=True)
    assert [(r.rank, r.case_rank, r.first, r.bootstrap_rank) for r in rows] == [(1.5, 1.5, 0.5, 1.5)] * 2


def test_scores_that_are_not_defined_are_left_out_and_counted() -> None:
    a, b = np.array([NAN, 0.5, 0.6, 0.7, NAN]), np.array([0.1, 0.4, NAN, 0.6, NAN])
    (test,) = compare_pairs({"t": {"a": a, "b": b}}, higher_is_better=True)
    assert (test.n, test.n_undefined, test.wins) == (2, 3, 2)
    assert test.mean == pytest.approx(0.1)
    nothing = np.full(5, NAN)
    (test,) = compare_pairs({"t": {"a": a, "b": nothing}}, higher_is_better=True)
    assert (test.n, test.p, test.winner) == (0, 1.0, "")
    rows = standings("t", {"a": a, "b": nothing}, higher_is_better=True)
    assert [(row.n, row.n_undefined) for row in rows] == [(0, 5), (0, 5)]
    assert math.isnan(rows[0].first)


def test_an_outlier_does_not_make_a_winner() -> None:
    """Thirty cases a little better, one much worse: ranks and mean disagree, and no winner is named."""
    differences = np.append(np.linspace(0.01, 0.02, 30), -9.0)
    (test,) = compare_pairs({"t": {"a": differences, "b": np.zeros(31)}}, higher_is_better=True)
    assert test.p_holm < 0.05
    assert test.mean < 0
    assert test.winner == ""


@pytest.mark.parametrize("higher", [True, False])
def test_standings(higher: bool) -> None:
    reports = three_reports()
    rows = {row.report: row for row in standings("t", reports, higher_is_better=higher)}
    assert rows["good"].rank == (1 if higher else 3)
    assert rows["good"].first == (1 if higher else 0)
    assert sum(row.first for row in rows.values()) == pytest.approx(1)
    assert sum(row.bootstrap_rank for row in rows.values()) == pytest.approx(6)
    ranks = np.array([stats.rankdata([-v[i] if higher else v[i] for v in reports.values()]) for i in range(30)])
    assert [row.case_rank for row in rows.values()] == pytest.approx(ranks.mean(axis=0).tolist())
    for name, row in rows.items():
        assert (row.n, row.n_undefined, row.mean) == (30, 0, pytest.approx(reports[name].mean()))
        assert (row.low, row.high) == bootstrap_interval(reports[name].tolist())
