"""All scores of a case: overlap, surface distances, volumes, lesions and classes, with one table of their names and units.

What a score is where a mask is empty (R reference, P prediction; "ratios" are Dice, IoU, sensitivity, precision and
surface Dice, "distances" are HD, HD95 and ASSD):

=========  =====================  ============================================  ==========================
rule       R and P empty          R empty, P not (false positive)               P empty, R not (missed)
=========  =====================  ============================================  ==========================
diagonal,  ratios 1, distances 0  ratios 0, distances the penalty               ratios 0, distances the
challenge                                                                       penalty, under every rule
nan        NaN                    Dice, IoU, precision and surface Dice 0,
                                  sensitivity and distances NaN
skip       NaN, all scores        NaN, all scores
=========  =====================  ============================================  ==========================

The penalty is the diagonal of the image in mm: no distance in the image is larger, so that a miss is never better than
a find, in a small crop as in a scan of the whole body. The challenges' constant, 373.13 mm, is the diagonal of their
images (240 × 240 × 155 voxels of 1 mm); under ``challenge``, for their data sets, the penalty is never less than it.

A miss never raises the mean of a ratio, a distance or a lesion-wise score (of lesions large enough to count). It can
that of specificity, which looks at the background alone, and of the volume errors: more than twice the volume is a
larger error than none of it.

Specificity and the volume errors are defined without a reference, but the relative ones, which are NaN; ``skip`` leaves
them out, too. NaN is left out of a mean and counted (``n_undefined``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import ConfigError
from cmt_med.evaluation.lesions import LesionRule, lesion_scores
from cmt_med.evaluation.overlap import (
    AGREEMENT_COUNTS,
    EmptyRule,
    Overlap,
    count_overlap,
    known_voxels,
    mask_of,
    ratio_scores,
)
from cmt_med.evaluation.surface import surface_distances

CHALLENGE_PENALTY_MM = 373.13
THOUSAND_PIXELS = "1000 px"
"""The mL of pixels without a size."""
DEFAULT_TOLERANCES = (1.0, 2.0)

Scores = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """The title and unit of a score, and which way is better; ``""`` for one that has no better side."""

    title: str
    unit: str
    better: Literal["higher", "lower", ""]


METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", "higher"),
    "iou": Metric("IoU", "", "higher"),
    "sensitivity": Metric("sensitivity", "", "higher"),
    "precision": Metric("precision", "", "higher"),
    "specificity": Metric("specificity", "", "higher"),
    "hd": Metric("HD", "mm", "lower"),
    "hd95": Metric("HD95", "mm", "lower"),
    "assd": Metric("ASSD", "mm", "lower"),
    "volume_error_ml": Metric("volume error", "mL", ""),
    "absolute_volume_error_ml": Metric("absolute volume error", "mL", "lower"),
    "relative_volume_error": Metric("relative volume error", "", ""),
    "absolute_relative_volume_error": Metric("absolute relative volume error", "", "lower"),
    "lesion_dice": Metric("lesion-wise Dice", "", "higher"),
    "lesion_hd95": Metric("lesion-wise HD95", "mm", "lower"),
}
CLASS_METRICS: dict[str, Metric] = {
    "correct": Metric("accuracy", "", "higher"),
    "brier": Metric("Brier score", "", "lower"),
    "log_loss": Metric("log loss", "", "lower"),
}
INSTANCE_METRICS: dict[str, Metric] = {
    "pq": Metric("PQ", "", "higher"),
    "sq": Metric("SQ, mean IoU of matches", "", "higher"),
    "f1": Metric("F1 at IoU 0.5 (RQ)", "", "higher"),
    "ap_bowl": Metric("AP of the Data Science Bowl", "", "higher"),
    "aji": Metric("AJI", "", "higher"),
}
DETECTION_METRICS: dict[str, Metric] = {
    "best_f1": Metric("largest F1 at IoU 0.5", "", "higher"),
}
PRETRAINING_METRICS: dict[str, Metric] = {
    "explained": Metric("variance explained in hidden blocks", "", "higher"),
    "masked_error": Metric("squared error in hidden blocks", "", "lower"),
}
LESION_COUNTS = ("n_lesions", "n_lesions_detected", "n_lesions_missed", "n_lesions_false_positive")
FACTS = ("reference_voxels", "predicted_voxels", "reference_ml", "predicted_ml")  # what a row holds besides scores


def surface_dice_name(tolerance: float) -> str:
    """``nsd_1mm``: the name of the normalised surface Dice at a tolerance in mm."""
    return f"nsd_{tolerance:g}mm"


def metric_of(name: str) -> Metric | None:
    """The metric of that name, among them ``nsd_<tolerance>mm``; None if it is no score."""
    if name.startswith("nsd_") and name.endswith("mm"):
        return Metric(f"surface Dice at {name[4:-2]} mm", "", "higher")
    return (
        METRICS.get(name)
        or CLASS_METRICS.get(name)
        or INSTANCE_METRICS.get(name)
        or (DETECTION_METRICS | PRETRAINING_METRICS).get(name)
    )


def of_pixels(metric: Metric) -> Metric:
    """The metric of 2D images whose pixels have no size: one counts as 1 mm, and so a distance in mm is one in pixels."""
    unit = {"mm": "px", "mL": THOUSAND_PIXELS}.get(metric.unit, metric.unit)
    return replace(metric, title=re.sub(r" mm\Z", " px", metric.title), unit=unit)


def check_tolerances(tolerances: Sequence[float]) -> None:
    """Refuse tolerances that no surface can be held against, or whose scores would have one name.

    Raises:
        ConfigError: for one that is not a positive number of millimetres, or that equals another to six digits.
    """
    names: dict[str, float] = {}
    for tolerance in tolerances:
        if not 0 < tolerance < math.inf:
            raise ConfigError(f"{tolerance} mm is no tolerance", where="--tolerance", fix="give millimetres above 0")
        name = surface_dice_name(tolerance)
        if name in names:
            raise ConfigError(
                f"tolerances {names[name]} and {tolerance} mm are both called {name}", where="--tolerance",
                why="one score would replace the other", fix="give each once, and no two that differ so little",
            )  # fmt: skip
        names[name] = tolerance


def case_metrics(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    targets: Mapping[str, Sequence[int]],
    *,
    reference_targets: Mapping[str, Sequence[int]] | None = None,
    spacing: Sequence[float],
    rule: EmptyRule = "challenge",
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    lesion_rule: LesionRule | None = None,
    ignore: int | None = None,
) -> dict[str, Scores]:
    """The scores of every target (name -> label values) in two label maps (D1, D2, D3).

    Args:
        predicted, reference: label maps of one shape.
        targets: name -> label values that it consists of.
        reference_targets: the same in the reference, where it numbers its labels differently.
        spacing: size of a voxel in mm, per axis.
        rule: what an empty reference means.
        tolerances: of the normalised surface Dice, in mm.
        lesion_rule: what one lesion is; None for no lesion-wise scores.
        ignore: value of voxels in the reference that nobody has annotated: they are in neither mask, and count nowhere.
    """
    known = known_voxels(reference, ignore)
    theirs = targets if reference_targets is None else reference_targets
    return {
        name: mask_metrics(
            mask_of(predicted, values),
            mask_of(reference, theirs[name]),
            spacing=spacing,
            rule=rule,
            tolerances=tolerances,
            lesion_rule=lesion_rule,
            known=known,
        )
        for name, values in targets.items()
    }


def mask_metrics(
    predicted: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    spacing: Sequence[float],
    rule: EmptyRule = "challenge",
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    lesion_rule: LesionRule | None = None,
    known: NDArray[np.bool_] | None = None,
) -> Scores:
    """The scores of two masks of one shape; arguments as for :func:`case_metrics`, and the mask of what is annotated.

    Returns:
        dice, the voxels and volumes (mL) of both, then the other ratios, hd, hd95 and assd (mm), nsd_*, volume errors
        (prediction minus reference, mL and relative to the reference) and, if asked for, the lesion-wise scores.
    """
    counts = count_overlap(predicted, reference, known)
    if known is not None:
        predicted, reference = predicted & known, reference & known
    ratios = ratio_scores(counts, rule)
    voxel_ml = math.prod(spacing) / 1000.0
    scores: Scores = {
        "dice": ratios["dice"],
        "reference_voxels": counts.reference,
        "predicted_voxels": counts.predicted,
        "reference_ml": counts.reference * voxel_ml,
        "predicted_ml": counts.predicted * voxel_ml,
    }
    scores |= {name: value for name, value in ratios.items() if name != "dice"}
    distances = surface_distances(predicted, reference, spacing) if counts.predicted and counts.reference else None
    if distances is None:
        diagonal = math.hypot(*(n * s for n, s in zip(reference.shape, spacing, strict=True)))
        scores |= _surface_scores_of_nothing(counts, rule, tolerances, diagonal)
    else:
        scores |= {"hd": distances.hd, "hd95": distances.hd95, "assd": distances.assd}
        scores |= {surface_dice_name(t): distances.surface_dice(t) for t in tolerances}
    scores |= _volume_errors(counts, rule, voxel_ml)
    if lesion_rule is not None:
        scores |= _lesion_scores(predicted, reference, spacing, rule, lesion_rule)
    return scores


def _surface_scores_of_nothing(
    counts: Overlap, rule: EmptyRule, tolerances: Sequence[float], diagonal: float
) -> Scores:
    """Distances and surface Dice where a mask is empty, after the table above."""
    penalty = max(diagonal, CHALLENGE_PENALTY_MM) if rule == "challenge" else diagonal
    if counts.reference:  # missed
        distance, ratio = penalty, 0.0
    elif rule in AGREEMENT_COUNTS:
        agreed = counts.predicted == 0
        distance, ratio = 0.0 if agreed else penalty, float(agreed)
    else:
        # the surface Dice of a false positive is 0 over its surface, that of nothing 0 over 0
        defined = rule == "nan" and counts.predicted > 0
        distance, ratio = float("nan"), 0.0 if defined else float("nan")
    return {"hd": distance, "hd95": distance, "assd": distance} | {surface_dice_name(t): ratio for t in tolerances}


def _volume_errors(counts: Overlap, rule: EmptyRule, voxel_ml: float) -> Scores:
    error = float(counts.predicted - counts.reference) * voxel_ml
    relative = counts.predicted / counts.reference - 1.0 if counts.reference else float("nan")
    if counts.reference == 0 and rule == "skip":
        error = float("nan")
    return {
        "volume_error_ml": error,
        "absolute_volume_error_ml": abs(error),
        "relative_volume_error": relative,
        "absolute_relative_volume_error": abs(relative),
    }


def _lesion_scores(
    predicted: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
    rule: EmptyRule,
    lesion_rule: LesionRule,
) -> Scores:
    """Lesion-wise scores: with nothing to score 1 and 0 mm by the challenge, NaN under ``nan``; see the table."""
    found = lesion_scores(predicted, reference, spacing, lesion_rule)
    undefined = (rule == "nan" and found.counted == 0) or (rule == "skip" and not reference.any())
    values = (len(found.lesions), found.detected, found.missed, found.false_positives)
    return {
        "lesion_dice": float("nan") if undefined else found.dice,
        "lesion_hd95": float("nan") if undefined else found.hd95,
        **dict(zip(LESION_COUNTS, values, strict=True)),
    }
