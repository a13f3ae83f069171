"""Depthwise convolutions of 3³ voxels that are fast on a CPU in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.blocks.conv import GridConv2d, GridConv3d, channels_last, check_spatial_dims, on_onednn


class _DepthwiseConv3d(torch.autograd.Function):
    """Depthwise 3³ convolution, stride 1, whose backward stays on oneDNN's fast forward kernels.

    On CPUs the built-in backward of a depthwise 3D convolution takes about 18 times its forward (torch 2.13,
    channels-last). The gradient of the input is a forward convolution with mirrored weights; the gradient of the weights
    is, for each depth offset, the gradient of a depthwise 2D convolution with depth folded into the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=1, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        channels, depth = x.shape[1], x.shape[2]
        grad = channels_last(grad)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            mirrored = weight.flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
            grad_x = F.conv3d(grad, mirrored, padding=1, groups=channels)
        if ctx.needs_input_grad[1]:
            x_slices, grad_slices = x.transpose(1, 2), grad.transpose(1, 2)  # (B, D, C, H, W)
            plane = weight[:, :, 0].contiguous(memory_format=torch.channels_last)  # only its shape is used
            planes = []
            for offset in (-1, 0, 1):
                start, stop = max(0, offset), depth + min(0, offset)
                if start >= stop:
                    planes.append(torch.zeros_like(plane))
                    continue
                planes.append(
                    torch.ops.aten.convolution_backward(
                        _fold_depth(grad_slices[:, start - offset : stop - offset]),
                        _fold_depth(x_slices[:, start:stop]),
                        plane,
                        [channels],
                        [1, 1],
                        [1, 1],
                        [1, 1],
                        False,
                        [0, 0],
                        channels,
                        [False, True, False],
                    )[1]
                )
            grad_weight = torch.stack(planes, 2)
        if ctx.needs_input_grad[2]:
            grad_bias = _grad_to_bias(grad)
        return grad_x, grad_weight, grad_bias


def _fold_depth(slices: Tensor) -> Tensor:
    """(B, D, C, H, W) -> (B·D, C, H, W), channels-last."""
    return slices.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _grad_to_bias(grad: Tensor) -> Tensor:
    """Sum of a channels-last grid (B, C, *S) over everything but channels, as a matrix product: (C,)."""
    rows = grad.movedim(1, -1).reshape(-1, grad.shape[1])
    return rows.new_ones(1, rows.shape[0]).mm(rows).squeeze(0)


def depthwise(spatial_dims: int, channels: int) -> nn.Module:
    """A depthwise convolution with kernel 3, stride 1 and bias, fast in both directions on a CPU."""
    if check_spatial_dims(spatial_dims) == 3:
        return DepthwiseConv3d(channels, channels, 3, padding=1, groups=channels)
    return GridConv2d(channels, channels, 3, padding=1, groups=channels)


class DepthwiseConv3d(GridConv3d):
    """``nn.Conv3d`` with one group per channel, kernel 3, stride 1; see :class:`_DepthwiseConv3d` for why."""

    def forward(self, x: Tensor) -> Tensor:
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not needs_grad or not on_onednn(x) or self.replicate_depth:
            return super().forward(x)
        result: Tensor = _DepthwiseConv3d.apply(channels_last(x), self.weight, self.bias)
        return result
