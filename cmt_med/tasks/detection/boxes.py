"""Boxes as tensors, for losses: (..., 2d), the low faces of all axes, then the high ones, in voxels of a patch."""

from __future__ import annotations

import torch
from torch import Tensor


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al., CVPR 2019, equation 1) of boxes (..., 2d), pair by pair: (...)."""
    union, both, hull = _measures(first, second)
    return both / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def pairwise_giou(first: Tensor, second: Tensor) -> Tensor:
    """As :func:`giou`, of each of (n, 2d) with each of (m, 2d): (n, m)."""
    return giou(first[:, None], second[None])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each of (n, 2d) with each of (m, 2d): (n, m)."""
    union, both, _ = _measures(first[:, None], second[None])
    return both / union.clamp_min(1e-6)


def _measures(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The volumes of union, intersection and common hull."""
    (low1, high1), (low2, high2) = first.chunk(2, -1), second.chunk(2, -1)
    both = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp_min(0).prod(-1)
    hull = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).clamp_min(0).prod(-1)
    union = (high1 - low1).clamp_min(0).prod(-1) + (high2 - low2).clamp_min(0).prod(-1) - both
    return union, both, hull
