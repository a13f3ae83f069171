"""Scores of two masks that need nothing but counts of voxels, and the named rules for empty references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EmptyRule = Literal["diagonal", "challenge", "nan", "skip"]
EMPTY_RULES: dict[EmptyRule, str] = {
    "diagonal": "empty reference: ratios 1 and distances 0 if the prediction is empty too, else 0 and the image's diagonal",
    "challenge": (
        "empty reference: ratios 1 and distances 0 if the prediction is empty too, else 0 and the larger of 373.13 mm and the "
        "image's diagonal"
    ),
    "nan": "empty reference: what is not defined is left out of the mean and counted; a false positive has Dice 0",
    "skip": "empty reference: the case is left out of every mean and counted",
}
AGREEMENT_COUNTS: tuple[EmptyRule, ...] = ("diagonal", "challenge")
"""Rules by which an empty prediction of an empty reference is right, and any other one wrong."""


def missed_text(rule: EmptyRule, *, lesions: bool) -> str:
    """Explain what a rule makes of a miss; ``lesions`` where lesions were scored one by one."""
    distance = "the larger of 373.13 mm and the image's diagonal" if rule == "challenge" else "the image's diagonal"
    of_lesion = "; of a lesion 374 mm, the most that a found one counts" if lesions else ""
    return f"missed (prediction empty, reference not): ratios 0, distances {distance}{of_lesion}"


@dataclass(frozen=True)
class Overlap:
    """Voxels of a prediction, of a reference, of both at once, and of all that is scored (the image, or what is annotated)."""

    predicted: int
    reference: int
    both: int
    image: int

    @property
    def dice(self) -> float:
        """``2 |P ∩ R| / (|P| + |R|)`` after the challenge rule: 1 where both are empty."""
        return ratio_scores(self, "challenge")["dice"]


def mask_of(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """Mask where a label map has one of ``values``; same shape, same memory order."""
    if not len(values):
        return np.zeros_like(labels, dtype=bool)
    mask: NDArray[np.bool_] = labels == values[0]
    for value in values[1:]:  # comparisons are several times faster than np.isin for the few values of a region
        mask |= labels == value
    return mask


def count_overlap(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], known: NDArray[np.bool_] | None = None
) -> Overlap:
    """Count the voxels of two masks of one shape, those alone that are in ``known`` where that is given."""
    if known is not None:
        predicted, reference = predicted & known, reference & known
    p, r = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(predicted & reference)) if p and r else 0
    return Overlap(p, r, both, int(np.size(reference) if known is None else np.count_nonzero(known)))


def known_voxels(reference: NDArray[np.uint8], ignore: int | None) -> NDArray[np.bool_] | None:
    """The mask of voxels that somebody has annotated: all but those of the value ``ignore``. None where all are."""
    if ignore is None:
        return None
    known: NDArray[np.bool_] = reference != ignore
    return None if known.all() else known


def case_overlaps(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    targets: Mapping[str, Sequence[int]],
    *,
    ignore: int | None = None,
) -> dict[str, Overlap]:
    """The overlap of every target (name -> label values) in two label maps of one shape: what validation needs.

    Voxels whose reference is ``ignore`` count nowhere.
    """
    known = known_voxels(reference, ignore)
    return {
        name: count_overlap(mask_of(predicted, values), mask_of(reference, values), known)
        for name, values in targets.items()
    }


def ratio_scores(counts: Overlap, rule: EmptyRule) -> dict[str, float]:
    """The scores that are ratios of counts.

    With true positives TP, false positives FP, false negatives FN and true negatives TN in voxels::

        dice = 2 TP / (2 TP + FP + FN)      iou = TP / (TP + FP + FN)
        sensitivity = TP / (TP + FN)        precision = TP / (TP + FP)        specificity = TN / (TN + FP)

    Precision is 0/0 for a missed lesion (reference there, prediction empty) and counts 0 under every rule, so that a
    miss never leaves a mean better than it was. Specificity looks at the background alone: a miss has 1 there.

    With an empty reference, ``"diagonal"`` and ``"challenge"`` give 1 for all where the prediction is empty too, else 0 (but
    specificity, which is defined); ``"nan"`` gives NaN for 0/0 alone, so that a false positive has Dice, IoU and precision 0;
    ``"skip"`` gives NaN for all. Specificity is NaN where the image has no background.
    """
    tp, fp, fn = counts.both, counts.predicted - counts.both, counts.reference - counts.both
    negatives = counts.image - counts.reference
    scores = {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "precision": _ratio(tp, tp + fp),
        "specificity": _ratio(negatives - fp, negatives),
    }
    if counts.reference:
        return scores | {"precision": 0.0} if counts.predicted == 0 else scores
    if rule == "skip":
        return dict.fromkeys(scores, float("nan"))
    if rule in AGREEMENT_COUNTS:
        agreed = float(counts.predicted == 0)
        return {name: agreed if name != "specificity" else value for name, value in scores.items()}
    return scores


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
