"""From maps of foreground and depth to numbered objects: seeds where depths peak, and a watershed inside the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from cmt_med.config.instances import Instances

OUTSIDE = -1.0
"""Depth outside of the foreground: lower than any inside, so that each connected part of that has a peak."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Objects:
    """Numbered objects of a case.

    Attributes:
        numbers: (*S), 0 for the background, objects from 1 on.
        centres: (n, d), centres of mass in voxels.
        voxels: (n,).
        probabilities: (n,), the mean probability of the foreground in each.
        removed: objects that were too small.
    """

    numbers: NDArray[np.int32]
    centres: NDArray[np.float64]
    voxels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    removed: int = 0


def decode(maps: NDArray[np.float32], settings: Instances, spacing: Sequence[float]) -> Objects:
    """Find the objects in maps (2, *S), the probability of the foreground and the depth.

    Args:
        maps: as the network gives them.
        settings: thresholds, and how small an object may be.
        spacing: size of a voxel in mm along each axis.
    """
    chance = np.asarray(maps[0], dtype=np.float64)
    numbers = _watershed(chance > settings.threshold, np.asarray(maps[1], dtype=np.float64), settings)
    sums = np.bincount(numbers.ravel(), chance.ravel())[1:]
    means = sums / np.maximum(np.bincount(numbers.ravel())[1:], 1)
    return described(numbers, means, settings.min_object_mm3, spacing)


def described(
    numbers: NDArray[np.int32], probabilities: NDArray[np.float64], least: float, spacing: Sequence[float]
) -> Objects:
    """Objects from their numbers, without those that are too small, or have no voxel.

    Args:
        numbers: (*S), up to n.
        probabilities: (n,), of each object.
        least: mm³ of an object.
        spacing: size of a voxel in mm along each axis.
    """
    sizes = np.bincount(numbers.ravel(), minlength=len(probabilities) + 1)
    gone = sizes[1:] == 0
    small = ~gone & (sizes[1:] * float(np.prod(spacing)) < least)
    kept = ~(gone | small)
    if not kept.all():
        numbers = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)[numbers]
    index = np.arange(1, int(kept.sum()) + 1)
    centres = np.array(ndimage.center_of_mass(numbers > 0, numbers, index)).reshape(len(index), numbers.ndim)
    return Objects(numbers, centres, sizes[1:][kept].astype(np.int64), probabilities[kept], int(small.sum()))


def _watershed(inside: NDArray[np.bool_], depth: NDArray[np.float64], settings: Instances) -> NDArray[np.int32]:
    """Numbers of objects: each voxel inside belongs to the peak that it is led to uphill."""
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    smooth = depth
    if settings.smoothing > 0:  # a slice has nothing to be smoothed with
        smooth = ndimage.gaussian_filter(depth, [settings.smoothing if n > 1 else 0 for n in depth.shape])
    smooth = np.where(inside, smooth, OUTSIDE)
    touching = np.ones((3,) * depth.ndim, bool)
    filled = reconstruction(smooth - settings.prominence, smooth, footprint=touching)
    seeds, _ = ndimage.label(inside & (smooth - filled >= settings.prominence - ROUNDING), touching)
    return watershed(-depth, seeds, mask=inside, connectivity=touching).astype(np.int32)
