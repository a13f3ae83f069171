"""Attention over grids: lightweight (CMT), global, windowed, and the identity as the honest control.

Letters: B batch, C channels, S spatial sizes, N tokens, M key/value tokens, h heads, d = C / h, W windows, n tokens of a
window. All modules map a grid (B, C, *S) to a grid (B, C, *S).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import channels_last, conv, grid_to_tokens, norm_layer, pad_to_multiple, tokens_to_grid

ATTENTION_KINDS = ("lightweight", "global", "window", "identity")


def attention(
    kind: str, *, spatial_dims: int, channels: int, heads: int, kv_stride: int, window: int, shifted: bool
) -> nn.Module:
    """The attention of one block, by name.

    Args:
        kind: one of ``ATTENTION_KINDS``.
        spatial_dims: 2 or 3.
        channels: width C; must divide by ``heads``.
        heads: number of attention heads.
        kv_stride: reduction of keys and values per axis, for ``"lightweight"``.
        window: edge of a window in tokens, for ``"window"``.
        shifted: whether the windows of this block are shifted by half a window.

    Raises:
        NetworkError: for an unknown kind or a width that does not divide by the heads.
    """
    if kind not in ATTENTION_KINDS:
        raise NetworkError("unknown attention", where=f"{kind!r}", fix=f"use one of {', '.join(ATTENTION_KINDS)}")
    if channels % heads:
        raise NetworkError(
            "attention width does not divide by its heads",
            where=f"channels={channels}, heads={heads}",
            fix="choose heads that divide the stage's width",
        )
    if kind == "identity":
        return nn.Identity()
    if kind == "window":
        return WindowAttention(
            spatial_dims=spatial_dims, channels=channels, heads=heads, window=window, shifted=shifted
        )
    stride = kv_stride if kind == "lightweight" else 1
    return LightweightAttention(spatial_dims=spatial_dims, channels=channels, heads=heads, kv_stride=stride)


class LightweightAttention(nn.Module):
    """Multi-head attention of all N tokens to M = prod(ceil(S / k)) keys (CMT, section 3.3, equation 3).

    Keys and values come from a depthwise convolution with kernel and stride k and a norm. Where k does not divide the
    grid, the far edge is padded with zeros, so that every token takes part. A position bias (h, N, M) may be handed to
    ``forward``; without one the local perception unit in front encodes position, at any size.
    """

    def __init__(self, *, spatial_dims: int, channels: int, heads: int, kv_stride: int, norm: str = "layer") -> None:
        super().__init__()
        self.heads, self.kv_stride = heads, kv_stride
        self.reduce: nn.Module | None = None
        if kv_stride > 1:
            cells = conv(spatial_dims, channels, channels, kv_stride, stride=kv_stride, groups=channels)
            self.reduce = nn.Sequential(cells, norm_layer(norm, spatial_dims, channels))
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        reduced = x if self.reduce is None else self.reduce(pad_to_multiple(x, self.kv_stride))
        q = _split_heads(self.q(grid_to_tokens(x)), self.heads)  # (B, h, N, d)
        k, v = self.kv(grid_to_tokens(reduced)).chunk(2, dim=-1)  # (B, M, C) each
        mask = None if position is None else position.to(q.dtype).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, _split_heads(k, self.heads), _split_heads(v, self.heads), mask)
        return tokens_to_grid(self.proj(_join_heads(out)), x.shape[2:])


class WindowAttention(nn.Module):
    """Attention inside windows of ``window`` tokens per axis, with relative position bias (Swin, section 3.2).

    On an axis not longer than the window, one window covers the axis and there is no shift. Where windows do not divide
    the grid, the far edge is padded and padding is masked out. Shifted windows are cyclic; tokens that are not
    neighbours in the grid do not see each other.
    """

    def __init__(self, *, spatial_dims: int, channels: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** spatial_dims, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        window = tuple(min(self.window, n) for n in size)
        shift = tuple(self.window // 2 if self.shifted and n > self.window else 0 for n in size)
        axes = tuple(range(2, x.ndim))
        grid = pad_to_multiple(x, window)
        padded = tuple(int(n) for n in grid.shape[2:])
        if any(shift):
            grid = channels_last(torch.roll(grid, tuple(-s for s in shift), axes))
        tokens = _to_windows(grid, window)  # (B, W, n, C)
        batch, count = tokens.shape[:2]
        q, k, v = (
            _split_heads(t, self.heads) for t in self.qkv(tokens.flatten(0, 1)).chunk(3, dim=-1)
        )  # (BW, h, n, d)
        mask = self._relative_bias(window).unsqueeze(0)  # (1, h, n, n)
        if padded != size or any(shift):
            # Not cached while a graph is captured, whose tensors hold no values.
            hide = _window_mask if torch.compiler.is_compiling() else _cached_window_mask
            hidden = hide(size, padded, window, shift, x.device)  # (W, n, n)
            minus_infinity = torch.zeros(hidden.shape, dtype=mask.dtype, device=x.device).masked_fill_(hidden, -1e4)
            mask = (mask + minus_infinity.unsqueeze(1)).repeat(batch, 1, 1, 1)  # (BW, h, n, n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        windows = self.proj(_join_heads(out)).unflatten(0, (batch, count))
        grid = _from_windows(windows, padded, window)
        if any(shift):
            grid = torch.roll(grid, shift, axes)
        return channels_last(grid[(slice(None), slice(None), *(slice(0, n) for n in size))])

    def _relative_bias(self, window: Sequence[int]) -> Tensor:
        """The bias of every pair in a window, (h, n, n)."""
        index = torch.zeros((), dtype=torch.long, device=self.bias_table.device)
        coordinates = torch.stack(
            torch.meshgrid(*(torch.arange(w, device=self.bias_table.device) for w in window), indexing="ij")
        ).flatten(1)  # (dims, n)
        for axis in coordinates:
            index = index * (2 * self.window - 1) + (axis[:, None] - axis[None, :] + self.window - 1)
        return self.bias_table[index].permute(2, 0, 1)


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, h, N, d)"""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join_heads(tokens: Tensor) -> Tensor:
    """(B, h, N, d) -> (B, N, C)"""
    return tokens.transpose(1, 2).flatten(2)


def _to_windows(grid: Tensor, window: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, W, n, C)"""
    x = grid.movedim(1, -1)
    shape = [x.shape[0]]
    for n, w in zip(x.shape[1:-1], window, strict=True):
        shape += [n // w, w]
    dims = len(window)
    x = x.reshape(*shape, x.shape[-1])  # (B, W1, w1, W2, w2, ..., C)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return x.reshape(shape[0], math.prod(shape[1::2]), math.prod(window), -1)


def _from_windows(windows: Tensor, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """(B, W, n, C) -> (B, C, *S)"""
    dims = len(window)
    counts = [n // w for n, w in zip(size, window, strict=True)]
    x = windows.reshape(windows.shape[0], *counts, *window, windows.shape[-1])
    x = x.permute(0, *itertools.chain.from_iterable((1 + i, 1 + dims + i) for i in range(dims)), 2 * dims + 1)
    return x.reshape(windows.shape[0], *size, -1).movedim(-1, 1)


def _window_mask(
    size: Sequence[int], padded: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> Tensor:
    """Pairs that must not see each other, True there: (W, n, n).

    Each position of the shifted, padded grid gets the number of the contiguous piece it belongs to on each axis;
    padding is a piece of its own. A padded query attends to padding alone, so no row is empty.
    """
    label = torch.zeros((), dtype=torch.long)
    for n, p, s in zip(size, padded, shift, strict=True):
        position = torch.roll(torch.arange(p), -s)
        piece = (position >= n).long() + 2 * (torch.arange(p) >= p - s).long() * (position < n).long()
        label = label.unsqueeze(-1) * 3 + piece
    windows = _to_windows(label[None, None].float(), window)[0, :, :, 0]  # (W, n)
    return (windows[:, :, None] != windows[:, None, :]).to(device)


_cached_window_mask = lru_cache(maxsize=16)(_window_mask)
