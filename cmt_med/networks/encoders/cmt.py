"""The paper's four networks, for images and volumes of any size (CMT, table 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.attention import LightweightAttention
from cmt_med.blocks.cmt import CMTBlock, PaperFeedForward
from cmt_med.blocks.conv import (
    Pointwise,
    channels_last,
    channels_last_weights,
    check_spatial_dims,
    norm_layer,
    pad_depth,
)
from cmt_med.blocks.embedding import PaperStem, PatchMerging
from cmt_med.blocks.position import PositionTable
from cmt_med.networks.encoders.backbone import Stage, check_numbers

KV_STRIDES = (8, 4, 2, 1)
HEADS = (1, 2, 4, 8)
HEAD_CHANNELS = 1280


@dataclass(frozen=True)
class Preset:
    """One column of the paper's table 1: widths, depths, expansion R, stem width, native input size, regularisation."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    ratio: float
    stem: int
    input_size: int
    drop_path: float
    dropout: float


PAPER: dict[str, Preset] = {
    "cmt_ti": Preset((46, 92, 184, 368), (2, 2, 10, 2), 3.6, 16, 160, 0.10, 0.1),
    "cmt_xs": Preset((52, 104, 208, 416), (3, 3, 12, 3), 3.77, 16, 192, 0.08, 0.1),
    "cmt_s": Preset((64, 128, 256, 512), (3, 3, 16, 3), 4.0, 32, 224, 0.10, 0.1),
    "cmt_b": Preset((76, 152, 304, 608), (4, 4, 20, 4), 4.0, 38, 256, 0.25, 0.3),
}


class PaperBackbone(nn.Module):
    """The paper's encoder: an image (B, C, *S) to five grids at strides 2, 4, 8, 16 and 32, finest first.

    It differs from the authors' code in what that code refuses: any number of channels, any size (position tables are
    interpolated, odd edges padded with zeros), and volumes.

    Args:
        preset: a column of the paper's table.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        input_size: edge of the image that the position tables belong to; None for the paper's.
        depth_padding: ``"zeros"`` or ``"replicate"``, how 3D convolutions pad the first axis.
        drop_path: stochastic depth at the last block, growing linearly from 0; None for the paper's.
        checkpointing: recompute each block in the backward pass instead of keeping its intermediates.

    Attributes:
        out_channels, strides: of the grids, finest first.

    Raises:
        NetworkError: for an input size that 32 does not divide, or an unknown padding; in training, for a batch whose
            coarsest grids have one position altogether, of which BatchNorm can take no variance.
    """

    def __init__(
        self,
        preset: Preset,
        *,
        spatial_dims: int,
        in_channels: int,
        input_size: int | None = None,
        depth_padding: str = "zeros",
        drop_path: float | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        edge = preset.input_size if input_size is None else input_size
        if edge < 32 or edge % 32:
            raise NetworkError(
                "position tables cannot be made for this size",
                where=f"input_size={edge}",
                why="the last stage has stride 32",
                fix="use a multiple of 32; images of any size can be given to the network all the same",
            )
        self.input_size, self.checkpointing = edge, checkpointing
        self.out_channels = (preset.stem, *preset.dims)
        self.strides = (2, 4, 8, 16, 32)
        self.stem = PaperStem(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=preset.stem)
        self.merges, self.stages, self.positions = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        highest = preset.drop_path if drop_path is None else drop_path
        check_numbers({}, drop_path=highest)
        rates = iter(torch.linspace(0, highest, sum(preset.depths)).tolist())
        for i, (dim, depth) in enumerate(zip(preset.dims, preset.depths, strict=True)):
            self.merges.append(
                PatchMerging(
                    spatial_dims=spatial_dims, in_channels=self.out_channels[i], out_channels=dim, kind="patch"
                )
            )
            self.positions.append(
                PositionTable(
                    spatial_dims=spatial_dims, heads=HEADS[i], size=edge // self.strides[i + 1], kv_stride=KV_STRIDES[i]
                )
            )
            self.stages.append(
                Stage(
                    CMTBlock(
                        spatial_dims=spatial_dims,
                        channels=dim,
                        attention=LightweightAttention(
                            spatial_dims=spatial_dims,
                            channels=dim,
                            heads=HEADS[i],
                            kv_stride=KV_STRIDES[i],
                            norm="batch",
                        ),
                        feed_forward=PaperFeedForward(spatial_dims=spatial_dims, channels=dim, ratio=preset.ratio),
                        drop_path=next(rates),
                        eps=1e-6,
                    )
                    for _ in range(depth)
                )
            )
        self.apply(_initialise)
        pad_depth(self, depth_padding)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> grids (B, out_channels[i], *ceil(S / strides[i])), finest first."""
        if self.training and len(x) == 1 and all(n <= self.strides[-1] for n in x.shape[2:]):
            raise NetworkError(
                "BatchNorm needs more than one position",
                where=f"a batch of one image of {tuple(x.shape[2:])}",
                why=f"at stride {self.strides[-1]} a single position is left of it",
                fix="train with larger patches or more of them in a batch",
            )
        x = self.stem(channels_last(x))
        grids = [x]
        for i, (merge, position, stage) in enumerate(zip(self.merges, self.positions, self.stages, strict=True)):
            x = merge(x)
            size = tuple(x.shape[2:])
            bias = position(size, tuple(-(-n // KV_STRIDES[i]) for n in size))
            x = stage(x, bias, checkpointing=self.checkpointing and self.training)
            grids.append(x)
        return grids


class CMTHead(nn.Module):
    """The paper's classifier: 1×1 convolution to 1280, BN, Swish, global average, dropout, linear."""

    def __init__(self, *, spatial_dims: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = Pointwise(channels, HEAD_CHANNELS)
        self.norm = norm_layer("batch", spatial_dims, HEAD_CHANNELS)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, num_classes)"""
        pooled = self.act(self.norm(self.conv(x))).flatten(2).mean(2)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class CMT(nn.Module):
    """A network of the paper: an image (B, C, *S) to class logits (B, num_classes).

    Args:
        name: ``"cmt_ti"``, ``"cmt_xs"``, ``"cmt_s"`` or ``"cmt_b"``.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the logits; None for the backbone alone, which returns its five grids.
        dropout: before the classifier; None for the paper's.
        input_size, depth_padding, drop_path, checkpointing: see :class:`PaperBackbone`.
    """

    def __init__(
        self,
        name: str,
        *,
        spatial_dims: int,
        in_channels: int,
        num_classes: int | None,
        input_size: int | None = None,
        depth_padding: str = "zeros",
        drop_path: float | None = None,
        dropout: float | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        preset = PAPER[name]
        self.backbone = PaperBackbone(
            preset,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            input_size=input_size,
            depth_padding=depth_padding,
            drop_path=drop_path,
            checkpointing=checkpointing,
        )
        self.head: CMTHead | None = None
        if num_classes is not None:
            self.head = CMTHead(
                spatial_dims=spatial_dims,
                channels=preset.dims[-1],
                num_classes=num_classes,
                dropout=preset.dropout if dropout is None else dropout,
            )
        channels_last_weights(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        grids: list[Tensor] = self.backbone(x)
        return grids if self.head is None else self.head(grids[-1])


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


PAPER_NETWORKS: dict[str, Callable[..., CMT]] = {name: partial(CMT, name) for name in PAPER}
