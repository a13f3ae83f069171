"""Are two reports on the same cases different? Paired differences, Wilcoxon's test, Holm's correction, ranks.

The case is the unit: everything here is resampled and tested over cases. Runs of several seeds are averaged per case
before they come here, so that a case is never counted twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cmt_med.evaluation.summary import BOOTSTRAP_SAMPLES, bootstrap_interval

SIGNIFICANT = 0.05
TIE = 1e-12  # differences of means of seeds, equal on paper, differ by rounding
EXACT_UP_TO = 50  # cases without ties or zeros; with them, scipy enumerates up to 13 cases
METHOD_TEXT = (
    "Wilcoxon signed-rank test, two-sided, zero_method='wilcox' (cases without a difference are left out), no continuity "
    "correction, method='auto': exact up to 50 cases without ties or zeros, by enumeration up to 13 cases with them, "
    "else the normal approximation; p-values corrected after Holm over all pairs and targets; intervals are 95% "
    f"bootstrap percentiles over cases ({BOOTSTRAP_SAMPLES} samples)"
)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """The first report against the second, over one target's cases; differences are first minus second.

    Attributes:
        n, n_undefined: cases compared, and those left out because a score is not defined.
        mean, low, high, median: of the differences, with the 95% interval of the mean.
        wins, ties, losses: cases in which the first is better, equal, worse.
        p, p_holm: as tested, and corrected over the family; p is 1 where no case differs.
        method: ``exact``, ``exact (enumerated)``, ``normal approximation`` or ``no case differs``.
        winner: which is better at 5% after the correction: ``first``, ``second`` or ``""`` for neither.
    """

    target: str
    first: str
    second: str
    n: int
    n_undefined: int
    mean: float
    low: float
    high: float
    median: float
    wins: int
    ties: int
    losses: int
    p: float
    p_holm: float
    method: str
    winner: str


def wilcoxon(differences: Values) -> tuple[float, str]:
    """The p-value of Wilcoxon's signed-rank test of paired differences, and how it was computed.

    Where no case differs, the test has nothing to rank; p is then 1 by convention.
    """
    if not len(differences) or not differences.any():
        return 1.0, "no case differs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the z-value that scipy computes beside an exact p-value
        p = float(stats.wilcoxon(differences).pvalue)
    sizes = np.abs(differences)
    plain = bool(sizes.all()) and len(np.unique(sizes)) == len(sizes)
    if plain and len(differences) <= EXACT_UP_TO:
        return p, "exact"
    return p, "exact (enumerated)" if not plain and len(differences) <= 13 else "normal approximation"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m is multiplied by m - k + 1, and none falls below the last."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def compare_pairs(scores: Mapping[str, Mapping[str, Values]], *, higher_is_better: bool) -> list[PairedTest]:
    """Test every pair of reports on every target; the family of Holm's correction is all of these tests.

    Args:
        scores: target -> report -> one score per case (N), NaN where it is not defined; the cases of a target are in
            the same order in all reports.
        higher_is_better: which side of a difference wins.
    """
    tests = [
        _compare(target, first, second, reports[first], reports[second], higher_is_better)
        for target, reports in scores.items()
        for first, second in combinations(reports, 2)
    ]
    corrected = holm([test.p for test in tests])
    return [
        replace(test, p_holm=p, winner=test.winner if p < SIGNIFICANT else "")
        for test, p in zip(tests, corrected, strict=True)
    ]


def _compare(target: str, first: str, second: str, a: Values, b: Values, higher_is_better: bool) -> PairedTest:
    """One test, before the correction."""
    defined = ~(np.isnan(a) | np.isnan(b))
    differences = a[defined] - b[defined]
    differences[np.abs(differences) < TIE] = 0.0
    better = differences if higher_is_better else -differences
    p, method = wilcoxon(differences)
    low, high = bootstrap_interval(differences.tolist())
    return PairedTest(
        target=target, first=first, second=second, n=len(differences), n_undefined=int((~defined).sum()),
        mean=float(differences.mean()) if len(differences) else float("nan"), low=low, high=high,
        median=float(np.median(differences)) if len(differences) else float("nan"),
        wins=int((better > 0).sum()), ties=int((better == 0).sum()), losses=int((better < 0).sum()),
        p=p, p_holm=p, method=method, winner=_better_side(better),
    )  # fmt: skip


def _better_side(better: Values) -> str:
    """The side that mean and ranks agree on; the test looks at ranks alone, and outliers can turn the mean around."""
    kept = better[better != 0]
    sides = {np.sign(kept.sum()), np.sign((np.sign(kept) * stats.rankdata(np.abs(kept))).sum())}
    return "first" if sides == {1} else "second" if sides == {-1} else ""


@dataclass(frozen=True)
class Standing:
    """The standing of a report among all: mean score, ranks (1 is best, equals share), and how stable that is.

    Attributes:
        n, n_undefined: cases in which every report has a score, and those left out.
        mean, low, high: over these, with the 95% interval.
        rank: of the mean.
        case_rank: mean over cases of the rank within the case.
        first: share of bootstrap samples of the cases in which its mean is the best; equals share a sample.
        bootstrap_rank: mean rank over these samples.
    """

    target: str
    report: str
    n: int
    n_undefined: int
    mean: float
    low: float
    high: float
    rank: float
    case_rank: float
    first: float
    bootstrap_rank: float


def standings(target: str, reports: Mapping[str, Values], *, higher_is_better: bool, seed: int = 0) -> list[Standing]:
    """The ranks of reports over the same cases, and their stability under resampling of the cases.

    Args:
        target: its name.
        reports: report -> one score per case (N), NaN where it is not defined.
        higher_is_better: which scores come first.
    """
    table = np.stack(list(reports.values()))  # (reports, N)
    cases = table.shape[1]
    table = table[:, ~np.isnan(table).any(axis=0)]
    n = table.shape[1]
    if n == 0:
        nothing = (float("nan"),) * 7
        return [Standing(target, name, 0, cases, *nothing) for name in reports]
    signed = -table if higher_is_better else table
    chosen = np.random.default_rng(seed).integers(0, n, (BOOTSTRAP_SAMPLES, n))
    samples = np.stack([row[chosen].mean(axis=1) for row in signed])  # (reports, samples)
    ranks = stats.rankdata(samples.round(12), axis=0)
    best = samples.round(12) == samples.round(12).min(axis=0)
    first = (best / best.sum(axis=0)).mean(axis=1)
    rank = stats.rankdata(signed.mean(axis=1).round(12))
    case_rank = stats.rankdata(signed.round(12), axis=0).mean(axis=1)
    intervals = [bootstrap_interval(row.tolist()) for row in table]
    values = zip(reports, table.mean(axis=1), intervals, rank, case_rank, first, ranks.mean(axis=1), strict=True)
    return [
        Standing(target, name, n, cases - n, float(mean), *interval, *(float(v) for v in row))
        for name, mean, interval, *row in values
    ]
