"""From voxels to tokens: the convolutional token embedding, and merging between stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import (
    Pointwise,
    cells_of,
    channels_last,
    conv,
    groups_near,
    norm_layer,
    pad_to_multiple,
)


def space_to_depth(x: Tensor, *, beside: Tensor | None = None) -> Tensor:
    """Move each 2×2(×2) cell into the channels: (B, C, *S) -> (B, 2^dims·C, *S/2); sizes must be even.

    ``beside`` (B, C', *S/2) is concatenated in front, in the same copy: (B, C' + 2^dims·C, *S/2).
    """
    dims = x.ndim - 2
    x = x.movedim(1, -1)  # (B, *S, C)
    shape = [x.shape[0], *itertools.chain.from_iterable((n // 2, 2) for n in x.shape[1:-1]), x.shape[-1]]
    x = x.reshape(shape)  # (B, S1/2, 2, S2/2, 2, ..., C)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    if beside is None:
        return x.flatten(1 + dims).movedim(-1, 1)
    parts = x.flatten(1 + dims, 2 * dims).unbind(1 + dims)
    return torch.cat([beside.movedim(1, -1), *parts], dim=-1).movedim(-1, 1)


def depth_to_space(x: Tensor, *, beside: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """The inverse of :func:`space_to_depth`: (B, 2^dims·C, *S) -> (B, C, *2S).

    ``beside`` (B, C', *2S) is concatenated behind, in the same copy: (B, C + C', *2S); ``onto`` (B, C, *2S) is added.
    """
    dims = x.ndim - 2
    x = x.movedim(1, -1)  # (B, *S, 2^dims·C)
    size = x.shape[1:-1]
    x = x.unflatten(-1, (*(2,) * dims, -1))  # (B, S1, S2, ..., 2, 2, ..., C)
    x = x.permute(0, *itertools.chain.from_iterable((1 + i, 1 + dims + i) for i in range(dims)), 2 * dims + 1)
    if beside is not None:
        x = torch.cat([x, beside.movedim(1, -1).reshape(*x.shape[:-1], -1)], dim=-1)
    if onto is not None:
        x = onto.movedim(1, -1).reshape(x.shape) + x  # in this order: the sum lies in memory as its first part does
    return x.reshape(x.shape[0], *(2 * n for n in size), -1).movedim(-1, 1)


class ConvTokenEmbedding(nn.Module):
    """Voxels (B, C, *S) to tokens at half resolution (B, C', *ceil(S/2)), by dense convolutions.

    The image's 2×2(×2) cells become channels, and two convolutions with norm and activation follow: one of ``kernel``, then one
    of 3×3(×3) with a residual. A 3×3(×3) convolution of cells sees as much as a strided 6×6(×6) one of voxels, and nothing is
    computed at full resolution, where most of the time of a UNETR-style network goes. Odd sizes are padded at the far end.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: C and C'.
        norm: see :func:`cmt_med.blocks.conv.norm_layer`.
        kernel: of the first convolution, 3, or 1 for a linear projection of each cell.
    """

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, norm: str, kernel: int = 3) -> None:
        super().__init__()
        cells = in_channels * 2**spatial_dims
        embed = Pointwise(cells, out_channels) if kernel == 1 else conv(spatial_dims, cells, out_channels, kernel)
        self.embed = cells_of(embed, inputs=in_channels)
        self.norm1 = norm_layer(norm, spatial_dims, out_channels)
        self.conv = conv(spatial_dims, out_channels, out_channels, 3)
        self.norm2 = norm_layer(norm, spatial_dims, out_channels)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(space_to_depth(pad_to_multiple(x, 2)))
        x = self.act(self.norm1(self.embed(x)))
        return self.act(x + self.norm2(self.conv(x)))


DILATIONS = (1, 2, 3)


class GroupedTokenEmbedding(nn.Module):
    """Convolutional token embedding by stacked grouped convolutions of growing dilation: (B, C, *S) -> (B, C', *ceil(S/2)).

    A linear projection of the 2×2(×2) cells, then 3×3(×3) convolutions in groups of about 8 channels (as the width can be
    divided) with dilations 1, 2 and 3, each with norm, activation and a residual.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.embed = LinearTokenEmbedding(
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, norm=norm
        )
        groups = groups_near(out_channels // 8, out_channels)
        self.convs = nn.ModuleList(
            conv(spatial_dims, out_channels, out_channels, 3, groups=groups, dilation=dilation)
            for dilation in DILATIONS
        )
        self.norms = nn.ModuleList(norm_layer(norm, spatial_dims, out_channels) for _ in DILATIONS)
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = x + self.act(norm(layer(x)))
        return x


class LinearTokenEmbedding(nn.Module):
    """Plain linear patch embedding: each 2×2(×2) cell by itself, then a norm: (B, C, *S) -> (B, C', *ceil(S/2))."""

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.project = cells_of(Pointwise(in_channels * 2**spatial_dims, out_channels), inputs=in_channels)
        self.norm = norm_layer(norm, spatial_dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(channels_last(space_to_depth(pad_to_multiple(x, 2)))))


class PaperStem(nn.Module):
    """The paper's stem: three 3×3(×3) convolutions, strides 2, 1, 1, each followed by GELU and norm (CMT, section 3.1)."""

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, norm: str = "batch") -> None:
        super().__init__()
        widths = (in_channels, out_channels, out_channels)
        self.convs = nn.ModuleList(
            conv(spatial_dims, width, out_channels, 3, stride=2 if i == 0 else 1) for i, width in enumerate(widths)
        )
        self.norms = nn.ModuleList(norm_layer(norm, spatial_dims, out_channels) for _ in widths)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = norm(self.act(layer(x)))
        return x


EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "single": partial(ConvTokenEmbedding, kernel=1),
    "dense": ConvTokenEmbedding,
    "grouped": GroupedTokenEmbedding,
    "paper": PaperStem,
    "linear": LinearTokenEmbedding,
}


class PatchMerging(nn.Module):
    """Halve the resolution between stages, then a norm over channels: (B, C, *S) -> (B, C', *ceil(S/2)).

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: C and C'.
        kind: ``"overlapping"``, a dense 3×3(×3) convolution of stride 2; ``"patch"``, the paper's, of the 2×2(×2)
            neighbours; ``"grouped"``, of the neighbours in groups of about 16 channels (as the widths can be divided).
    """

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, kind: str = "overlapping") -> None:
        super().__init__()
        if kind not in MERGINGS:
            raise NetworkError("unknown merging", where=f"merging={kind!r}", fix=f"use one of {', '.join(MERGINGS)}")
        kernel = 3 if kind == "overlapping" else 2
        groups = groups_near(in_channels // 16, in_channels, out_channels) if kind == "grouped" else 1
        self.conv = conv(spatial_dims, in_channels, out_channels, kernel, stride=2, groups=groups)
        self.norm = norm_layer("layer", spatial_dims, out_channels)
        self.cells = kernel == 2

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(pad_to_multiple(x, 2) if self.cells else x))


MERGINGS = ("overlapping", "patch", "grouped")
