"""The CMT backbone: a pyramid of token grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.attention import attention as build_attention
from cmt_med.blocks.cmt import CMTBlock, InvertedResidualFeedForward
from cmt_med.blocks.conv import channels_last, check_spatial_dims
from cmt_med.blocks.embedding import EMBEDDINGS, PatchMerging


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorms normalise by the batch as in training, but do not count it a second time."""
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # The running statistics are still handed over, since what is saved for the backward pass must stay the same.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counted in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counted


def _recomputed(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """The block's result, whose intermediates the backward pass computes again."""
    result: Tensor
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in block.modules()):
        contexts = lambda: (nullcontext(), _statistics_kept(block))  # noqa: E731
        result = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    else:
        result = checkpoint(block, *inputs, use_reentrant=False)
    return result


class Stage(nn.ModuleList):
    """Blocks of one width, one after the other, with the position bias that they may share."""

    def forward(self, x: Tensor, position: Tensor | None = None, *, checkpointing: bool = False) -> Tensor:
        """(B, C, *S) -> (B, C, *S); with ``checkpointing``, blocks are recomputed in the backward pass."""
        for block in self:
            x = _recomputed(block, x, position) if checkpointing else block(x, position)
        return x


def check_numbers(positive: Mapping[str, Sequence[int]], *, drop_path: float) -> None:
    """Refuse what would only fail, or give NaN, later.

    Raises:
        NetworkError: if a number is not a whole one from 1 on, or ``drop_path`` is not in [0, 1).
    """
    for name, numbers in positive.items():
        if any(not isinstance(n, int) or n < 1 for n in numbers):
            raise NetworkError(
                "a size is not a positive whole number", where=f"{name}={numbers!r}", fix="use 1 or more"
            )
    if not 0.0 <= drop_path < 1.0:
        raise NetworkError(
            "stochastic depth would drop every branch",
            where=f"drop_path={drop_path!r}",
            fix="use a probability from 0 to below 1",
        )


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
        embedding: str = "single",
        merging: str = "overlapping",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        per_stage = {"dims": dims, "depths": depths, "attention": attention, "kv_strides": kv_strides}
        single = [
            name for name, values in per_stage.items() if isinstance(values, str) or not isinstance(values, Sequence)
        ]
        if single or not dims:
            name = single[0] if single else "dims"
            raise NetworkError(
                f"{name} needs a value for each stage", where=f"{name}={per_stage[name]!r}",
                why="a network has at least one stage, and each has its own", fix="write a list, e.g. [window, identity]",
            )  # fmt: skip
        if len({len(values) for values in per_stage.values()}) != 1:
            raise NetworkError(
                "settings per stage differ in length",
                where=", ".join(f"{name} has {len(values)}" for name, values in per_stage.items()),
                fix="give one value per stage to each",
            )
        check_numbers(
            {
                "stem_channels": [stem_channels],
                "dims": dims,
                "depths": depths,
                "head_dim": [head_dim],
                "kv_strides": kv_strides,
                "window": [window],
            },
            drop_path=drop_path,
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
