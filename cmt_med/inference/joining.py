"""Objects of windows that overlap, joined into objects of the whole image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.evaluation.instances import overlaps
from cmt_med.tasks.instances.pieces import Pieces

AGREEING = 0.5
"""IoU, of their voxels where two windows overlap, from which two pieces are of one object."""


@dataclass(frozen=True)
class _Placed:
    """The pieces of a window (*S) by numbers of the whole image, and its first voxel and the one after its last, by axis."""

    numbers: NDArray[np.int32]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def within(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int32]:
        """The part in a box of the image."""
        return self.numbers[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.low, strict=True))]


def joined(
    found: Iterable[tuple[Sequence[int], Pieces]], shape: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Join the pieces of windows.

    Each position is taken from the window in which it lies furthest from the border. Pieces of two windows are of one object if
    they agree where the windows overlap, and so are those that each of them agrees with.

    Args:
        found: the first voxel of each window, below 0 where it begins before the image, and its pieces; windows come in the
            order of their place along the first axis.
        shape: of the image.

    Returns:
        Numbers (*shape) from 1 on, without gaps, and the probability of each object: the mean of its pieces', by voxels.
    """
    painted = np.zeros(shape, np.int32)
    depth = np.full(shape, -1.0, np.float32)
    parent, chances = [0], [np.zeros(1)]
    near: list[_Placed] = []
    for start, pieces in found:
        window = _placed(np.asarray(start, np.int64), pieces, len(parent) - 1, shape)
        parent += range(len(parent), len(parent) + len(pieces.probabilities))
        chances.append(pieces.probabilities)
        near = [other for other in near if other.high[0] > window.low[0]]
        for other in near:
            _join(window, other, parent)
        near.append(window)
        here = tuple(slice(a, b) for a, b in zip(window.low, window.high, strict=True))
        inside = _depth(window, shape)
        deeper = inside > depth[here]
        painted[here][deeper] = window.numbers[deeper]
        depth[here][deeper] = inside[deeper]
    roots = np.array([_root(parent, number) for number in range(len(parent))], np.int64)
    owned = np.bincount(painted.ravel(), minlength=len(parent)).astype(float)
    owned[0] = 0
    sizes = np.bincount(roots, owned, minlength=len(parent))
    means = np.bincount(roots, owned * np.concatenate(chances), minlength=len(parent)) / np.maximum(sizes, 1)
    kept = sizes > 0
    order = np.where(kept, np.cumsum(kept), 0)[roots].astype(np.int32)
    return order[painted], means[kept]


def _placed(start: NDArray[np.int64], pieces: Pieces, before: int, shape: Sequence[int]) -> _Placed:
    """The pieces of a window with numbers after those before, cut to the image."""
    low, high = np.maximum(start, 0), np.minimum(start + pieces.numbers.shape, shape)
    part = pieces.numbers[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
    return _Placed(np.where(part > 0, part + np.int32(before), 0).astype(np.int32), low, high)


def _join(window: _Placed, other: _Placed, parent: list[int]) -> None:
    low, high = np.maximum(window.low, other.low), np.minimum(window.high, other.high)
    if (low >= high).any():
        return
    ours, theirs = window.within(low, high), other.within(low, high)
    compared = overlaps(ours, theirs)
    numbers = [np.unique(part[part > 0]) for part in (theirs, ours)]
    for row, column in compared.pairs[compared.iou >= AGREEING]:
        one, another = _root(parent, int(numbers[0][row])), _root(parent, int(numbers[1][column]))
        parent[max(one, another)] = min(one, another)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _depth(window: _Placed, shape: Sequence[int]) -> NDArray[np.float32]:
    """Voxels from each position to the nearest border of a window that is none of the image."""
    result = np.full(window.numbers.shape, np.inf, np.float32)
    for axis, (low, high, end) in enumerate(zip(window.low, window.high, shape, strict=True)):
        place = np.arange(low, high, dtype=np.float32)
        along = np.minimum(
            place - low + 0.5 if low > 0 else np.full(len(place), np.inf, np.float32),
            high - place - 0.5 if high < end else np.full(len(place), np.inf, np.float32),
        )
        result = np.minimum(result, along.reshape([-1 if i == axis else 1 for i in range(result.ndim)]))
    return result
