"""A detection network that predicts a set: queries which look at the pyramid and refine a box each (DETR).

See :mod:`cmt_med.networks.heads.queries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmt_med.blocks.conv import channels_last_weights
from cmt_med.networks.encoders.backbone import CMTBackbone
from cmt_med.networks.heads.queries import QueryNetwork, faces_of


class SetOutput(NamedTuple):
    """What the network says in training.

    Attributes:
        classes: (L, B, Q, K), logits of each layer.
        boxes: (L, B, Q, 2d), in voxels.
        dense: maps of the auxiliary head, (B, K + 2d, *S/s).
        noised_classes, noised_boxes: (L, B, M, K) and (L, B, M, 2d), of M = 2 · groups · N noised references, the near ones of
            each group before the far ones; M is 0 without references.
    """

    classes: Tensor
    boxes: Tensor
    dense: Tensor
    noised_classes: Tensor
    noised_boxes: Tensor


class SetDetector(QueryNetwork):
    """Maps an image (B, C, *S) to (B, Q, K + 2d): logits of classes, and boxes in voxels; in training to a :class:`SetOutput`.

    Arguments as of :class:`cmt_med.networks.heads.queries.QueryNetwork`.
    """

    def __init__(self, encoder: CMTBackbone, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        channels_last_weights(self)

    def forward(self, x: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None) -> Tensor | SetOutput:
        start = self.begin(x, boxes, classes)
        said, found, _ = self.refined(start.content, start.boxes, start.memory, start.seen)
        in_voxels = torch.stack([faces_of(part, start.size) for part in found])
        logits, count = torch.stack(said), start.noised
        if self.training:
            return SetOutput(
                logits[:, :, count:],
                in_voxels[:, :, count:],
                start.dense,
                logits[:, :, :count],
                in_voxels[:, :, :count],
            )
        return torch.cat([logits[-1], in_voxels[-1]], dim=-1)


def cmt_detr(
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
    queries: int = 64,
    channels: int = 128,
    layers: int = 3,
    heads: int = 4,
    points: int = 4,
    checkpointing: bool = False,
) -> SetDetector:
    """The backbone of ``cmt_unetr``, whose weights it can start from, with a decoder of queries (DETR).

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: channels of the image.
        num_classes: K, of objects.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        stride: of the finest grid that queries look at, in voxels.
        queries: objects that can be found in one window.
        channels, layers, heads, points: of the decoder; see :class:`SetDetector`.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    encoder = CMTBackbone(
        spatial_dims=spatial_dims, in_channels=in_channels, stem_channels=stem_channels, dims=dims, depths=depths,
        head_dim=head_dim, attention=attention, kv_strides=kv_strides, window=window, ffn_ratio=ffn_ratio,
        drop_path=drop_path, norm=norm, embedding=embedding, merging=merging, checkpointing=checkpointing,
    )  # fmt: skip
    return SetDetector(
        encoder, spatial_dims=spatial_dims, num_classes=num_classes, norm=norm, stride=stride, queries=queries, channels=channels,
        layers=layers, heads=heads, points=points,
    )  # fmt: skip
