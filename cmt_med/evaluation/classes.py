"""Scores of probabilities of classes: discrimination, decisions and calibration, with intervals over patients.

Letters: N cases, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cmt_med.evaluation.summary import BOOTSTRAP_SAMPLES

SPECIFICITIES = (0.80, 0.90, 0.95)
BINS = 10
"""Of equal width, for calibration."""
SMALLEST = 1e-15
"""Probability below which the logarithm of the loss does not look."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """Probabilities of cases and their true classes.

    Attributes:
        probabilities: (N, K), rows sum to 1.
        truth: (N,), number of the class.
        groups: (N,), number of the patient, which is what intervals resample.
    """

    probabilities: Floats
    truth: Integers
    groups: Integers

    @property
    def decided(self) -> Integers:
        """The most probable class (N,), the first of equal ones."""
        return self.probabilities.argmax(axis=1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,)"""
        return self.decided == self.truth

    def taken(self, rows: Integers) -> Answers:
        """Some cases, in that order, with repetition."""
        return Answers(self.probabilities[rows], self.truth[rows], self.groups[rows])


# ---- discrimination


def auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """The area under the ROC curve: the chance that a positive case has the larger score, ties counting half.

    By ranks (Mann and Whitney 1947; Hanley and McNeil 1982). NaN without cases of both kinds.
    """
    n = int(positive.sum())
    m = len(positive) - n
    if not n or not m:
        return math.nan
    ranks = stats.rankdata(score)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def class_auc(answers: Answers, number: int) -> float:
    """The area under the ROC curve of one class against the rest."""
    return auc(answers.truth == number, answers.probabilities[:, number])


def macro_auc(answers: Answers) -> float:
    """The mean of the one-against-rest areas, which of two classes are the same. NaN if a class has no case."""
    if answers.probabilities.shape[1] == 2:
        return class_auc(answers, 1)
    return float(np.mean([class_auc(answers, k) for k in range(answers.probabilities.shape[1])]))


def roc_curve(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats, Floats]:
    """False positive rates, true positive rates and thresholds (score >= threshold is positive), from (0, 0) to (1, 1).

    Empty arrays without cases of both kinds.
    """
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    order = np.argsort(-score, kind="stable")
    hit, value = positive[order], score[order]
    last = np.append(np.flatnonzero(np.diff(value)), len(value) - 1)  # of equal scores
    true, false = np.cumsum(hit)[last] / n, np.cumsum(~hit)[last] / m
    return np.append(0.0, false), np.append(0.0, true), np.append(math.inf, value[last])


def sensitivity_at(positive: NDArray[np.bool_], score: Floats, specificity: float) -> tuple[float, float]:
    """The largest sensitivity at a specificity of at least so much, and its threshold; NaN without cases of both kinds.

    The point lies on the curve of these cases: nothing is interpolated.
    """
    false, true, thresholds = roc_curve(positive, score)
    allowed = np.flatnonzero(1 - false >= specificity - 1e-12)
    if not len(allowed):
        return math.nan, math.nan
    best = allowed[np.argmax(true[allowed])]
    return float(true[best]), float(thresholds[best])


# ---- decisions


def confusion(answers: Answers) -> Integers:
    """(K, K): rows are true classes, columns decisions."""
    k = answers.probabilities.shape[1]
    return np.bincount(answers.truth * k + answers.decided, minlength=k * k).reshape(k, k)


def accuracy(answers: Answers) -> float:
    """Share of right decisions."""
    return float(answers.correct.mean())


def balanced_accuracy(answers: Answers) -> float:
    """Mean sensitivity of the classes that have cases."""
    table = confusion(answers)
    there = table.sum(axis=1) > 0
    return float((table.diagonal()[there] / table.sum(axis=1)[there]).mean())


def f1(answers: Answers, number: int) -> float:
    """2 TP / (2 TP + FP + FN) of one class; 0 where it is neither there nor decided."""
    table = confusion(answers)
    both = table[number].sum() + table[:, number].sum()
    return float(2 * table[number, number] / both) if both else 0.0


def macro_f1(answers: Answers) -> float:
    """The macro F1: the mean of the classes' F1."""
    return float(np.mean([f1(answers, k) for k in range(answers.probabilities.shape[1])]))


# ---- probabilities


def brier(answers: Answers) -> Floats:
    """Squared distance of the probabilities from the truth (N,), summed over classes (Brier 1950): 0 to 2."""
    truth = np.eye(answers.probabilities.shape[1])[answers.truth]
    return np.asarray(((answers.probabilities - truth) ** 2).sum(axis=1))


def log_loss(answers: Answers) -> Floats:
    """Negative logarithm of the true class's probability (N,)."""
    chosen = answers.probabilities[np.arange(len(answers.truth)), answers.truth]
    return np.asarray(-np.log(np.clip(chosen, SMALLEST, 1.0)))


@dataclass(frozen=True)
class Reliability:
    """The share of right decisions by their probability, in bins of equal width.

    Attributes:
        counts: (BINS,) cases.
        confidence: (BINS,) mean probability of the decision; NaN in an empty bin.
        accuracy: (BINS,) share of right ones; likewise.
        error: mean absolute difference of the two, weighted by cases (expected calibration error; Guo et al. 2017).
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats
    error: float


def reliability(answers: Answers) -> Reliability:
    """Of the decisions' probabilities."""
    chance = answers.probabilities.max(axis=1)
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, chance, BINS) / counts
        right = np.bincount(place, answers.correct, BINS) / counts
    filled = counts > 0
    error = float((counts[filled] / len(chance) * np.abs(confidence - right)[filled]).sum())
    return Reliability(counts, confidence, right, error)


# ---- intervals


def bootstrap(
    answers: Answers, score: Callable[[Answers], float], *, seed: int = 0, samples: int = BOOTSTRAP_SAMPLES
) -> tuple[float, float]:
    """The 95% percentile interval of a score over patients, resampled with replacement.

    Samples in which it is not defined (a class without a case) are left out; NaN below two patients, or if no sample is left.
    """
    members = [np.flatnonzero(answers.groups == group) for group in np.unique(answers.groups)]
    if len(members) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    values = np.array([
        score(answers.taken(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])))
        for _ in range(samples)
    ])  # fmt: skip
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def answers_of(probabilities: Sequence[Sequence[float]], truth: Sequence[int], groups: Sequence[str]) -> Answers:
    """Of lists; patients by name."""
    return Answers(
        np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.int64),
        np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64),
    )  # fmt: skip
