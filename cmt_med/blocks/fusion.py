"""Fusion of a pyramid's levels by attention across scales, at each location by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import Pointwise


class CrossScaleFusion(nn.Module):
    """Each location attends with several heads over the levels of a pyramid: L grids (B, C, *S) -> (B, C, *S).

    With the query from the first level, ``out_h = L · Σ_l softmax_l(q_h · k_{l,h} / √d + b_{l,h}) · x_{l,h}``. Keys start
    at zero, so that the softmax is uniform and the result the plain sum of the levels.

    Args:
        channels: width C of every level.
        levels: their number L.
        heads: number of heads h; must divide ``channels``.
        key_dim: width d of a head's queries and keys.

    Raises:
        NetworkError: if the heads do not divide the width.
    """

    def __init__(self, *, channels: int, levels: int, heads: int = 4, key_dim: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise NetworkError(
                "fusion's width does not divide by its heads",
                where=f"channels={channels}, heads={heads}",
                fix="choose widths that are a multiple of the heads",
            )
        self.levels, self.heads, self.key_dim = levels, heads, key_dim
        self.query = Pointwise(channels, heads * key_dim)
        self.key = Pointwise(channels, heads * key_dim, bias=False)
        self.level_bias = nn.Parameter(torch.zeros(levels, heads))
        nn.init.zeros_(self.key.weight)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        query = self.query(levels[0]).movedim(1, -1).unflatten(-1, (self.heads, -1))  # (B, *S, h, d)
        scores = [(query * self.key(level).movedim(1, -1).unflatten(-1, (self.heads, -1))).sum(-1) for level in levels]
        logits = torch.stack(scores) * self.key_dim**-0.5 + self.level_bias.view(
            self.levels, *(1,) * (query.ndim - 2), self.heads
        )
        weights = self.levels * logits.softmax(0)  # (L, B, *S, h)
        total: Tensor | None = None
        for weight, level in zip(weights, levels, strict=True):
            split = level.movedim(1, -1).unflatten(-1, (self.heads, -1))  # (B, *S, h, C/h)
            part = split * weight.unsqueeze(-1)
            total = part if total is None else total + part
        assert total is not None  # there is at least one level
        return total.flatten(-2).movedim(-1, 1)
