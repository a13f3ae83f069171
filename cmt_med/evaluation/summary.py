"""Means over cases that say what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmt_med.evaluation.metrics import LESION_COUNTS, metric_of

BOOTSTRAP_SAMPLES = 2000

Cases = Mapping[str, Mapping[str, Mapping[str, float]]]  # case -> target -> score -> value


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean over cases, resampled with replacement; NaN below two values."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(0, len(array), (BOOTSTRAP_SAMPLES, len(array)))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def describe(scores: Sequence[float]) -> dict[str, Any]:
    """mean, median, std (of a sample: over n - 1), low and high (95% interval of the mean), n, and n_undefined left out (NaN)."""
    kept = [score for score in scores if not np.isnan(score)]
    low, high = bootstrap_interval(kept)
    spread = float(np.std(kept, ddof=1)) if len(kept) > 1 else float("nan")
    values = (float(np.mean(kept)), float(np.median(kept)), spread) if kept else (float("nan"),) * 3
    row: dict[str, Any] = dict(zip(("mean", "median", "std"), values, strict=True))
    return row | {"low": low, "high": high, "n": len(kept), "n_undefined": len(scores) - len(kept)}


def case_mean(case: Mapping[str, Mapping[str, float]], targets: Sequence[str], metric: str) -> float:
    """The mean of one case's score over the targets that have one; NaN if none has."""
    scored = [case[target][metric] for target in targets if not np.isnan(case[target][metric])]
    return float(np.mean(scored)) if scored else float("nan")


def is_scored(row: Mapping[str, float | None]) -> bool:
    """Tell whether a row is of a target that the case annotates: all scores of others are NaN (null in JSON)."""
    voxels = row.get("reference_voxels", 0.0)
    return voxels is not None and not np.isnan(voxels)


def summarise(cases: Cases, targets: Sequence[str], *, failed: int = 0) -> dict[str, dict[str, Any]]:
    """For each target: the mean of every score with its interval, and how many cases it stands on.

    Cases that do not annotate a target are in none of its counts.

    Args:
        cases: the scores.
        targets: what was scored.
        failed: cases that could not be scored.

    Returns:
        target -> the statistics of Dice (:func:`describe`) with n_empty (empty references), n_missed (reference there,
        prediction empty), n_false_positive (reference empty, prediction not) and n_failed (not scored, in no other
        count), and under ``"metrics"`` the same for every score; where lesions were counted, their sums under
        ``"lesions"``. ``"mean"`` averages each case over its targets; of the counts it has n_failed.
    """
    names = score_names(cases)
    metrics = [name for name in names if metric_of(name)] or ["dice"]
    summary: dict[str, dict[str, Any]] = {}
    for target in targets:
        rows = [case[target] for case in cases.values() if is_scored(case[target])]
        counts = {
            "n_empty": sum(row["reference_voxels"] == 0 for row in rows),
            "n_missed": sum(row["reference_voxels"] > 0 and row["predicted_voxels"] == 0 for row in rows),
            "n_false_positive": sum(row["reference_voxels"] == 0 and row["predicted_voxels"] > 0 for row in rows),
            "n_failed": failed,
        }
        described = {name: describe([row[name] for row in rows]) | counts for name in metrics}
        summary[target] = described["dice"] | {"metrics": described}
        if LESION_COUNTS[0] in names:
            summary[target]["lesions"] = {name: int(sum(row[name] for row in rows)) for name in LESION_COUNTS}
    means = {
        name: describe([case_mean(case, targets, name) for case in cases.values()]) | {"n_failed": failed}
        for name in metrics
    }
    summary["mean"] = means["dice"] | {"metrics": means}
    return summary


def score_names(cases: Cases) -> list[str]:
    """Names of the scores in the row of a case and target, in order; all rows hold the same."""
    return next((list(row) for case in cases.values() for row in case.values()), [])
