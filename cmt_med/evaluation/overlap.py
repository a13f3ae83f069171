"""Dice of masks, with a named rule for empty references, and means that say what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EmptyRule = Literal["challenge", "nan"]
EMPTY_RULES: dict[EmptyRule, str] = {
    "challenge": "empty reference: Dice 1 if the prediction is empty too, else 0",
    "nan": "empty reference: the case is left out of the mean and counted",
}
BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one mask of one case, and its volumes in mL."""

    dice: float
    reference_voxels: int
    predicted_voxels: int
    reference_ml: float
    predicted_ml: float


def dice_of(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], *, voxel_ml: float, rule: EmptyRule = "challenge"
) -> Overlap:
    """``2 |P ∩ R| / (|P| + |R|)`` of two masks of one shape.

    Args:
        predicted, reference: masks (D1, D2, D3).
        voxel_ml: volume of a voxel in mL.
        rule: what an empty reference means; NaN is returned under ``"nan"``.
    """
    both = int(np.count_nonzero(predicted & reference))
    p, r = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    if r == 0:
        dice = float("nan") if rule == "nan" else float(p == 0)
    else:
        dice = 2.0 * both / (p + r)
    return Overlap(dice, r, p, r * voxel_ml, p * voxel_ml)


def case_overlaps(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    targets: Mapping[str, Sequence[int]],
    *,
    reference_targets: Mapping[str, Sequence[int]] | None = None,
    voxel_ml: float,
    rule: EmptyRule = "challenge",
) -> dict[str, Overlap]:
    """The overlap of every target (name -> label values) in two label maps of one shape.

    ``reference_targets`` gives the reference's values where they differ from the prediction's.
    """
    theirs = targets if reference_targets is None else reference_targets
    return {
        name: dice_of(np.isin(predicted, values), np.isin(reference, theirs[name]), voxel_ml=voxel_ml, rule=rule)
        for name, values in targets.items()
    }


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean over cases, resampled with replacement; NaN below two values."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(0, len(array), (BOOTSTRAP_SAMPLES, len(array)))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(cases: Mapping[str, Mapping[str, Overlap]], targets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each target: mean Dice with its interval, and how many cases it stands on.

    Returns:
        target -> mean, median, std, low, high, n, n_empty (empty references), n_missed (reference there, prediction
        empty), n_false_positive (reference empty, prediction not); ``"mean"`` averages each case over its targets.
    """
    summary: dict[str, dict[str, Any]] = {}
    for target in targets:
        rows = [overlaps[target] for overlaps in cases.values()]
        summary[target] = _statistics([row.dice for row in rows]) | {
            "n_empty": sum(row.reference_voxels == 0 for row in rows),
            "n_missed": sum(row.reference_voxels > 0 and row.predicted_voxels == 0 for row in rows),
            "n_false_positive": sum(row.reference_voxels == 0 and row.predicted_voxels > 0 for row in rows),
        }
    per_case = []
    for overlaps in cases.values():
        scored = [overlaps[t].dice for t in targets if not np.isnan(overlaps[t].dice)]
        per_case.append(float(np.mean(scored)) if scored else float("nan"))
    summary["mean"] = _statistics(per_case)
    return summary


def _statistics(scores: Sequence[float]) -> dict[str, Any]:
    kept = [score for score in scores if not np.isnan(score)]
    low, high = bootstrap_interval(kept)
    if not kept:
        return {"mean": float("nan"), "median": float("nan"), "std": float("nan"), "low": low, "high": high, "n": 0}
    return {
        "mean": float(np.mean(kept)),
        "median": float(np.median(kept)),
        "std": float(np.std(kept)),
        "low": low,
        "high": high,
        "n": len(kept),
    }
