"""Patches cut from preprocessed volumes, and whole images in their place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform, Randomizable
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.config.schema import Data, Train


class RandPatchd(MapTransform, Randomizable):
    """Cut a patch with a margin around it at a random place, with zeros where this leaves the volume.

    With probability ``foreground_fraction`` the centre is a voxel of a label (each label equally likely), drawn from
    ``points`` (L, n, 3); else the place is uniform. Either way the patch without its margin lies inside the volume, or
    covers it. Reads only what it needs from a memory-mapped volume. ``start`` of the result says where the patch with its margin
    begins, along the axes that it has.

    Args:
        keys: entries to cut, (C, *S) each.
        size: of the patch without the margin, in voxels.
        margin: added on both sides of every axis, in voxels.
        foreground_fraction: see above.
        slice_axes: for patches of slices (C, H, W) with a ``size`` of two numbers, the axes that slices lie across, each
            equally likely; empty for patches of volumes.
    """

    def __init__(
        self,
        keys: Sequence[str],
        size: Sequence[int],
        margin: Sequence[int],
        foreground_fraction: float,
        slice_axes: Sequence[int] = (),
    ) -> None:
        MapTransform.__init__(self, keys)
        self.size, self.margin, self.foreground_fraction = tuple(size), tuple(margin), foreground_fraction
        self.slice_axes = tuple(slice_axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        shape = data[self.keys[0]].shape[1:]
        size, margin, axis = list(self.size), list(self.margin), None
        if self.slice_axes:
            axis = self.slice_axes[self.R.randint(len(self.slice_axes)) if len(self.slice_axes) > 1 else 0]
            size.insert(axis, 1)
            margin.insert(axis, 0)
        start = [s - m for s, m in zip(self._draw(shape, size, data["points"]), margin, strict=True)]
        whole = [n + 2 * m for n, m in zip(size, margin, strict=True)]
        cut = {key: _cut(data[key], start, whole) for key in self.keys}
        begin = torch.tensor([s for i, s in enumerate(start) if i != axis])
        return {key: patch if axis is None else patch.squeeze(1 + axis) for key, patch in cut.items()} | {
            "start": begin
        }

    def _draw(
        self, shape: Sequence[int], size: Sequence[int], points: Sequence[NDArray[np.signedinteger]]
    ) -> list[int]:
        present = [p for p in points if len(p)]
        wants_label, which, along = self.R.random(3)
        anywhere = self.R.random(3)
        start = []
        centre = None
        if present and wants_label < self.foreground_fraction:
            chosen = present[int(which * len(present))]
            centre = chosen[int(along * len(chosen))]
        for axis, (n, p) in enumerate(zip(shape, size, strict=True)):
            low, high = min(0, n - p), max(0, n - p)  # the patch covers the volume, or lies inside it
            if centre is not None:
                start.append(int(np.clip(int(centre[axis]) - p // 2, low, high)))
            else:
                start.append(low + int(anywhere[axis] * (high - low + 1)))
        return start


class WholeImaged(MapTransform, Randomizable):
    """A whole image with a margin of zeros around it, and an empty label map of that size; nothing is drawn.

    Args:
        keys: ``image`` alone.
        margin: added on both sides of every axis that the network sees, in voxels.
        slice_axes: the axis that a 2D image lies across, which is taken away; empty in 3D.
    """

    def __init__(self, keys: Sequence[str], margin: Sequence[int], slice_axes: Sequence[int] = ()) -> None:
        MapTransform.__init__(self, keys)
        self.margin, self.slice_axes = tuple(margin), tuple(slice_axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        margin = list(self.margin)
        for axis in self.slice_axes:
            margin.insert(axis, 0)
        shape = data[self.keys[0]].shape[1:]
        start, whole = [-m for m in margin], [n + 2 * m for n, m in zip(shape, margin, strict=True)]
        cut = _cut(data[self.keys[0]], start, whole)
        for axis in self.slice_axes:
            cut = cut.squeeze(1 + axis)
        return {self.keys[0]: cut, "label": torch.zeros((1, *cut.shape[1:]), dtype=torch.uint8)}


def _cut(array: NDArray[Any], start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box at ``start`` with ``size`` of (C, *S), zeros outside: (C, *size)."""
    source, pads = [slice(None)], [(0, 0)]
    for n, s, p in zip(array.shape[1:], start, size, strict=True):
        begin, end = max(0, s), min(n, s + p)
        source.append(slice(begin, end))
        pads.append((begin - s, s + p - end))
    cut = np.asarray(array[tuple(source)])
    if any(a or b for a, b in pads):
        return torch.from_numpy(np.pad(cut, pads))
    return torch.from_numpy(cut.copy())


def patches(data: Data, train: Train, margin: Sequence[int], *, with_label: bool = True) -> RandPatchd:
    """The cutting of an experiment's patches, with a margin around them."""
    keys = ["image", "label"] if with_label else ["image"]
    return RandPatchd(
        keys, train.patch_size, margin, train.foreground_fraction, slice_axes(data, len(train.patch_size))
    )


def slice_axes(data: Data, spatial_dims: int) -> tuple[int, ...]:
    """The axes of the volume that 2D slices lie across; none in 3D. 2D images are volumes of one slice, across the last."""
    if spatial_dims == 3:
        return ()
    return (0, 1, 2) if data.slice_axis == "all" else (2 if data.slice_axis is None else data.slice_axis,)
