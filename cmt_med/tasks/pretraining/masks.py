"""Blocks that are hidden, on a grid of blocks over the patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def hidden_blocks(count: int, size: Sequence[int], block: int, share: float, device: torch.device) -> Tensor:
    """Draw what is hidden of each patch: (count, 1, *size) booleans, of each that share of its blocks, rounded.

    The grid of blocks begins at a random place before the patch, so that no position is always at the edge of one; blocks at the
    faces are cut. At least one block is hidden and, of several, one shown. All is drawn on the CPU: the same on every device.
    """
    masks = []
    for _ in range(count):
        shift = [int(torch.randint(0, block, ())) if n > block else 0 for n in size]
        blocks = [math.ceil((n + s) / block) for n, s in zip(size, shift, strict=True)]
        total = math.prod(blocks)
        wanted = max(1, min(total - 1, round(share * total)))
        mask = torch.zeros(total, dtype=torch.bool)
        mask[torch.randperm(total)[:wanted]] = True
        mask = mask.view(blocks)
        for axis, (n, s) in enumerate(zip(size, shift, strict=True)):
            mask = mask.repeat_interleave(block, axis).narrow(axis, s, n)
        masks.append(mask)
    return torch.stack(masks)[:, None].to(device)
