"""The read-out at full resolution: a convolution to a few channels, as cheap as its results are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.blocks.conv import GridConv2d, GridConv3d, channels_last, check_spatial_dims, on_onednn

ONEDNN_CHANNELS = 16  # that it computes at a time


class ReadOut2d(GridConv2d):
    """A 3×3 convolution to a few channels; see :class:`ReadOut3d`."""

    def forward(self, x: Tensor) -> Tensor:
        axes = shared_axes(x, self)
        return _folded(x, self, axes) if axes else super().forward(x)


class ReadOut3d(GridConv3d):
    """A 3×3×3 convolution to a few channels, such as classes.

    oneDNN computes 16 output channels at a time, also where there are three. On a CPU, neighbouring positions share them
    here: the kernel, shifted by none and by one, becomes one kernel of width 4 and stride 2, whose outputs are both.
    """

    def forward(self, x: Tensor) -> Tensor:
        axes = () if self.replicate_depth else shared_axes(x, self)
        return _folded(x, self, axes) if axes else super().forward(x)


def read_out(spatial_dims: int, in_channels: int, out_channels: int) -> ReadOut2d | ReadOut3d:
    """A 3×3(×3) convolution with bias that keeps the size: (B, C, *S) -> (B, K, *S)."""
    if check_spatial_dims(spatial_dims) == 2:
        return ReadOut2d(in_channels, out_channels, 3, padding=1)
    return ReadOut3d(in_channels, out_channels, 3, padding=1)


def shared_axes(x: Tensor, layer: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """The axes of x (B, C, *S) along which two positions share the 16 channels: of the last two, the even ones."""
    if not on_onednn(x):
        return ()
    fits = sum(layer.out_channels * 2**n <= ONEDNN_CHANNELS for n in (1, 2))
    even = [axis for axis in (x.ndim - 1, x.ndim - 2) if x.shape[axis] % 2 == 0]
    return tuple(sorted(even[:fits]))


def _folded(x: Tensor, layer: nn.Conv2d | nn.Conv3d, axes: Sequence[int]) -> Tensor:
    weight, dims, channels = layer.weight, x.ndim - 2, layer.out_channels
    for axis in reversed(axes):  # (K, C, *kernel) -> (2K, C, *kernel): the even positions, then the odd ones
        inner = [0, 0] * (x.ndim - 1 - axis)
        weight = torch.cat([F.pad(weight, [*inner, 0, 1]), F.pad(weight, [*inner, 1, 0])])
    bias = layer.bias.repeat(2 ** len(axes)) if layer.bias is not None else None
    stride = [2 if 2 + i in axes else 1 for i in range(dims)]
    padding: Any = layer.padding
    y = torch.mkldnn_convolution(x, channels_last(weight), bias, padding, stride, layer.dilation, 1)
    y = y.movedim(1, -1).unflatten(-1, (*(2,) * len(axes), channels))  # (B, *S', 2, ..., K)
    order = [0]
    for i in range(dims):
        order += [1 + i] + ([1 + dims + axes.index(2 + i)] if 2 + i in axes else [])
    return y.permute(*order, y.ndim - 1).reshape(x.shape[0], *x.shape[2:], channels).movedim(-1, 1)
