"""From voxels to tokens: the convolutional token embedding, and merging between stages."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last, conv, norm_layer, pad_to_multiple


def space_to_depth(x: Tensor) -> Tensor:
    """Move each 2×2(×2) cell into the channels: (B, C, *S) -> (B, 2^dims·C, *S/2); sizes must be even."""
    dims = x.ndim - 2
    x = x.movedim(1, -1)  # (B, *S, C)
    shape = [x.shape[0], *itertools.chain.from_iterable((n // 2, 2) for n in x.shape[1:-1]), x.shape[-1]]
    x = x.reshape(shape)  # (B, S1/2, 2, S2/2, 2, ..., C)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return x.flatten(1 + dims).movedim(-1, 1)


def depth_to_space(x: Tensor) -> Tensor:
    """The inverse of :func:`space_to_depth`: (B, 2^dims·C, *S) -> (B, C, *2S)."""
    dims = x.ndim - 2
    x = x.movedim(1, -1)  # (B, *S, 2^dims·C)
    size = x.shape[1:-1]
    x = x.unflatten(-1, (*(2,) * dims, -1))  # (B, S1, S2, ..., 2, 2, ..., C)
    x = x.permute(0, *itertools.chain.from_iterable((1 + i, 1 + dims + i) for i in range(dims)), 2 * dims + 1)
    return x.reshape(x.shape[0], *(2 * n for n in size), -1).movedim(-1, 1)


class ConvTokenEmbedding(nn.Module):
    """Voxels (B, C, *S) to tokens at half resolution (B, C', *ceil(S/2)).

    The image's 2×2(×2) cells become channels, and two stacked 3×3(×3) convolutions with norm and activation follow, the
    second with a residual. The first has the receptive field of a strided 6×6(×6) convolution, and nothing is computed at
    full resolution, where most of the time of a UNETR-style network goes. Odd sizes are padded at the far end.
    """

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.embed = conv(spatial_dims, in_channels * 2**spatial_dims, out_channels, 3)
        self.norm1 = norm_layer(norm, spatial_dims, out_channels)
        self.conv = conv(spatial_dims, out_channels, out_channels, 3)
        self.norm2 = norm_layer(norm, spatial_dims, out_channels)
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(space_to_depth(pad_to_multiple(x, 2)))
        x = self.act(self.norm1(self.embed(x)))
        return self.act(x + self.norm2(self.conv(x)))


class PatchMerging(nn.Module):
    """Halve the resolution between stages: (B, C, *S) -> (B, C', *ceil(S/2)), overlapping 3×3(×3), then a norm."""

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(spatial_dims, in_channels, out_channels, 3, stride=2)
        self.norm = norm_layer("layer", spatial_dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))
