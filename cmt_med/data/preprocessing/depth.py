"""Objects as a map of depths: 0 outside, 1 at the border of each object, 255 at its innermost voxel.

Made once of a case's numbered objects, it says both where objects are and where one ends and the next begins, fits into the
8 bits of a label map, and is cut, turned and mirrored like one. An object that a patch cuts keeps its depths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DEPTH_VERSION = 1
"""Part of the cache's keys."""
DEEPEST = 255


def renumbered(numbers: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Numbers of objects as 1, 2, ... in their order; 0 stays 0."""
    found = np.unique(numbers)
    return np.searchsorted(found[found > 0], numbers, side="left").astype(np.uint16) + (numbers > 0).astype(np.uint16)


def depth_map(numbers: NDArray[np.integer], spacing: Sequence[float]) -> NDArray[np.uint8]:
    """Depths of objects' voxels.

    A voxel's depth is its distance to the nearest voxel with a neighbour (by a face) outside of its own object, plus half a
    voxel, as a share of the largest one in the object. The border of the volume ends no object.

    Args:
        numbers: of objects, 1, 2, ... (*S); 0 is the background.
        spacing: size of a voxel along each axis.
    """
    inside = numbers > 0
    if not inside.any():
        return np.zeros(numbers.shape, np.uint8)
    border = _border(numbers) & inside
    distance = ndimage.distance_transform_edt(~border, sampling=spacing) if border.any() else np.ones(numbers.shape)
    distance = (distance + 0.5 * min(spacing)) * inside
    largest = np.zeros(int(numbers.max()) + 1)
    np.maximum.at(largest, numbers.ravel(), distance.ravel())
    largest[0] = 1.0
    share = distance / largest[numbers]
    return np.where(inside, np.maximum(np.rint(DEEPEST * share), 1), 0).astype(np.uint8)


def _border(numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The voxels with a neighbour of another number."""
    border = np.zeros(numbers.shape, bool)
    for axis in range(numbers.ndim):
        first, last = ([slice(None)] * numbers.ndim for _ in range(2))
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        differ = numbers[tuple(first)] != numbers[tuple(last)]
        border[tuple(first)] |= differ
        border[tuple(last)] |= differ
    return border
