"""A network that finds objects with a mask each: queries, and features of positions that they are multiplied with.

Mask2Former (Cheng et al., CVPR 2022) on the queries of :mod:`cmt_med.networks.heads.queries`. In place of masked attention, a
query looks at a few places around its box (deformable attention), which the layers refine. Features of positions know nothing of
where they are, and objects of a kind look alike: so each mask begins as the ellipsoid in its query's box, in coordinates relative
to it (as those of CondInst, Tian et al., ECCV 2020), whose size and place the query corrects; the product with the features
adds the outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import Pointwise, channels_last_weights
from cmt_med.blocks.decoder import UpBlock
from cmt_med.networks.encoders.backbone import CMTBackbone
from cmt_med.networks.heads.queries import GROUPS, QueryNetwork, faces_of

FAR = 12.0
"""Along each axis, the most that a position far from a query's box takes from the logit of its mask."""
EDGE = 2.0
"""Logit of a mask in the middle of its query's box at the start; it is 0 at the box's faces."""


class MaskOutput(NamedTuple):
    """What the network says in training.

    Attributes:
        classes: (L, B, Q, K), logits of each layer.
        boxes: (L, B, Q, 2d), in voxels.
        masks: (L, B, Q, *S/m), logits.
        dense: maps of the auxiliary head, (B, K + 2d, *S/s).
        noised_classes, noised_boxes: as of :class:`cmt_med.networks.heads.set_detector.SetOutput`.
        noised_masks: (L, B, groups · N, *S/m), of the near ones alone.
    """

    classes: Tensor
    boxes: Tensor
    masks: Tensor
    dense: Tensor
    noised_classes: Tensor
    noised_boxes: Tensor
    noised_masks: Tensor


class MaskQueries(QueryNetwork):
    """Maps an image (B, C, *S) to (B, Q, K + 2d + P): logits of classes, boxes in voxels, and logits of masks.

    P is the number of positions of a mask, *ceil(S / mask_stride), in C order. In training it gives a :class:`MaskOutput`.

    Args:
        encoder: from an image to grids, finest first.
        mask_stride: of masks, in voxels: ``stride`` or half of it.
        settings: as of :class:`cmt_med.networks.heads.queries.QueryNetwork`.

    Raises:
        NetworkError: for another stride.
    """

    def __init__(self, encoder: CMTBackbone, *, mask_stride: int, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        stride, level, channels = self.decoder.stride, self.decoder.finest, int(settings["channels"])
        if mask_stride not in (stride, stride / 2) or mask_stride not in encoder.strides:
            raise NetworkError(
                "masks cannot have this stride", where=f"mask_stride={mask_stride}, stride={stride}",
                why=f"they are drawn at the stride that queries look at, or at half of it; the pyramid has {encoder.strides}",
                fix="use mask_stride: 2 with stride: 4, or 4 with 4",
            )  # fmt: skip
        self.mask_stride = mask_stride
        widths = encoder.out_channels
        self.up: UpBlock | None = None
        if mask_stride < stride:
            self.up = UpBlock(
                spatial_dims=self.dims, in_channels=widths[level], skip_channels=widths[level - 1], norm=settings["norm"],
                join="sum",
            )  # fmt: skip
        width = widths[level - 1] if self.up is not None else widths[level]
        self.pixels = Pointwise(width, width)
        self.mask = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, width + 2 * self.dims + 1)
        )
        channels_last_weights(self)

    def forward(self, x: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None) -> Tensor | MaskOutput:
        start = self.begin(x, boxes, classes)
        finest = start.grids[0]
        pixels = self.pixels(finest if self.up is None else self.up(finest, start.pyramid[self.decoder.finest - 1]))
        said, found, embedded = self.refined(start.content, start.boxes, start.memory, start.seen)
        in_voxels = torch.stack([faces_of(part, start.size) for part in found])
        logits, count = torch.stack(said), start.noised
        if not self.training:
            masks = self._masks(embedded[-1], found[-1], pixels, start.size)
            return torch.cat([logits[-1], in_voxels[-1], masks.flatten(2)], dim=-1)
        kept = torch.cat([_near(count, x.device), torch.arange(count, logits.shape[2], device=x.device)])
        masks = torch.stack([
            self._masks(query[:, kept], box[:, kept], pixels, start.size) for query, box in zip(embedded, found, strict=True)
        ])  # fmt: skip
        near = count // 2
        return MaskOutput(
            logits[:, :, count:], in_voxels[:, :, count:], masks[:, :, near:], start.dense, logits[:, :, :count],
            in_voxels[:, :, :count], masks[:, :, :near],
        )  # fmt: skip

    def _masks(self, queries: Tensor, boxes: Tensor, pixels: Tensor, size: Tensor) -> Tensor:
        """Logits (B, Q, *S/m) of the masks of queries (B, Q, C) with boxes (B, Q, 2d), shares of the image."""
        dims, width = self.dims, pixels.shape[1]
        said = self.mask(queries).to(boxes.dtype)
        outline, sharp, shift, level = said.split([width, dims, dims, 1], -1)
        middle, edges = boxes.detach().chunk(2, -1)
        product = torch.einsum("bqc,bcp->bqp", outline / width**0.5, pixels.flatten(2).to(boxes.dtype))
        total = product.view(*product.shape[:2], *pixels.shape[2:]) + (level + EDGE).view(*level.shape[:2], *[1] * dims)
        for axis, count in enumerate(pixels.shape[2:]):
            place = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) * self.mask_stride / size[axis]
            half = (edges[..., axis, None] / 2).clamp_min(1e-3)
            apart = (place - middle[..., axis, None]) / half - shift[..., axis, None].tanh()
            lost = EDGE * F.softplus(sharp[..., axis, None] + 0.5413) * apart.square()  # softplus is 1 at the start
            total = total - _bounded(lost).view(*lost.shape[:2], *(count if i == axis else 1 for i in range(dims)))
        return total


def _bounded(lost: Tensor) -> Tensor:
    """Nearly as it is where it is small, and no more than :data:`FAR` where it is large."""
    return FAR * lost / (FAR + lost)


def _near(count: int, device: torch.device) -> Tensor:
    """Which of ``count`` noised references are near ones: those of each group come before its far ones."""
    return torch.arange(count, device=device).view(GROUPS, 2, count // (2 * GROUPS))[:, 0].flatten()


def cmt_mask_queries(
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
    mask_stride: int = 2,
    queries: int = 64,
    channels: int = 128,
    layers: int = 3,
    heads: int = 4,
    points: int = 4,
    checkpointing: bool = False,
) -> MaskQueries:
    """The backbone of ``cmt_unetr``, whose weights it can start from, with queries for objects and their masks.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: channels of the image.
        num_classes: K, of objects.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        stride: of the finest grid that queries look at, in voxels.
        mask_stride: of masks; ``stride`` or half of it.
        queries: objects that can be found in one window.
        channels, layers, heads, points: of the decoder; see :class:`cmt_med.networks.heads.queries.QueryNetwork`.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    encoder = CMTBackbone(
        spatial_dims=spatial_dims, in_channels=in_channels, stem_channels=stem_channels, dims=dims, depths=depths,
        head_dim=head_dim, attention=attention, kv_strides=kv_strides, window=window, ffn_ratio=ffn_ratio,
        drop_path=drop_path, norm=norm, embedding=embedding, merging=merging, checkpointing=checkpointing,
    )  # fmt: skip
    return MaskQueries(
        encoder, mask_stride=mask_stride, spatial_dims=spatial_dims, num_classes=num_classes, norm=norm, stride=stride,
        queries=queries, channels=channels, layers=layers, heads=heads, points=points,
    )  # fmt: skip
