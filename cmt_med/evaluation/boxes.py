"""Scores of boxes with a class and a score each: arrays in, numbers out.

Found boxes are matched with references of their class in the order of their scores, each with the free reference of its largest
intersection over union (IoU), if that is at least a threshold (Lin et al., ECCV 2014, as in pycocotools). A box that lies in an
ignored reference counts neither for nor against, and of those any number may: there the IoU is the share of the found box that
lies inside.

AP is the mean precision at 101 recalls, each the best at that recall or more, of the at most 100 boxes of each image and class;
mAP of COCO is its mean over the IoU 0.50, 0.55, ..., 0.95 and over the classes that have a reference. FROC is the sensitivity at
1/8 to 8 false positives per image (van Ginneken et al., Medical Image Analysis 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.boxes import Boxes, iou, shared
from cmt_med.evaluation.summary import BOOTSTRAP_SAMPLES

LOOSE = (0.1, 0.3)
"""For small 3D objects, of which a box that is one voxel off loses half of its IoU."""
COCO = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
THRESHOLDS = (*LOOSE, *COCO)
MOST_BOXES = 100
"""Of an image and a class that are scored, those with the largest scores."""
RECALLS = np.linspace(0, 1, 101)
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Per image, at which FROC names the sensitivity."""


@dataclass(frozen=True)
class Matches:
    """Found boxes of one image and one class against the references, the best first.

    Attributes:
        scores: (n,).
        hits: (T, n), whether each matches a reference at each threshold.
        ignored: (T, n), whether it counts neither for nor against.
        references: how many could be found.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    references: int


def match(found: Boxes, references: Boxes, thresholds: Sequence[float] = THRESHOLDS) -> Matches:
    """Match the found boxes of an image with its references; both have one class."""
    order = np.argsort(-found.scores, kind="stable")[:MOST_BOXES]
    found = found[order]
    references = references[np.argsort(references.ignored, kind="stable")]  # those that count first
    overlap = iou(found, references)
    inside = shared(found, references) / np.maximum(found.volumes, np.finfo(float).tiny)[:, None]
    overlap = np.where(references.ignored[None], inside, overlap)
    hits = np.zeros((len(thresholds), len(found)), bool)
    ignored = np.zeros_like(hits)
    for row, threshold in enumerate(thresholds):
        free = np.ones(len(references), bool)
        for number in range(len(found)):
            best = _best(overlap[number], free, references.ignored, min(threshold, 1 - 1e-10))
            if best is None:
                continue
            if references.ignored[best]:
                ignored[row, number] = True
            else:
                hits[row, number], free[best] = True, False
    return Matches(found.scores, hits, ignored, int(np.count_nonzero(~references.ignored)))


def _best(
    overlap: NDArray[np.float64], free: NDArray[np.bool_], ignored: NDArray[np.bool_], least: float
) -> int | None:
    """The reference of the largest overlap, the last of equal ones; an ignored one only where no other will do."""
    for kind in (free & ~ignored, ignored):
        rows = np.flatnonzero(kind & (overlap >= least))
        if len(rows):
            return int(rows[len(rows) - 1 - np.argmax(overlap[rows][::-1])])
    return None


@dataclass(frozen=True)
class Ranking:
    """The matches of several images of one class, or of all classes, ranked by their scores.

    Attributes:
        scores: (N,), falling.
        image: (N,), the number of the image of each.
        hits, ignored: (T, N), as of :class:`Matches`.
        references: (I,), how many each image has.
    """

    scores: NDArray[np.float64]
    image: NDArray[np.int64]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    references: NDArray[np.int64]


def ranking(images: Sequence[Sequence[Matches]]) -> Ranking:
    """Rank the boxes of several images, each with the matches of one class or of several."""
    parts = [(number, matches) for number, several in enumerate(images) for matches in several]
    scores = np.concatenate([matches.scores for _, matches in parts]) if parts else np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    image = np.concatenate([np.full(len(m.scores), number) for number, m in parts]) if parts else np.zeros(0, int)
    hits, ignored = (
        np.concatenate([getattr(m, name) for _, m in parts], axis=1) if parts else np.zeros((len(THRESHOLDS), 0), bool)
        for name in ("hits", "ignored")
    )
    count = np.array([sum(m.references for m in several) for several in images], np.int64)
    return Ranking(scores[order], image[order].astype(np.int64), hits[:, order], ignored[:, order], count)


def average_precision(ranked: Ranking, threshold: int, weights: NDArray[np.float64] | None = None) -> float:
    """AP at the threshold of that number; NaN without a reference.

    Args:
        ranked: boxes of one class.
        threshold: row of ``hits``.
        weights: (I,), how often each image counts; None for once.
    """
    of_image = np.ones(len(ranked.references)) if weights is None else weights
    count = float(of_image @ ranked.references)
    if not count:
        return float("nan")
    weight = of_image[ranked.image] * ~ranked.ignored[threshold]
    hits = np.cumsum(weight * ranked.hits[threshold])
    every = np.cumsum(weight)
    precision = hits / np.maximum(every, np.finfo(float).eps)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / count, RECALLS, side="left")
    return float(np.mean(np.append(envelope, 0.0)[np.minimum(places, len(hits))]))


def mean_precision(
    by_class: Mapping[str, Ranking], thresholds: Sequence[int], weights: NDArray[np.float64] | None = None
) -> float:
    """The mean AP over thresholds and over the classes that have a reference; NaN where none has."""
    rows = [average_precision(ranked, t, weights) for ranked in by_class.values() for t in thresholds]
    known = [value for value in rows if value == value]
    return float(np.mean(known)) if known else float("nan")


def froc(ranked: Ranking, threshold: int, weights: NDArray[np.float64] | None = None) -> list[float]:
    """The sensitivities at :data:`FALSE_POSITIVES`: the largest that a bound on the scores reaches with no more; NaN without any.

    Boxes of equal scores are taken together.
    """
    across, up = froc_curve(ranked, threshold, weights)
    if not len(up):
        return [float("nan")] * len(FALSE_POSITIVES)
    return [float(up[across <= rate].max(initial=0.0)) for rate in FALSE_POSITIVES]


def froc_curve(
    ranked: Ranking, threshold: int, weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives per image and sensitivity at each bound on the scores, from the largest down; empty without references."""
    of_image = np.ones(len(ranked.references)) if weights is None else weights
    count, images = float(of_image @ ranked.references), float(of_image.sum())
    if not count:
        return np.zeros(0), np.zeros(0)
    weight = of_image[ranked.image] * ~ranked.ignored[threshold]
    hits = ranked.hits[threshold]
    last = np.append(ranked.scores[1:] != ranked.scores[:-1], True) if len(ranked.scores) else np.zeros(0, bool)
    false = np.cumsum(weight * ~hits)[last] / images
    found = np.cumsum(weight * hits)[last] / count
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], found])


def intervals(
    groups: Sequence[str], scores: Callable[[NDArray[np.float64]], Sequence[float]], count: int
) -> list[tuple[float, float]]:
    """The 95% percentile intervals of several scores, with images resampled by patient; NaN below two patients.

    Args:
        groups: the patient of each image.
        scores: from how often each image counts (I,) to so many numbers; of each, NaN is left out.
        count: how many.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return [(float("nan"), float("nan"))] * count
    member = np.array([[group == name for group in groups] for name in names], float)
    rng = np.random.default_rng(0)
    drawn = (
        np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(BOOTSTRAP_SAMPLES)
    )
    values = np.array([scores(counts.astype(float) @ member) for counts in drawn])
    return [_middle(column[~np.isnan(column)]) for column in values.T]


def _middle(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)
