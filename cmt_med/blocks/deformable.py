"""Attention of queries to a few places around a box, over the grids of a pyramid, in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Multi-scale deformable cross-attention (Zhu et al., ICLR 2021, section 4.1) around boxes instead of points.

    Each head looks at ``points`` places of each grid, offset from the middle of the query's box in units of half its edges.
    Places outside of a grid are zero.

    Args:
        spatial_dims: d, 2 or 3.
        channels: of queries and grids.
        heads: that divide the channels.
        levels: number of grids.
        points: places of each head and grid.
    """

    def __init__(self, *, spatial_dims: int, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.dims, self.heads, self.levels, self.points = spatial_dims, heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * spatial_dims)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_star(heads, levels, points, spatial_dims).flatten())

    def forward(self, queries: Tensor, boxes: Tensor, grids: Sequence[Tensor]) -> Tensor:
        """Queries (B, Q, C) with boxes (B, Q, 2d), middles and edges as shares of the image, look at grids (B, C, *S_i)."""
        batch, count, channels = queries.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.offsets(queries).view(*shape, self.dims)
        middle, edges = boxes.view(batch, count, 1, 1, 1, -1).chunk(2, -1)
        places = 2 * (middle + offsets * edges / 2) - 1  # as grid_sample counts: -1 to 1 between the outer faces
        share = self.weights(queries).view(*shape[:3], -1).softmax(-1).view(shape)
        width = channels // self.heads
        total = queries.new_zeros(batch * self.heads, width, count)
        for level, grid in enumerate(grids):
            value = self.value(grid.movedim(1, -1)).movedim(-1, 1)
            value = value.reshape(batch * self.heads, width, *grid.shape[2:])
            at = places[:, :, :, level].movedim(2, 1).flip(-1)  # (B, heads, Q, P, d), the last axis first
            at = at.reshape(batch * self.heads, count, self.points, *(1,) * (self.dims - 2), self.dims)
            seen = F.grid_sample(value.to(at.dtype), at, mode="bilinear", align_corners=False)
            seen = seen.reshape(batch * self.heads, width, count, self.points)
            part = share[:, :, :, level].movedim(2, 1).reshape(batch * self.heads, 1, count, self.points)
            total = total + (seen * part).sum(-1)
        result: Tensor = self.out(total.view(batch, channels, count).movedim(1, -1))
        return result


def _star(heads: int, levels: int, points: int, dims: int) -> Tensor:
    """Offsets at the start (heads, levels, points, d): each head looks into a direction of its own, further with each point."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    if dims == 3:
        directions = torch.cat(
            [directions, torch.linspace(-1, 1, heads)[torch.randperm(heads, generator=generator), None]], 1
        )
    directions = directions / directions.abs().amax(1, keepdim=True)
    reach = (torch.arange(points) + 1) / points
    return (directions[:, None, None] * reach[:, None]).expand(heads, levels, points, dims).contiguous()
