"""One box for each object, from the boxes that windows, mirrored images and several networks have found.

Weighted boxes fusion (Solovyev et al., Image and Vision Computing 2021): boxes of a class that overlap are averaged by their
scores. A window that has looked at the place and found nothing counts with 0; how much a window counts there falls towards its
faces, where it sees objects cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.boxes import Boxes, iou, joined

CUT = 0.01
"""How much a box counts that its window has cut, beside whole ones."""


@dataclass(frozen=True)
class View:
    """What one network has found in one window.

    Attributes:
        boxes: in voxels of the image.
        start, size: of the window, in voxels of the image.
    """

    boxes: Boxes
    start: NDArray[np.float64]
    size: NDArray[np.float64]

    def weight(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much the window counts at places (n, d): 1 in its middle, falling to 1/100 at its faces, 0 outside."""
        apart = np.abs(places - (self.start + self.size / 2)) / (self.size / 2)
        return np.where((apart <= 1).all(axis=1), np.clip(1 - apart, 0.01, 1).min(axis=1), 0.0)

    def trust(self, begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each box counts (n,): as its middle does, and little where it ends at a face that is none of the image's.

        Args:
            begin, end: faces of the image.
        """
        boxes, last = self.boxes, self.start + self.size
        cut = ((boxes.low <= self.start + 1) & (self.start > begin)) | ((boxes.high >= last - 1) & (last < end))
        return self.weight((boxes.low + boxes.high) / 2) * np.where(cut.any(axis=1), CUT, 1.0)


def without_repeats(boxes: Boxes, overlap: float) -> Boxes:
    """Of boxes of a class that overlap by at least so much IoU the one with the largest score (non-maximum suppression)."""
    order = np.argsort(-boxes.scores, kind="stable")
    boxes = boxes[order]
    compared = iou(boxes, boxes) * (boxes.classes[:, None] == boxes.classes[None])
    kept = np.ones(len(boxes), bool)
    for number in range(len(boxes)):
        if kept[number]:
            kept[number + 1 :] &= compared[number, number + 1 :] < overlap
    return boxes[kept]


def fused(views: Sequence[View], overlap: float, *, dims: int) -> Boxes:
    """The objects of an image, from all its views; with one view, its own boxes.

    Args:
        views: each without repeats.
        overlap: IoU from which two boxes of a class are one object.
        dims: d.
    """
    if len(views) == 1:
        return views[0].boxes
    every = joined([view.boxes for view in views], dims=dims)
    source = np.concatenate([np.full(len(view.boxes), number) for number, view in enumerate(views)]).astype(int)
    begin, end = (
        np.min([view.start for view in views], axis=0),
        np.max([view.start + view.size for view in views], axis=0),
    )
    counted = every.scores * np.concatenate([view.trust(begin, end) for view in views])
    order = np.argsort(-counted, kind="stable")
    clusters = _clusters(every[order], source[order], overlap)
    rows = []
    for cluster in clusters:
        members = order[cluster]
        share = np.maximum(counted[members], np.finfo(float).tiny)[:, None]
        low, high = ((getattr(every, name)[members] * share).sum(0) / share.sum() for name in ("low", "high"))
        middle = ((low + high) / 2)[None]
        weights = np.array([view.weight(middle)[0] for view in views])
        best = np.zeros(len(views))
        np.maximum.at(best, source[members], every.scores[members])
        rows.append((low, high, every.classes[members[0]], float(weights @ best / max(weights.sum(), 1e-12))))
    lows, highs, classes, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    result = Boxes.of(np.array(lows), np.array(highs), classes, scores, dims=dims)
    return result[np.argsort(-result.scores, kind="stable")]


def _clusters(boxes: Boxes, source: NDArray[np.int64], overlap: float) -> list[list[int]]:
    """Rows that are one object each: a box joins the object whose first box it overlaps most, with no other of its view."""
    compared = iou(boxes, boxes)
    firsts: list[int] = []
    clusters: list[list[int]] = []
    for number in range(len(boxes)):
        near = [
            (compared[number, first], which)
            for which, first in enumerate(firsts)
            if boxes.classes[first] == boxes.classes[number]
            and compared[number, first] >= overlap
            and source[number] not in source[clusters[which]]
        ]
        if near:
            clusters[max(near)[1]].append(number)
        else:
            firsts.append(number)
            clusters.append([number])
    return clusters
