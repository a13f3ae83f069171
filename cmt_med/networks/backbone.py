"""The CMT backbone: a pyramid of token grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmt_med.blocks.attention import attention as build_attention
from cmt_med.blocks.cmt import CMTBlock, InvertedResidualFeedForward
from cmt_med.blocks.conv import channels_last, check_spatial_dims
from cmt_med.blocks.embedding import EMBEDDINGS, PatchMerging
from cmt_med.errors import NetworkError


class Stage(nn.ModuleList):
    """Blocks of one width, one after the other, with the position bias that they may share."""

    def forward(self, x: Tensor, position: Tensor | None = None, *, checkpointing: bool = False) -> Tensor:
        """(B, C, *S) -> (B, C, *S); with ``checkpointing``, blocks are recomputed in the backward pass."""
        for block in self:
            x = checkpoint(block, x, position, use_reentrant=False) if checkpointing else block(x, position)
        return x


class CMTBackbone(nn.Module):
    """Convolutional token embedding at stride 2, then stages of CMT blocks at strides 4, 8, 16, ...

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        stem_channels: width at stride 2.
        dims: width of each stage.
        depths: number of CMT blocks of each stage.
        head_dim: channels per attention head; a stage has ``max(1, dim // head_dim)`` heads.
        attention: kind per stage, see :func:`cmt_med.blocks.attention.attention`.
        kv_strides: reduction of keys and values per stage, for lightweight attention.
        window: edge of a window in tokens, for window attention; odd blocks shift theirs.
        ffn_ratio: expansion of the feed-forwards.
        drop_path: stochastic depth, growing linearly from 0 to this rate at the last block.
        norm: norm of the token embedding, ``"instance"``, ``"layer"`` or ``"batch"``.
        embedding: token embedding, one of ``EMBEDDINGS``.
        merging: patch merging, one of ``MERGINGS``.
        checkpointing: recompute each block in the backward pass instead of keeping its intermediates.

    Attributes:
        out_channels: widths of the returned grids, finest first.
        strides: their strides.

    Raises:
        NetworkError: if the per-stage settings differ in length or do not fit together.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        stem_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        head_dim: int,
        attention: Sequence[str],
        kv_strides: Sequence[int],
        window: int,
        ffn_ratio: float,
        drop_path: float,
        norm: str,
        embedding: str = "dense",
        merging: str = "overlapping",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        per_stage = {"dims": dims, "depths": depths, "attention": attention, "kv_strides": kv_strides}
        if len({len(values) for values in per_stage.values()}) != 1:
            raise NetworkError(
                "settings per stage differ in length",
                where=", ".join(f"{name} has {len(values)}" for name, values in per_stage.items()),
                fix="give one value per stage to each",
            )
        if embedding not in EMBEDDINGS:
            raise NetworkError(
                "unknown embedding", where=f"embedding={embedding!r}", fix=f"use one of {', '.join(EMBEDDINGS)}"
            )
        self.checkpointing = checkpointing
        self.out_channels = (stem_channels, *dims)
        self.strides = tuple(2 ** (i + 1) for i in range(len(dims) + 1))
        self.stem = EMBEDDINGS[embedding](
            spatial_dims=spatial_dims, in_channels=in_channels, out_channels=stem_channels, norm=norm
        )
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        self.merges, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            self.merges.append(
                PatchMerging(
                    spatial_dims=spatial_dims, in_channels=self.out_channels[i], out_channels=dim, kind=merging
                )
            )
            blocks = []
            for j in range(depth):
                mixer = build_attention(
                    attention[i],
                    spatial_dims=spatial_dims,
                    channels=dim,
                    heads=max(1, dim // head_dim),
                    kv_stride=kv_strides[i],
                    window=window,
                    shifted=j % 2 == 1,
                )
                blocks.append(
                    CMTBlock(
                        spatial_dims=spatial_dims,
                        channels=dim,
                        attention=mixer,
                        feed_forward=InvertedResidualFeedForward(
                            spatial_dims=spatial_dims, channels=dim, ratio=ffn_ratio
                        ),
                        drop_path=rates[sum(depths[:i]) + j],
                    )
                )
            self.stages.append(Stage(blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> grids (B, out_channels[i], *ceil(S / strides[i])), finest first."""
        x = self.stem(channels_last(x))
        features = [x]
        for merge, stage in zip(self.merges, self.stages, strict=True):
            x = merge(x)
            x = stage(x, checkpointing=self.checkpointing and self.training)
            features.append(x)
        return features
