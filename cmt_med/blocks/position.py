"""Absolute position bias tables of the paper's attention, for any size of grid (CMT, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PositionTable(nn.Module):
    """A learned bias for each pair of query and key, shared by the blocks of a stage.

    The table belongs to one size of grid; for another it is interpolated (bicubic), first over queries, then over keys.
    In 3D it is a sum of a table of the plane (the second and third axis) and one of depth, since a table of all pairs
    would have ``N²/k³`` entries per head.

    Args:
        spatial_dims: 2 or 3.
        heads: number of attention heads h.
        size: tokens along each axis of the grid that the table belongs to.
        kv_stride: reduction of the keys per axis.
    """

    def __init__(self, *, spatial_dims: int, heads: int, size: int, kv_stride: int) -> None:
        super().__init__()
        keys = -(-size // kv_stride)
        self.size, self.keys = size, keys
        self.bias_table = nn.Parameter(torch.randn(heads, size**2, keys**2))
        self.depth_bias_table: nn.Parameter | None = None
        if spatial_dims == 3:
            self.depth_bias_table = nn.Parameter(torch.randn(heads, size, keys))

    def forward(self, size: Sequence[int], keys: Sequence[int]) -> Tensor:
        """The bias for a grid of ``size`` and its keys' grid: (h, N, M)."""
        plane = resize_table(
            self.bias_table, ((self.size,) * 2, (self.keys,) * 2), (tuple(size[-2:]), tuple(keys[-2:]))
        )
        if self.depth_bias_table is None:
            return plane
        depth = resize_table(self.depth_bias_table, ((self.size,), (self.keys,)), ((size[0],), (keys[0],)))
        both = depth[:, :, None, :, None] + plane[:, None, :, None, :]  # (h, D, HW, d, hw)
        return both.flatten(3).flatten(1, 2)


Grids = tuple[tuple[int, ...], tuple[int, ...]]


def resize_table(table: Tensor, old: Grids, new: Grids) -> Tensor:
    """Interpolate a table (h, N, M) from ``(query grid, key grid)`` to another: (h, N', M')."""
    if old == new:
        return table
    heads = table.shape[0]
    keys_old, queries_new = math.prod(old[1]), math.prod(new[0])
    by_key = _resize(table.transpose(1, 2).reshape(heads * keys_old, -1), old[0], new[0])  # (h·M, N')
    by_query = by_key.unflatten(0, (heads, keys_old)).transpose(1, 2).reshape(heads * queries_new, keys_old)
    return _resize(by_query, old[1], new[1]).unflatten(0, (heads, queries_new))


def _resize(rows: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    if old == new:
        return rows
    images = rows.unflatten(1, old if len(old) == 2 else (old[0], 1)).unsqueeze(1)
    target = new if len(new) == 2 else (new[0], 1)
    return F.interpolate(images, target, mode="bicubic", align_corners=False).flatten(1)
