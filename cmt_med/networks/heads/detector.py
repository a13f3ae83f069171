"""A detection network: the backbone, the UNETR decoder's upper levels, and maps of centres and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import Pointwise, channels_last, channels_last_weights
from cmt_med.blocks.decoder import ResidualConvBlock, UpBlock
from cmt_med.networks.encoders.backbone import CMTBackbone

PRIOR = 0.01
"""Probability of a centre at the start, at every position: the usual start of a focal loss (Lin et al., ICCV 2017, 4.1)."""


def _with_bias(layer: Pointwise, bias: float) -> Pointwise:
    assert layer.bias is not None  # it has one by default
    nn.init.constant_(layer.bias, bias)
    return layer


class CentreDecoder(nn.Module):
    """From a pyramid to maps (B, num_classes + 2d, *ceil(S / stride)), whose last 2d channels are distances to a box's faces.

    Args:
        spatial_dims: d, 2 or 3.
        widths, strides: of the pyramid's grids, finest first.
        num_classes: of objects.
        norm: see :func:`cmt_med.blocks.conv.norm_layer`.
        stride: of the maps, one of ``strides``.

    Raises:
        NetworkError: for a stride that the pyramid does not have.
    """

    def __init__(
        self, *, spatial_dims: int, widths: Sequence[int], strides: Sequence[int], num_classes: int, norm: str, stride: int
    ) -> None:  # fmt: skip
        super().__init__()
        if stride not in strides:
            raise NetworkError(
                "the pyramid has no such stride",
                where=f"stride={stride}",
                fix=f"use one of {', '.join(map(str, strides))}",
            )
        self.stride, self.finest = stride, list(strides).index(stride)
        # Named by level, as in the UNETR decoder, whose weights they can start from.
        self.ups = nn.ModuleDict(
            {
                str(i): UpBlock(
                    spatial_dims=spatial_dims, in_channels=widths[i + 1], skip_channels=widths[i], norm=norm, join="sum"
                )
                for i in range(self.finest, len(widths) - 1)
            }
        )
        width = widths[self.finest]
        towers = {"classes": num_classes, "distances": 2 * spatial_dims}
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    ResidualConvBlock(spatial_dims=spatial_dims, in_channels=width, out_channels=width, norm=norm),
                    _with_bias(Pointwise(width, count), -math.log((1 - PRIOR) / PRIOR) if name == "classes" else 0.0),
                )
                for name, count in towers.items()
            }
        )

    def grids(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid, down to the stride, with what is coarser in each grid; finest first."""
        found = [features[-1]]
        for i in reversed(range(self.finest, len(features) - 1)):
            found.insert(0, self.ups[str(i)](found[0], features[i]))
        return found

    def maps(self, grid: Tensor) -> list[Tensor]:
        """From the finest grid to the maps of classes, and of distances."""
        return [tower(grid) for tower in self.towers.values()]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(self.maps(self.grids(features)[0]), dim=1)


class CentreDetector(nn.Module):
    """Maps an image (B, C, *S) of any size to maps (B, K + 2d, *ceil(S / stride)): see :class:`CentreDecoder`."""

    def __init__(self, encoder: nn.Module, decoder: CentreDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        channels_last_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.decoder(self.encoder(channels_last(x)))
        return maps


def cmt_detector(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    stem_channels: int = 32,
    dims: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (2, 2, 2),
    head_dim: int = 32,
    attention: Sequence[str] = ("lightweight", "lightweight", "lightweight"),
    kv_strides: Sequence[int] = (4, 2, 1),
    window: int = 6,
    ffn_ratio: float = 3.0,
    drop_path: float = 0.1,
    norm: str = "instance",
    embedding: str = "single",
    merging: str = "overlapping",
    stride: int = 4,
    checkpointing: bool = False,
) -> CentreDetector:
    """The backbone of ``cmt_unetr``, whose weights it can start from, with an anchor-free head for boxes.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: channels of the image.
        num_classes: of objects.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        stride: of the maps, in voxels; objects of its size can still be told apart.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    encoder = CMTBackbone(
        spatial_dims=spatial_dims, in_channels=in_channels, stem_channels=stem_channels, dims=dims, depths=depths,
        head_dim=head_dim, attention=attention, kv_strides=kv_strides, window=window, ffn_ratio=ffn_ratio,
        drop_path=drop_path, norm=norm, embedding=embedding, merging=merging, checkpointing=checkpointing,
    )  # fmt: skip
    decoder = CentreDecoder(
        spatial_dims=spatial_dims, widths=encoder.out_channels, strides=encoder.strides, num_classes=num_classes, norm=norm,
        stride=stride,
    )  # fmt: skip
    return CentreDetector(encoder, decoder)
