"""Boxes along the axes: their faces, and what two of them share.

Faces are counted in voxels from the outer face of the first one: voxel i lies between i and i + 1, and a box of one voxel has the
faces i and i + 1. So a face at f has the index f - 1/2 where voxels' centres are whole numbers, as in an affine matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image, with d axes.

    Attributes:
        low, high: (n, d), faces towards the beginning and the end of each axis, in voxels.
        classes: (n,), their label values.
        scores: (n,), from 0 to 1; 1 where they are a reference.
        ignored: (n,), whether finding one counts neither for nor against (crowds of COCO, difficult objects of Pascal VOC).
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    ignored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    @classmethod
    def of(
        cls, low: ArrayLike, high: ArrayLike, classes: ArrayLike, scores: ArrayLike | None = None,
        ignored: ArrayLike | None = None, *, dims: int = 3,
    ) -> Boxes:  # fmt: skip
        """Boxes from rows; without scores all have 1, and without ``ignored`` all count."""
        named = np.asarray(classes, np.int64).reshape(-1)
        count = len(named)
        return cls(
            np.asarray(low, np.float64).reshape(count, -1 if count else dims),
            np.asarray(high, np.float64).reshape(count, -1 if count else dims),
            named,
            np.ones(count) if scores is None else np.asarray(scores, np.float64).reshape(count),
            np.zeros(count, bool) if ignored is None else np.asarray(ignored, bool).reshape(count),
        )

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Any) -> Boxes:
        return Boxes(self.low[rows], self.high[rows], self.classes[rows], self.scores[rows], self.ignored[rows])

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Edges in voxels: (n, d)."""
        return self.high - self.low

    @property
    def volumes(self) -> NDArray[np.float64]:
        """Products of the edges, in voxels: (n,)."""
        return np.asarray(self.sizes.prod(axis=1), np.float64)

    def moved(self, offset: ArrayLike) -> Boxes:
        """The boxes further along by an offset (d,) in voxels."""
        step = np.asarray(offset, np.float64)
        return replace(self, low=self.low + step, high=self.high + step)

    def within(self, shape: Sequence[int]) -> Boxes:
        """The boxes cut to an image; those outside of it are gone."""
        end = np.asarray(shape, np.float64)
        low, high = np.clip(self.low, 0, end), np.clip(self.high, 0, end)
        inside = (high > low).all(axis=1)
        return replace(self, low=low, high=high)[inside]


def joined(parts: Sequence[Boxes], *, dims: int) -> Boxes:
    """All boxes of several."""
    if not parts:
        return Boxes.of([], [], [], dims=dims)
    return Boxes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Boxes.__dataclass_fields__))


def shared(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """The volume that each pair has in common, in voxels: (n, m)."""
    low = np.maximum(first.low[:, None], second.low[None])
    high = np.minimum(first.high[:, None], second.high[None])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2), np.float64)


def iou(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Intersection over union of each pair: (n, m); 0 for boxes without volume."""
    both = shared(first, second)
    union = first.volumes[:, None] + second.volumes[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)
