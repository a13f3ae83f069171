"""One step of a UNETR-style decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.blocks.conv import Pointwise, cells_of, conv, crop_to, norm_layer, pad_to_multiple
from cmt_med.blocks.embedding import depth_to_space, space_to_depth
from cmt_med.blocks.fusion import CrossScaleFusion
from cmt_med.blocks.readout import read_out


class ResidualConvBlock(nn.Module):
    """Two 3×3(×3) convolutions with norms, activation and a shortcut: (B, C, *S) -> (B, C', *S)."""

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = conv(spatial_dims, in_channels, out_channels, 3)
        self.norm1 = norm_layer(norm, spatial_dims, out_channels)
        self.conv2 = conv(spatial_dims, out_channels, out_channels, 3)
        self.norm2 = norm_layer(norm, spatial_dims, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = Pointwise(in_channels, out_channels)
        # In place, since no backward pass needs what it replaces: norms keep their inputs, sums nothing.
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(out)) + self.shortcut(x))


JOINS = ("sum", "concat", "fusion")


class UpBlock(nn.Module):
    """Double the resolution, join the encoder's features of that scale, convolve.

    Maps (B, C_in, *S) and a skip (B, C, *2S) to (B, C, *2S); a skip of odd size crops the upsampled grid.

    Args:
        spatial_dims: 2 or 3.
        in_channels: width C_in of the coarse grid.
        skip_channels: width C of the skip and of the result.
        norm: see :func:`cmt_med.blocks.conv.norm_layer`.
        join: how the two become one, of ``JOINS``: ``"sum"``, ``"concat"``, or ``"fusion"`` to attend across the levels.
        coarser: widths of further, coarser grids of the encoder that fusion attends to, each half the size of the one
            before, the first a quarter of the skip's.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        norm: str,
        join: str,
        coarser: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.join = join
        self.up = cells_of(Pointwise(in_channels, skip_channels * 2**spatial_dims), outputs=True)
        self.fusion = CrossScaleFusion(channels=skip_channels, levels=2 + len(coarser)) if join == "fusion" else None
        self.coarser = nn.ModuleList(Pointwise(width, skip_channels) for width in coarser)
        self.conv = ResidualConvBlock(
            spatial_dims=spatial_dims,
            in_channels=2 * skip_channels if join == "concat" else skip_channels,
            out_channels=skip_channels,
            norm=norm,
        )

    def forward(self, x: Tensor, skip: Tensor, coarser: Sequence[Tensor] = ()) -> Tensor:
        size = skip.shape[2:]
        cells = self.up(x)
        if self.fusion is None:
            even = all(n % 2 == 0 for n in size)
            if self.join == "sum":
                return self.conv(
                    depth_to_space(cells, onto=skip) if even else crop_to(depth_to_space(cells), size) + skip
                )
            if even:
                return self.conv(depth_to_space(cells, beside=skip))
            return self.conv(torch.cat([crop_to(depth_to_space(cells), size), skip], dim=1))
        levels = [skip, crop_to(depth_to_space(cells), size)]
        for i, (project, grid) in enumerate(zip(self.coarser, coarser, strict=True)):
            levels.append(crop_to(F.interpolate(project(grid), scale_factor=2.0 ** (i + 2)), size))
        return self.conv(self.fusion(levels))


class CellNorm(nn.LayerNorm):
    """Layer normalisation over all channels of a cell, (B, n·C, *S) with n positions of C channels each; C weights and biases.

    Over the channels of each position by itself it takes three times as long: a row of 16 numbers is too short to be quick.
    """

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1] // self.normalized_shape[0]
        weight, bias = self.weight.repeat(count), self.bias.repeat(count)
        return F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, self.eps).movedim(-1, 1)


class FullResolutionHead(nn.Module):
    """From half resolution (B, C, *S/2) and the image (B, C_in, *S) to logits (B, num_classes, *S).

    Each 2×2(×2) cell is predicted linearly, ``channels`` per position, from the features and from the cell's own image
    values; one convolution at full resolution then reads out across cells. Sizes are padded to even and cropped back.
    """

    def __init__(self, *, spatial_dims: int, features: int, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        cell = 2**spatial_dims
        self.expand = cells_of(
            Pointwise(features + in_channels * cell, channels * cell), inputs=in_channels, outputs=True
        )
        # Over channels, whatever the decoder's norm: the features of rare voxels are large, and without a bound at each
        # cell the logits of a small structure stay near zero for hundreds of steps (docs/results.md).
        self.norm = CellNorm(channels)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.out = read_out(spatial_dims, channels, num_classes)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        cells = self.expand(space_to_depth(pad_to_multiple(image, 2), beside=x))
        return self.out(crop_to(depth_to_space(self.act(self.norm(cells))), image.shape[2:]))


class HalfResolutionHead(nn.Module):
    """From half resolution (B, C, *S/2) to logits (B, num_classes, *S), each cell predicted linearly."""

    def __init__(self, *, spatial_dims: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.out = cells_of(Pointwise(features, num_classes * 2**spatial_dims), outputs=True)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return crop_to(depth_to_space(self.out(x)), image.shape[2:])
