"""From a set of masks to the objects of a window: each position goes to one query at the most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.instances import Instances

REPEATED, WITHIN = 0.5, 0.8
"""IoU of two masks, and share of the smaller one that lies in the other, above which the one of lower score is left out."""
LEFT = 0.5
"""Share of its mask that an object must keep after others took theirs."""


@dataclass(frozen=True)
class Pieces:
    """Objects of a window, which may be pieces of larger ones.

    Attributes:
        numbers: (*S), 0 for the background, objects from 1 on.
        probabilities: (n,), of each: the score of its query times the mean probability of its mask.
    """

    numbers: NDArray[np.int32]
    probabilities: NDArray[np.float64]


@torch.no_grad()
def pieces(output: Tensor, size: Sequence[int], settings: Instances) -> list[Pieces]:
    """The objects of each window.

    Args:
        output: of the network, (B, Q, 1 + 2d + P).
        size: S, of the windows.
        settings: ``min_score`` and ``threshold``.
    """
    dims = len(size)
    cells = _cells(size, output.shape[2] - 1 - 2 * dims)
    result = []
    for row in output.float():
        scores = row[:, 0].sigmoid()
        kept = scores >= settings.min_score
        scores, drawn = scores[kept], row[kept, 1 + 2 * dims :]
        chosen = _without_repeats(scores, drawn.sigmoid(), settings.threshold)
        result.append(_assigned(scores[chosen], drawn[chosen].view(-1, *cells), size, settings.threshold))
    return result


def _cells(size: Sequence[int], count: int) -> list[int]:
    """The shape of masks with so many positions."""
    for stride in (1, 2, 4, 8, 16):
        cells = [math.ceil(n / stride) for n in size]
        if math.prod(cells) == count:
            return cells
    raise ValueError(f"masks of {count} positions for windows of {tuple(size)} have no stride")


def _without_repeats(scores: Tensor, chances: Tensor, threshold: float) -> Tensor:
    """Indices of queries, the best first, without those whose mask repeats a better one's: by scores (n,) and masks (n, P)."""
    inside = chances > threshold
    areas = inside.sum(1)
    quality = scores * (chances * inside).sum(1) / areas.clamp_min(1)
    order = quality.argsort(descending=True, stable=True)
    order = order[areas[order] > 0]
    flat, areas = inside[order].float(), areas[order].float()
    shared = flat @ flat.T
    smaller = torch.minimum(areas[:, None], areas[None])
    repeats = (shared > REPEATED * (areas[:, None] + areas[None] - shared)) | (shared > WITHIN * smaller)
    kept: list[int] = []
    for i, row in enumerate(repeats.cpu().numpy()):
        if not row[kept].any():
            kept.append(i)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def _assigned(scores: Tensor, drawn: Tensor, size: Sequence[int], threshold: float) -> Pieces:
    """Each position goes to the query of the largest score times probability of its mask, where that is above a threshold."""
    if not len(scores):
        return Pieces(np.zeros(size, np.int32), np.zeros(0))
    factor = next(
        s for s in (1, 2, 4, 8, 16) if all(math.ceil(n / s) == k for n, k in zip(size, drawn.shape[1:], strict=True))
    )
    mode = "trilinear" if len(size) == 3 else "bilinear"
    if factor > 1:
        drawn = F.interpolate(drawn[None], scale_factor=factor, mode=mode, align_corners=False)[0]
    chances = drawn[(slice(None), *(slice(0, n) for n in size))].sigmoid()
    owner = (chances * scores.view(-1, *[1] * len(size))).argmax(0)
    there = chances.gather(0, owner[None])[0]
    numbers = torch.where(there > threshold, owner + 1, 0)
    count = len(scores)
    areas = torch.bincount(numbers.flatten(), minlength=count + 1)[1:]
    kept = (areas > 0) & (areas >= LEFT * (chances > threshold).flatten(1).sum(1))
    renumbered = torch.cat([kept.new_zeros(1).long(), torch.where(kept, kept.cumsum(0), 0)])[numbers]
    means = torch.bincount(numbers.flatten(), there.flatten().double(), minlength=count + 1)[1:] / areas.clamp_min(1)
    return Pieces(
        renumbered.to(torch.int32).cpu().numpy(), (scores.double() * means)[kept].cpu().numpy().astype(np.float64)
    )
