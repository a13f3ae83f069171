"""Distances between the surfaces of two masks, in mm.

The surface of a mask is its voxels with a face on the background or on the border of the image: the mask without its
erosion by the 6-neighbourhood, which is also how MONAI defines edges. An axis of one voxel has no faces: the surface
of a mask in a single slice is its contour, as in 2D (MONAI takes every voxel of it, so that nothing lies inside, and
two masks that overlap look nearer to each other than they are). A distance is measured from the centre of a
surface voxel to the nearest centre on the other surface. Two steps make that fast wherever the masks lie: most voxels
find the other surface among the few hundred nearest grid points, which are looked up in order of distance, and only
the rest asks a k-d tree. No distance map of the image is made, so stray voxels in opposite corners cost little.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# Positions and spacing come from float32 headers: 1 mm may read 1.00000006 mm, and a whole layer would fall outside.
TOLERANCE_SLACK_MM = 1e-5
NEARBY = 343  # grid points looked at around a voxel, about; a k-d tree costs more than so many look-ups in arrays
FEW = 256  # below so many voxels, the tree is faster

Points = NDArray[np.int64]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm of every surface voxel of one mask to the other's surface, both ways; neither is empty."""

    from_predicted: NDArray[np.float64]
    from_reference: NDArray[np.float64]

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest distance either way."""
        return float(max(self.from_predicted.max(), self.from_reference.max()))

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles (linear interpolation)."""
        return float(max(np.percentile(self.from_predicted, 95), np.percentile(self.from_reference, 95)))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the voxels of both surfaces together."""
        total = self.from_predicted.sum() + self.from_reference.sum()
        return float(total / (self.from_predicted.size + self.from_reference.size))

    def surface_dice(self, tolerance: float) -> float:
        """Normalised surface Dice: the share of both surfaces' voxels within ``tolerance`` mm of the other surface."""
        limit = tolerance + TOLERANCE_SLACK_MM
        near = np.count_nonzero(self.from_predicted <= limit) + np.count_nonzero(self.from_reference <= limit)
        return float(near / (self.from_predicted.size + self.from_reference.size))


def surface_distances(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> SurfaceDistances | None:
    """The distances between the surfaces of two masks of one shape; None where a mask is empty.

    Args:
        predicted, reference: masks (D1, D2, D3), or of any other dimension, of whole images.
        spacing: size of a voxel in mm, per axis.
    """
    p, r = surface_points(predicted), surface_points(reference)
    return point_distances(p, r, spacing) if len(p) and len(r) else None


def point_distances(predicted: Points, reference: Points, spacing: Sequence[float]) -> SurfaceDistances:
    """The distances between two sets of surface voxels (N, D), neither empty, given as indices."""
    size = tuple(float(s) for s in spacing)
    return SurfaceDistances(_directed(predicted, reference, size), _directed(reference, predicted, size))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around the voxels of a mask; an empty box if there are none."""
    box = [slice(0, n) for n in mask.shape]
    # the slowest axis of memory first: what follows then reads only the part that is left
    for axis in np.argsort([-abs(s) for s in mask.strides], kind="stable"):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        filled = np.flatnonzero(mask[tuple(box)].any(axis=others))
        if not len(filled):
            return (slice(0, 0),) * mask.ndim
        box[axis] = slice(int(filled[0]), int(filled[-1]) + 1)
    return tuple(box)


def axes_with_faces(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which voxels of an image have neighbours; all of them if the image is one voxel."""
    return tuple(axis for axis, n in enumerate(shape) if n > 1) or tuple(range(len(shape)))


def surface_points(mask: NDArray[np.bool_], axes: Collection[int] | None = None) -> Points:
    """Indices (N, D) of the surface voxels of a mask (D1, ...).

    Args:
        mask: of an image, or cut out of one.
        axes: of the whole image, :func:`axes_with_faces`; of ``mask`` if left out.
    """
    faces = axes_with_faces(mask.shape) if axes is None else axes
    box = bounding_box(mask)
    order = np.argsort([-abs(s) for s in mask.strides], kind="stable")  # NIfTI files are read in Fortran order
    crop = mask[box].transpose(order)
    inside = np.array(crop, order="C")
    for axis in (place for place, of_mask in enumerate(order) if of_mask in faces):
        # views with this axis first; what lies outside of the box is background, or the border of the image
        whole, kept = np.moveaxis(crop, axis, 0), np.moveaxis(inside, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[:1] = False
        kept[-1:] = False
    found = np.flatnonzero(crop ^ inside)
    points = np.empty((len(found), mask.ndim), dtype=np.int64)
    for axis, index in zip(order, np.unravel_index(found, crop.shape), strict=True):
        points[:, axis] = index + box[axis].start
    return points


def _directed(points: Points, others: Points, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """The distance in mm of each of ``points`` (N, D) to the nearest of ``others`` (M, D)."""
    distances = np.full(len(points), np.inf)
    left = np.arange(len(points))
    if len(points) > FEW:
        left = _search_nearby(points, others, spacing, distances)
    if len(left):
        scale = np.asarray(spacing)
        tree = cKDTree(others * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
        _, nearest = tree.query(points[left] * scale)
        # from whole numbers of voxels: the tree subtracts positions and would lose the last digits
        steps = (points[left] - others[nearest]) * scale
        distances[left] = np.sqrt(np.square(steps).sum(axis=1))
    return distances


def _search_nearby(
    points: Points, others: Points, spacing: tuple[float, ...], distances: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Fill in ``distances`` where another point is near, and return which of ``points`` are left."""
    offsets, lengths = _nearby_offsets(spacing)
    reach = np.abs(offsets).max(axis=0)
    low, high = others.min(axis=0), others.max(axis=0)
    corner = low - 2 * reach
    shape = high + 2 * reach + 1 - corner
    strides = np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    grid = np.zeros(int(np.prod(shape)), dtype=bool)  # pages that are not touched cost nothing
    grid[(others - corner) @ strides] = True
    close = ((points >= low - reach) & (points <= high + reach)).all(axis=1)
    left, far = np.flatnonzero(close), np.flatnonzero(~close)
    places = (points[left] - corner) @ strides
    for step, length in zip(offsets @ strides, lengths, strict=True):
        hit = grid[places + step]
        distances[left[hit]] = length
        left, places = left[~hit], places[~hit]
        if len(left) < FEW:
            break
    return np.concatenate([left, far])


@lru_cache(maxsize=64)
def _nearby_offsets(spacing: tuple[float, ...]) -> tuple[Points, NDArray[np.float64]]:
    """All grid points within a radius, nearest first: offsets in voxels (K, D) and lengths in mm (K)."""
    radius = (NEARBY * math.prod(spacing)) ** (1 / len(spacing)) / 2
    axes = [np.arange(-int(radius / s), int(radius / s) + 1) for s in spacing]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(spacing))
    lengths = np.sqrt(np.square(offsets * np.asarray(spacing)).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    return offsets[order], lengths[order]
