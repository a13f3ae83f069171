"""The report on classes: scores with intervals over patients, curves, the confusion matrix, calibration, the worst errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cmt_med.base.text import counted
from cmt_med.evaluation import classes as scores
from cmt_med.evaluation.classes import SPECIFICITIES, Answers
from cmt_med.evaluation.metrics import CLASS_METRICS
from cmt_med.tasks.sections import Assessment, Chart, Matrix, Section, Table, interval_text, number_text

TARGET = "class"
"""The one target of the rows in ``metrics.json``."""
WORST = 12
"""Wrong decisions that are shown, the surest first."""
UNKNOWN_PATIENTS = (
    "The case list does not say which images are of one patient: each counts as a patient of its own. Where several are, "
    "training has seen patients that are scored here, and the scores are optimistic."
)


def assess(
    names: Sequence[str], found: Mapping[str, Sequence[float]], truth: Mapping[str, tuple[int, str]], *, failed: int
) -> Assessment:
    """Score probabilities.

    Args:
        names: of the classes.
        found: case -> probabilities (K,).
        truth: case -> number of its class, and its patient.
        failed: cases that could not be scored.
    """
    cases = list(found)
    answers = scores.answers_of([found[c] for c in cases], [truth[c][0] for c in cases], [truth[c][1] for c in cases])
    unknown = len(cases) == len({truth[case][1] for case in cases}) and all(truth[case][1] == case for case in cases)
    overall = _overall(answers)
    by_class = {name: _of_class(answers, k) for k, name in enumerate(names)}
    calibration = scores.reliability(answers)
    metrics: dict[str, Any] = {
        "schema_version": 2,
        "task": "classification",
        "summary": {"overall": overall, "classes": by_class, "n": len(cases), "n_failed": failed},
        "patients": len(set(answers.groups.tolist())),
        "patients_unknown": unknown,
        "classes": list(names),
        "confusion": scores.confusion(answers).tolist(),
        "calibration": {
            "error": calibration.error, "counts": calibration.counts.tolist(),
            "confidence": _listed(calibration.confidence), "accuracy": _listed(calibration.accuracy),
        },
        "roc": {name: _curve(answers, k) for k, name in enumerate(names)},
        "empty_rule": "none",
        "empty_rule_text": "every reference is a class",
        "metrics": {name: vars(metric) for name, metric in CLASS_METRICS.items()},
        "targets": {TARGET: list(range(len(names)))},
        "cases": _rows(cases, answers, names),
    }  # fmt: skip
    lines = [f"{'score':22s} {'value':>8s}  95% interval"]
    lines += [_line(title, overall[key]) for key, title in _TITLES.items()]
    lines += [_line(f"AUC of {name}", row["auc"]) for name, row in by_class.items()]
    lines.append(f"{counted(len(cases), 'case')} of {counted(metrics['patients'], 'patient')}, {failed} not scored")
    if unknown:
        lines.append(UNKNOWN_PATIENTS)
    return Assessment(metrics, tuple(lines), _sections(metrics, answers, cases, calibration))


_TITLES = {
    "auc": "macro AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1": "macro F1",
    "brier": "Brier score", "log_loss": "log loss",
}  # fmt: skip


def _overall(answers: Answers) -> dict[str, dict[str, float]]:
    of: dict[str, Callable[[Answers], float]] = {
        "auc": scores.macro_auc,
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "f1": scores.macro_f1,
        "brier": lambda some: float(scores.brier(some).mean()),
        "log_loss": lambda some: float(scores.log_loss(some).mean()),
    }
    return {name: _with_interval(answers, score) for name, score in of.items()}


def _of_class(answers: Answers, number: int) -> dict[str, Any]:
    """Of one class against the rest."""
    result: dict[str, Any] = {
        "n": int((answers.truth == number).sum()),
        "auc": _with_interval(answers, partial(scores.class_auc, number=number)),
        "f1": _with_interval(answers, partial(scores.f1, number=number)),
    }
    positive, chance = answers.truth == number, answers.probabilities[:, number]
    result["brier"] = float(((chance - positive) ** 2).mean())
    for specificity in SPECIFICITIES:
        value, threshold = scores.sensitivity_at(positive, chance, specificity)
        result[f"sensitivity_at_{specificity:g}"] = {"value": value, "threshold": threshold}
    return result


def _with_interval(answers: Answers, score: Callable[[Answers], float]) -> dict[str, float]:
    low, high = scores.bootstrap(answers, score)
    return {"value": score(answers), "low": low, "high": high}


def _curve(answers: Answers, number: int) -> dict[str, list[float]]:
    false, true, _ = scores.roc_curve(answers.truth == number, answers.probabilities[:, number])
    return {"false_positive_rate": false.tolist(), "true_positive_rate": true.tolist()}


def _rows(cases: Sequence[str], answers: Answers, names: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    columns = zip(
        cases, answers.truth, answers.decided, answers.correct, scores.brier(answers), scores.log_loss(answers),
        answers.probabilities, strict=True,
    )  # fmt: skip
    return {
        case: {
            TARGET: {
                "reference_class": int(truth), "predicted_class": int(decided), "correct": float(correct),
                "brier": float(brier), "log_loss": float(loss),
                **{f"p_{name}": float(p) for name, p in zip(names, row, strict=True)},
            }
        }
        for case, truth, decided, correct, brier, loss, row in columns
    }  # fmt: skip


def _sections(
    metrics: Mapping[str, Any], answers: Answers, cases: Sequence[str], calibration: scores.Reliability
) -> tuple[Section, ...]:
    names, summary = metrics["classes"], metrics["summary"]
    text = (
        f"{counted(len(cases), 'case')} of {counted(metrics['patients'], 'patient')}, {summary['n_failed']} not scored. "
        "Intervals are 95% bootstrap "
        "percentiles over patients. AUC, sensitivity and Brier score of a class are those against the rest; macro values are "
        "means over classes. A sensitivity is the largest at that specificity on these cases: its threshold was chosen on them."
    )
    if metrics["patients_unknown"]:
        text += " " + UNKNOWN_PATIENTS
    overall = Table(("score", "value", "95% interval"), [
        (title, number_text(summary["overall"][key]["value"]), interval_text(summary["overall"][key]))
        for key, title in _TITLES.items()
    ])  # fmt: skip
    head = (
        "class",
        "n",
        "AUC",
        "95% interval",
        "F1",
        "Brier",
        *(f"sensitivity at {s:.0%} specificity" for s in SPECIFICITIES),
    )
    each = Table(head, [
        (name, row["n"], number_text(row["auc"]["value"]), interval_text(row["auc"]), number_text(row["f1"]["value"]),
         number_text(row["brier"]),
         *(number_text(row[f"sensitivity_at_{s:g}"]["value"]) for s in SPECIFICITIES))
        for name, row in summary["classes"].items()
    ])  # fmt: skip
    roc = Chart("ROC curves, one class against the rest", "1 − specificity", "sensitivity", {
        name: (curve["false_positive_rate"], curve["true_positive_rate"]) for name, curve in metrics["roc"].items()
    })  # fmt: skip
    filled = calibration.counts > 0
    sure = Chart("Right decisions by their probability", "probability of the decision", "share of right ones", {
        "decisions": (calibration.confidence[filled].tolist(), calibration.accuracy[filled].tolist())
    })  # fmt: skip
    chance = answers.probabilities.max(axis=1)
    wrong = sorted((i for i in range(len(cases)) if not answers.correct[i]), key=lambda i: -chance[i])[:WORST]
    said = {
        cases[i]: f"{names[answers.truth[i]]}, taken for {names[answers.decided[i]]} with probability {chance[i]:.2f}"
        for i in wrong
    }
    return (
        Section("Scores", text, (overall, each)),
        Section("ROC curves", charts=(roc,)),
        Section("Decisions", "The class of the largest probability.", matrices=(Matrix(names, metrics["confusion"]),)),
        Section(
            "Calibration", f"Expected calibration error {calibration.error:.4f}: the mean distance of the points from the "
            "diagonal, weighted by their cases.", charts=(sure,),
        ),
        Section("Worst errors", "Wrong decisions, the surest first." if wrong else "No decision is wrong.", pictures=said),
    )  # fmt: skip


def _line(title: str, row: Mapping[str, float]) -> str:
    return f"{title[:22]:22s} {row['value']:8.4f}  {interval_text(row)}"


def _listed(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]
