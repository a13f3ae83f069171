"""N-d convolution helpers: the one place that knows about 2D and 3D.

Letters: B batch, C channels, S spatial sizes (H, W) or (D, H, W), N = prod(S) tokens. Everything is kept in PyTorch's
channels-last memory formats, in which a grid (B, C, *S) and its tokens (B, N, C) are two views of the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from cmt_med.base.errors import NetworkError


def on_onednn(x: Tensor) -> bool:
    """Tell whether to call oneDNN by name: for a single small grid PyTorch would fall back to ``slow_conv3d``."""
    return (
        not torch.compiler.is_compiling()  # first: what follows would break a captured graph
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn_convolution(x: Tensor, layer: nn.Conv2d | nn.Conv3d) -> Tensor:
    padding: Any = layer.padding  # integers: conv() never pads by name
    return torch.mkldnn_convolution(x, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups)


@register_flop_formula(torch.ops.aten.mkldnn_convolution)
def _onednn_flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of oneDNN convolutions, for torch's FLOP counter."""
    return conv_flop_count(list(x), list(weight), list(out_shape))


class GridConv2d(nn.Conv2d):
    """``nn.Conv2d`` that stays on oneDNN, and in channels-last, at any size."""

    def forward(self, x: Tensor) -> Tensor:
        if not on_onednn(x):
            return super().forward(x)
        return _onednn_convolution(x, self)


class GridConv3d(nn.Conv3d):
    """``nn.Conv3d`` that stays on oneDNN, and in channels-last, at any size.

    Attributes:
        replicate_depth: pad the first spatial axis by repeating its border instead of with zeros.
    """

    replicate_depth = False

    def forward(self, x: Tensor) -> Tensor:
        if self.replicate_depth and self.padding[0]:
            x, padding = repeat_border(x, int(self.padding[0])), (0, *self.padding[1:])
            return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        if not on_onednn(x):
            return super().forward(x)
        return _onednn_convolution(x, self)


_CONV: dict[int, type[GridConv2d] | type[GridConv3d]] = {2: GridConv2d, 3: GridConv3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def check_spatial_dims(spatial_dims: int) -> int:
    """Return ``spatial_dims`` if it is 2 or 3.

    Raises:
        NetworkError: for anything else.
    """
    if spatial_dims not in _CONV:
        raise NetworkError(
            "unsupported number of spatial dimensions",
            where=f"spatial_dims={spatial_dims!r}",
            why="networks are defined for images (2) and volumes (3)",
            fix="use spatial_dims=2 or spatial_dims=3",
        )
    return spatial_dims


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """A convolution with bias; odd kernels are padded so that the output has ``ceil(S / stride)`` positions.

    Even kernels are not padded: they cut the grid into cells, and the caller pads it to whole ones.
    """
    kind = _CONV[check_spatial_dims(spatial_dims)]
    padding = dilation * (kernel // 2) if kernel % 2 else 0
    return kind(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation)


def pad_depth(module: nn.Module, how: str) -> None:
    """Let every 3D convolution of a module pad its first spatial axis with ``"zeros"`` or by repetition, in place.

    Raises:
        NetworkError: for another way than ``"zeros"`` and ``"replicate"``.
    """
    if how not in ("zeros", "replicate"):
        raise NetworkError("unknown depth padding", where=f"depth_padding={how!r}", fix="use 'zeros' or 'replicate'")
    for part in module.modules():
        if isinstance(part, GridConv3d):
            part.replicate_depth = how == "replicate"


def repeat_border(x: Tensor, width: int) -> Tensor:
    """``x`` (B, C, D, H, W) with its first and last slice repeated ``width`` times."""
    return torch.cat([x[:, :, :1]] * width + [x] + [x[:, :, -1:]] * width, dim=2)


def groups_near(wanted: int, *widths: int) -> int:
    """The number of groups nearest to ``wanted`` that divides all widths."""
    common = math.gcd(*widths)
    return min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: (abs(n - wanted), n))


def cells_of(layer: nn.Module, *, inputs: int = 0, outputs: bool = False) -> nn.Module:
    """Say which of a layer's channels belong to the 2×2(×2) cells of a finer grid; returns the layer.

    Weights of a network of images are carried over to volumes by this (:func:`cmt_med.networks.weights.inflation.inflate`).

    Args:
        layer: a convolution or a matrix.
        inputs: channels of the finer grid whose cells are the layer's last inputs.
        outputs: whether its outputs are cells.
    """
    layer.cell_inputs, layer.cell_outputs = inputs, outputs  # type: ignore[assignment]
    return layer


def check_channels(in_channels: object, num_classes: object) -> None:
    """Refuse what is no number of channels or classes; None classes are none.

    Raises:
        NetworkError: naming the argument.
    """
    for what, value, optional in (("in_channels", in_channels, False), ("num_classes", num_classes, True)):
        if optional and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise NetworkError(
                f"{what} is not a number of channels", where=f"{what}={value!r}", why="a network needs at least one",
                fix="use a whole number from 1 on",
            )  # fmt: skip


def channels_last(x: Tensor) -> Tensor:
    """``x`` (B, C, *S) in the channels-last format; no copy where it already is."""
    return x.contiguous(memory_format=_MEMORY_FORMAT[x.ndim - 2])


def channels_last_weights(module: nn.Module) -> None:
    """Bring the convolution weights of a module into the channels-last formats, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim - 2 in _MEMORY_FORMAT:
                parameter.data = channels_last(parameter.data)


def grid_to_tokens(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, N, C), a view for channels-last input."""
    return x.movedim(1, -1).flatten(1, -2)


def tokens_to_grid(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C) -> (B, C, *S), a channels-last view."""
    return tokens.unflatten(1, tuple(size)).movedim(-1, 1)


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading corner of ``x`` (B, C, *S) with spatial ``size``; ``x`` itself where it fits already."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return channels_last(x[(slice(None), slice(None), *(slice(0, n) for n in size))])


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Zero-pad ``x`` (B, C, *S) at the far end of every axis to a multiple; ``x`` itself where it fits already."""
    dims = x.ndim - 2
    multiples = [multiple] * dims if isinstance(multiple, int) else list(multiple)
    pads = [-n % m for n, m in zip(x.shape[2:], multiples, strict=True)]
    if not any(pads):
        return x
    return channels_last(F.pad(x, [p for pad in reversed(pads) for p in (0, pad)]))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every position of a grid (B, C, *S)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class InstanceNorm(nn.GroupNorm):
    """Normalisation of each channel of each sample over its positions, with weight and bias.

    On a CPU it is computed as the batch norm of one sample at a time, whose backward is three times as fast as
    ``group_norm``'s in channels-last (torch 2.13). A single position, which batch norm refuses, becomes the bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x[0, 0].numel() == 1:
            # not super().forward, which refuses a single position of a single sample
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        normed = [F.batch_norm(part, None, None, self.weight, self.bias, True, eps=self.eps) for part in x.split(1)]
        return normed[0] if len(normed) == 1 else torch.cat(normed)


class Pointwise(nn.Linear):
    """A 1×1(×1) convolution of a grid (B, C, *S), as a matrix product over its tokens.

    On a CPU, inference calls oneDNN by name, which adds the bias and a GELU while the product is in the cache.

    Args:
        in_channels, out_channels: C and C'.
        bias: whether there is one.
        gelu: apply GELU in its tanh form to the result.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, gelu: bool = False) -> None:
        super().__init__(in_channels, out_channels, bias=bias)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.movedim(1, -1)
        if not torch.is_grad_enabled() and on_onednn(x):
            how: tuple[Any, ...] = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, *how).movedim(-1, 1)
        result = super().forward(tokens)
        # The exact GELU has a backward more than twice as slow on CPUs.
        return (F.gelu(result, approximate="tanh") if self.gelu else result).movedim(-1, 1)


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * math.prod(weight)


def norm_layer(name: str, spatial_dims: int, channels: int) -> nn.Module:
    """``"layer"``: over channels, at each position; ``"instance"``: over positions, per channel; ``"batch"``.

    Raises:
        NetworkError: for an unknown name.
    """
    if name == "layer":
        return ChannelNorm(channels)
    if name == "instance":
        return InstanceNorm(channels)
    if name == "batch":
        return _BATCH_NORM[check_spatial_dims(spatial_dims)](channels)
    raise NetworkError("unknown norm", where=f"norm={name!r}", fix="use 'layer', 'instance' or 'batch'")
