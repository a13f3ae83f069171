"""Rotation and scaling of image and label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen


class Affine:
    """Draws ``affine`` (B,), whether it happens, and ``matrix`` (B, d, d), from offsets in the patch to offsets in what it is
    taken from, both from the centre, in voxels.

    Args:
        settings: probability, angles and scales.
        size: S, of the patch that is left.

    Attributes:
        margin: on each side, which patches must have beyond ``size``: the content comes from there. It is the same on both
            sides, so that without a change the grid of the patch falls on voxels.
    """

    key: ClassVar[int] = 0xAF

    def __init__(self, settings: Augmentation, size: Sequence[int]) -> None:
        self.settings, self.size = settings, tuple(size)
        self.margin = tuple(math.ceil(n * settings.scale / 2) if settings.affine else 0 for n in self.size)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw angles and scales; the identity for no change."""
        s, dims = self.settings, len(self.size)
        happens = rng.random() < s.affine
        angles = rng.uniform(-1, 1, 3 if dims == 3 else 1) * math.radians(s.rotate_degrees)
        scales = 1 + rng.uniform(-1, 1, dims) * s.scale
        return {
            "affine": torch.tensor(happens),
            "matrix": torch.as_tensor(rotation(angles) * scales, dtype=torch.float32),
        }

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The affine change where there is one, else the middle: (B, C', *W) -> (B, C', *S), new tensors."""
        middle = tuple(slice(m, m + n) for m, n in zip(self.margin, self.size, strict=True))
        moved = image[(slice(None), slice(None), *middle)].clone(), label[(slice(None), slice(None), *middle)].clone()
        rows = chosen(drawn["affine"])
        if rows:
            grid = _grid(drawn["matrix"][rows].to(image.device, non_blocking=True), self.size, image.shape[2:])
            for target, source, mode in zip(moved, (image, label), ("bilinear", "nearest"), strict=True):
                found = F.grid_sample(source[rows].float(), grid, mode=mode, align_corners=False)
                target[rows] = found.to(source.dtype)
        return moved

    def move_boxes(self, boxes: Tensor, drawn: Drawn) -> Tensor:
        """Boxes (B, N, 2d) in voxels of the whole patch W -> in those of S; of a turned object, as of an ellipsoid in its box.

        Around the corners of a turned box would be far more than a round object fills.
        """
        margin = torch.tensor(self.margin, dtype=boxes.dtype, device=boxes.device)
        middle = torch.tensor(self.size, dtype=boxes.dtype, device=boxes.device) / 2
        low, high = boxes.chunk(2, -1)
        place, half = (low + high) / 2 - margin - middle, (high - low) / 2
        there = drawn["affine"].to(boxes.device).view(-1, 1, 1)
        back = torch.linalg.inv(drawn["matrix"].to(boxes.device, boxes.dtype))
        turned = torch.einsum("bij,bnj->bni", back, place)
        extent = torch.einsum("bij,bnj->bni", back.square(), half.square()).sqrt()
        place, half = torch.where(there, turned, place) + middle, torch.where(there, extent, half)
        return torch.cat([place - half, place + half], dim=-1)


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation by one angle in a plane, or about the three axes in turn: (d, d)."""
    if len(angles) == 1:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = result @ turn
    return result


def _grid(matrix: Tensor, size: Sequence[int], whole: Sequence[int]) -> Tensor:
    """The places in (B, C, *whole) that the voxels of patches (B, C, *size) come from, as grid_sample counts: (B, *size, d).

    That is from -1 to 1 between the outer faces of the volume, the last axis first.
    """
    dims = len(size)
    place = torch.zeros((), device=matrix.device)
    for axis, n in enumerate(size):  # a sum over axes, which is much cheaper than a product with every position
        offsets = torch.arange(n, device=matrix.device) - (n - 1) / 2
        part = offsets[:, None] * matrix[:, None, :, axis]  # (B, n, d)
        place = place + part.view(len(matrix), *(n if i == axis else 1 for i in range(dims)), dims)
    return (place * (2 / torch.tensor(whole, device=matrix.device))).flip(-1)
