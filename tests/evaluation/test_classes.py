"""Scores of classes: by hand, and equal to scikit-learn's on random tables."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from cmt_med.evaluation import classes as scores
from cmt_med.evaluation.classes import Answers, answers_of


def table(seed: int) -> Answers:
    """A random table of 2 to 5 classes, some rare, with ties among the probabilities in every third."""
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 6)), int(rng.integers(12, 90))
    truth = np.concatenate([np.arange(k), rng.choice(k, n - k, p=rng.dirichlet(np.ones(k)))])
    probabilities = rng.dirichlet(np.full(k, rng.uniform(0.2, 2)), n) + 0.6 * np.eye(k)[truth] * rng.random((n, 1))
    if seed % 3 == 0:
        probabilities = np.round(probabilities, 1) + 0.1
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Answers(probabilities, truth, rng.integers(0, max(2, n // 3), n))


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_scikit_learn(seed: int) -> None:
    answers = table(seed)
    p, truth, k = answers.probabilities, answers.truth, answers.probabilities.shape[1]
    names, one_hot = list(range(k)), np.eye(k)[answers.truth]
    close = pytest.approx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        macro = (
            sk.roc_auc_score(truth, p[:, 1]) if k == 2 else sk.roc_auc_score(truth, p, multi_class="ovr", labels=names)
        )
        assert scores.macro_auc(answers) == close(macro, abs=1e-9)
        assert scores.accuracy(answers) == close(sk.accuracy_score(truth, answers.decided), abs=1e-9)
        assert scores.balanced_accuracy(answers) == close(sk.balanced_accuracy_score(truth, answers.decided), abs=1e-9)
        assert scores.macro_f1(answers) == close(
            sk.f1_score(truth, answers.decided, labels=names, average="macro", zero_division=0), abs=1e-9
        )
        assert scores.log_loss(answers).mean() == close(sk.log_loss(truth, p, labels=names), abs=1e-9)
    np.testing.assert_array_equal(scores.confusion(answers), sk.confusion_matrix(truth, answers.decided, labels=names))
    one_against_rest = [sk.brier_score_loss(one_hot[:, i], p[:, i]) for i in names]
    assert scores.brier(answers).mean() == close(sum(one_against_rest), abs=1e-9)
    for i in names:
        positive = truth == i
        assert scores.class_auc(answers, i) == close(sk.roc_auc_score(positive, p[:, i]), abs=1e-9)
        false, true, _ = scores.roc_curve(positive, p[:, i])
        theirs = sk.roc_curve(positive, p[:, i], drop_intermediate=False)
        np.testing.assert_allclose(false, theirs[0], atol=1e-9)
        np.testing.assert_allclose(true, theirs[1], atol=1e-9)
        for specificity in scores.SPECIFICITIES:
            found, threshold = scores.sensitivity_at(positive, p[:, i], specificity)
            chosen = p[:, i] >= threshold
            assert (~chosen[~positive]).mean() >= specificity - 1e-9
            assert found == close(chosen[positive].mean(), abs=1e-9)
            assert found == close(theirs[1][1 - theirs[0] >= specificity - 1e-9].max(), abs=1e-9)


def test_by_hand() -> None:
    answers = answers_of([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.8, 0.2]], [0, 0, 1, 1], ["a", "b", "c", "d"])
    # class 1 against 0: scores 0.1, 0.4 of the others; 0.6, 0.2 of its own: 3 of 4 pairs are in order
    assert scores.class_auc(answers, 1) == 0.75
    assert scores.accuracy(answers) == 0.75
    assert scores.brier(answers).tolist() == pytest.approx([0.02, 0.32, 0.32, 1.28])
    assert scores.log_loss(answers)[0] == pytest.approx(-np.log(0.9))
    assert scores.confusion(answers).tolist() == [[2, 0], [1, 1]]
    found = scores.reliability(answers)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 1, 1]
    # |0.6 - 1| of two cases, |0.8 - 0| and |0.9 - 1| of one each
    assert found.error == pytest.approx((2 * 0.4 + 0.8 + 0.1) / 4)


def test_without_a_class_there_is_no_area() -> None:
    answers = answers_of([[0.9, 0.1], [0.6, 0.4]], [0, 0], ["a", "b"])
    assert np.isnan(scores.macro_auc(answers))
    assert np.isnan(scores.sensitivity_at(answers.truth == 1, answers.probabilities[:, 1], 0.9)[0])
    assert scores.balanced_accuracy(answers) == 1.0  # of the classes that are there
    assert all(map(np.isnan, scores.bootstrap(answers, scores.macro_auc)))


def test_intervals_are_over_patients() -> None:
    """Ten copies of each patient's image leave the interval as it is; each as a patient of its own narrow it."""
    one = table(7)
    n = len(one.truth)
    patients = Answers(one.probabilities, one.truth, np.arange(n))
    rows = np.repeat(np.arange(n), 10)
    copied, apart = patients.taken(rows), Answers(one.probabilities[rows], one.truth[rows], np.arange(10 * n))
    low, high = scores.bootstrap(patients, scores.accuracy)
    assert scores.bootstrap(copied, scores.accuracy) == pytest.approx((low, high), abs=1e-9)
    narrow = scores.bootstrap(apart, scores.accuracy)
    assert narrow[1] - narrow[0] < 0.6 * (high - low)
    assert low <= scores.accuracy(patients) <= high
