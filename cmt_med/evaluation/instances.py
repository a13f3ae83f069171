"""Scores of numbered objects: arrays in, numbers out.

An object of the prediction and one of the reference are a match if their intersection over union (IoU) is more than a threshold
of at least 0.5. Neither map has a voxel in two objects, so no object can have two matches, and nothing has to be assigned.

Panoptic quality: Kirillov et al., CVPR 2019. Aggregated Jaccard index: Kumar et al., IEEE TMI 2017. Average precision by two
definitions with one name: that of the Data Science Bowl 2018, TP / (TP + FP + FN) of an image as a mean over ten thresholds
(Caicedo et al., Nature Methods 2019), and that of COCO, the area under the precision-recall curve of all images' objects, ranked
by their probability (Lin et al., ECCV 2014), as a mean over the same thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.evaluation.summary import BOOTSTRAP_SAMPLES

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""0.50, 0.55, ..., 0.95."""
RECALLS = np.linspace(0, 1, 101) - 1e-9  # a recall of 0.57 must not miss by a rounding


@dataclass(frozen=True)
class Overlaps:
    """Two maps of objects against each other.

    Attributes:
        reference, predicted: sizes in voxels of the objects, in the order of their numbers.
        pairs: (P, 2), rows of ``reference`` and ``predicted`` that share voxels.
        shared: (P,), how many.
    """

    reference: NDArray[np.int64]
    predicted: NDArray[np.int64]
    pairs: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Voxels in either object of a pair: (P,)."""
        return self.reference[self.pairs[:, 0]] + self.predicted[self.pairs[:, 1]] - self.shared

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair: (P,)."""
        return self.shared / np.maximum(self.union, 1)


def overlaps(predicted: NDArray[np.integer], reference: NDArray[np.integer]) -> Overlaps:
    """Compare two maps of objects of one shape, in which 0 is the background."""
    numbers, places, sizes = [], [], []
    for array in (reference, predicted):
        found, place, size = np.unique(array.ravel(), return_inverse=True, return_counts=True)
        first = int(np.searchsorted(found, 1))  # of the background, if there is some
        numbers.append(len(found) - first)
        places.append(place.astype(np.int64) - first)
        sizes.append(size[first:].astype(np.int64))
    both = (places[0] >= 0) & (places[1] >= 0)
    codes, shared = np.unique(places[0][both] * max(1, numbers[1]) + places[1][both], return_counts=True)
    pairs = np.stack(np.divmod(codes, max(1, numbers[1])), axis=1) if len(codes) else np.zeros((0, 2), np.int64)
    return Overlaps(sizes[0], sizes[1], pairs, shared.astype(np.int64))


@dataclass(frozen=True)
class Detections:
    """Matches (TP), predictions without one (FP), references without one (FN), and the sum of the matches' IoU."""

    tp: int
    fp: int
    fn: int
    iou: float

    def __add__(self, other: Detections) -> Detections:
        return Detections(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the recognition quality RQ; 1 where there is nothing and nothing was found."""
        count = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / count if count else 1.0

    @property
    def sq(self) -> float:
        """Segmentation quality: the mean IoU of matches; NaN without any."""
        return self.iou / self.tp if self.tp else float("nan")

    @property
    def pq(self) -> float:
        """Panoptic quality: the sum of the matches' IoU / (TP + FP / 2 + FN / 2); 1 if there is nothing and nothing was found."""
        count = self.tp + 0.5 * (self.fp + self.fn)
        return self.iou / count if count else 1.0

    @property
    def jaccard(self) -> float:
        """TP / (TP + FP + FN); 1 where there is nothing and nothing was found."""
        count = self.tp + self.fp + self.fn
        return self.tp / count if count else 1.0


def detections(found: Overlaps, threshold: float = 0.5) -> Detections:
    """Count the matches of more than a threshold's IoU, which is at least 0.5."""
    matched = found.iou > threshold
    tp = int(np.count_nonzero(matched))
    return Detections(tp, len(found.predicted) - tp, len(found.reference) - tp, float(found.iou[matched].sum()))


def bowl_score(found: Overlaps) -> float:
    """The Data Science Bowl's average precision of an image: the mean over thresholds of TP / (TP + FP + FN)."""
    return float(np.mean([detections(found, threshold).jaccard for threshold in THRESHOLDS]))


def aggregated_jaccard(found: Overlaps) -> float:
    """Voxels shared by each reference and the prediction of its largest IoU, over their unions and all that is left unused.

    Several references may share one prediction, as in the authors' definition. 1 where there is nothing and nothing was found.
    """
    shared, union = 0, 0
    used = np.zeros(len(found.predicted), bool)
    iou, unions = found.iou, found.union
    for number, size in enumerate(found.reference):
        rows = np.flatnonzero(found.pairs[:, 0] == number)
        if not len(rows):
            union += int(size)
            continue
        best = rows[int(np.argmax(iou[rows]))]
        shared, union = shared + int(found.shared[best]), union + int(unions[best])
        used[found.pairs[best, 1]] = True
    union += int(found.predicted[~used].sum())
    return shared / union if union else 1.0


def object_scores(found: Overlaps) -> dict[str, float]:
    """The scores of one image, and its numbers of objects; the recognition quality RQ is F1."""
    at_half = detections(found)
    return {
        "pq": at_half.pq, "sq": at_half.sq, "f1": at_half.f1, "ap_bowl": bowl_score(found), "aji": aggregated_jaccard(found),
        "reference_objects": float(len(found.reference)), "predicted_objects": float(len(found.predicted)),
        "matched_objects": float(at_half.tp), "matched_iou": at_half.iou,
    }  # fmt: skip


def coco_ap(images: Sequence[Overlaps], probabilities: Sequence[Sequence[float]]) -> float:
    """COCO's average precision over all images' objects, the mean over thresholds; NaN without a reference.

    Args:
        images: predictions against references.
        probabilities: of each image's predicted objects, in the order of their numbers.
    """
    count = sum(len(image.reference) for image in images)
    if not count:
        return float("nan")
    best = []
    for image in images:
        most = np.zeros(len(image.predicted))
        np.maximum.at(most, image.pairs[:, 1], image.iou)
        best.append(most)
    chances = np.concatenate([np.asarray(row, float) for row in probabilities]) if probabilities else np.zeros(0)
    most = np.concatenate(best)[np.argsort(-chances, kind="stable")]
    return float(np.mean([_area(most > threshold, count) for threshold in THRESHOLDS]))


def _area(hits: NDArray[np.bool_], count: int) -> float:
    """The mean of the precision at 101 recalls, each the best at that recall or more."""
    tp = np.cumsum(hits)
    precision = tp / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(tp / count, RECALLS, side="left")
    return float(np.mean(np.append(envelope, 0.0)[np.minimum(places, len(hits))]))


def pooled(rows: Sequence[Mapping[str, float]]) -> Detections:
    """The detections of all images together, from their :func:`object_scores`."""
    tp, iou = (sum(row[name] for row in rows) for name in ("matched_objects", "matched_iou"))
    predicted, reference = (sum(row[name] for row in rows) for name in ("predicted_objects", "reference_objects"))
    return Detections(int(tp), int(predicted - tp), int(reference - tp), float(iou))


def bootstrap(
    rows: Sequence[Mapping[str, float]], groups: Sequence[str], score: Callable[[Sequence[Mapping[str, float]]], float]
) -> tuple[float, float]:
    """The 95% percentile interval of a score of several images, resampled by patient; NaN below two patients.

    Args:
        rows: :func:`object_scores` of each image.
        groups: its patient.
        score: of rows; samples in which it is NaN are left out.
    """
    members = [[row for row, own in zip(rows, groups, strict=True) if own == group] for group in sorted(set(groups))]
    if len(members) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(members), len(members)) for _ in range(BOOTSTRAP_SAMPLES))
    values = np.array([score([row for i in chosen for row in members[i]]) for chosen in drawn])
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def mean_of(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """The mean of a score over the images that have it; NaN if none has."""
    values = [row[name] for row in rows if row[name] == row[name]]
    return float(np.mean(values)) if values else float("nan")
