"""Classifiers of whole images: an encoder, what is most and what is usual in each of its grids, and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import channels_last, channels_last_weights
from cmt_med.networks.encoders.backbone import CMTBackbone

SMALLEST = 32
"""Edge of an image for DenseNet, which halves it five times."""


class PooledHead(nn.Module):
    """Mean and maximum of every grid over its positions, layer norm, dropout, linear: grids (B, C_i, *S_i) -> (B, num_classes).

    On small data sets both help: texture shows in means of fine grids, a lesion in the maxima (docs/results.md).

    Args:
        channels: of each grid.
        num_classes: of the logits.
        dropout: before the linear layer.
    """

    def __init__(self, *, channels: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise NetworkError(
                "dropout would drop everything", where=f"dropout={dropout!r}", fix="use a probability from 0 to below 1"
            )
        width = 2 * sum(channels)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, grids: Sequence[Tensor]) -> Tensor:
        flat = [grid.flatten(2) for grid in grids]
        pooled = torch.cat([*(x.mean(2) for x in flat), *(x.amax(2) for x in flat)], dim=1)
        logits: Tensor = self.linear(self.dropout(self.norm(pooled)))
        return logits


class Classifier(nn.Module):
    """Maps an image (B, C, *S) of any size to logits (B, num_classes).

    Args:
        encoder: from an image to grids, finest first.
        head: from the grids to logits; None to return them.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        channels_last_weights(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        grids: list[Tensor] = self.encoder(channels_last(x))
        return grids if self.head is None else self.head(grids)


def cmt_classifier(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int | None,
    stem_channels: int = 32,
    dims: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (2, 2, 2),
    head_dim: int = 32,
    attention: Sequence[str] = ("lightweight", "lightweight", "lightweight"),
    kv_strides: Sequence[int] = (4, 2, 1),
    window: int = 6,
    ffn_ratio: float = 3.0,
    drop_path: float = 0.0,
    norm: str = "instance",
    embedding: str = "single",
    merging: str = "overlapping",
    dropout: float = 0.1,
    checkpointing: bool = False,
) -> Classifier:
    """The backbone of ``cmt_unetr``, whose weights it can start from, with a pooled head.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the logits; None for the backbone alone, which returns its grids.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        dropout: before the linear layer.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    encoder = CMTBackbone(
        spatial_dims=spatial_dims, in_channels=in_channels, stem_channels=stem_channels, dims=dims, depths=depths,
        head_dim=head_dim, attention=attention, kv_strides=kv_strides, window=window, ffn_ratio=ffn_ratio,
        drop_path=drop_path, norm=norm, embedding=embedding, merging=merging, checkpointing=checkpointing,
    )  # fmt: skip
    head = None
    if num_classes is not None:
        head = PooledHead(channels=encoder.out_channels, num_classes=num_classes, dropout=dropout)
    return Classifier(encoder, head)


class _DenseNet(nn.Module):
    """MONAI's DenseNet for images of any size: smaller ones are padded with zeros at the far end."""

    def __init__(self, network: DenseNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        size = [max(SMALLEST, n) for n in x.shape[2:]]
        if all(n < 2 * SMALLEST for n in size):
            size[-1] = 2 * SMALLEST  # BatchNorm refuses a single position in training
        pads = [p for n, q in zip(reversed(x.shape[2:]), reversed(size), strict=True) for p in (0, q - n)]
        logits: Tensor = self.network(F.pad(x, pads) if any(pads) else x)
        return logits


def monai_densenet(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    init_features: int = 64,
    growth_rate: int = 32,
    block_config: Sequence[int] = (6, 12, 24, 16),
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's DenseNet, by default DenseNet-121 (Huang et al. 2017): (B, C, *S) -> (B, num_classes)."""
    network = DenseNet(
        spatial_dims=spatial_dims, in_channels=in_channels, out_channels=num_classes, init_features=init_features,
        growth_rate=growth_rate, block_config=tuple(block_config), dropout_prob=dropout,
    )  # fmt: skip
    return _DenseNet(network)
