"""Queries for objects: they begin at the peaks of a dense head, look at the pyramid and refine a box each.

What networks that predict a set share. DETR (Carion et al., ECCV 2020) as it converges on little data: queries begin at the
peaks of an auxiliary dense head (the mixed selection of DINO, Zhang et al., ICLR 2023), look at a few places of each grid
(deformable attention), refine their boxes from layer to layer, and learn to repair noised boxes of the references beside
(denoising, Li et al., CVPR 2022, with DINO's negatives).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import Pointwise, channels_last
from cmt_med.blocks.deformable import DeformableAttention
from cmt_med.networks.encoders.backbone import CMTBackbone
from cmt_med.networks.heads.detector import PRIOR, CentreDecoder

GROUPS = 4
"""Noised copies of the references, each once near and once far."""
NEAR, FAR = 0.4, 1.0
"""Noise of middles and edges, as shares of half the edges and of the edges: up to the first, or between the two."""
FLIPPED = 0.25
"""Share of the noised copies whose class is drawn at random."""


class Start(NamedTuple):
    """What the layers of queries begin with.

    Attributes:
        size: S, (d,).
        pyramid: of the encoder.
        grids: the pyramid with what is coarser in each grid, finest first.
        dense: maps of the auxiliary head, (B, K + 2d, *S/s).
        memory: grids with the width of queries.
        content: queries (B, M + Q, C), those of noised references first.
        boxes: of queries (B, M + Q, 2d), middles and edges as shares of the image.
        seen: which queries see which, (B, 1, M + Q, M + Q); None for all.
        noised: M.
    """

    size: Tensor
    pyramid: Sequence[Tensor]
    grids: Sequence[Tensor]
    dense: Tensor
    memory: Sequence[Tensor]
    content: Tensor
    boxes: Tensor
    seen: Tensor | None
    noised: int


class DecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to the grids, and two linear layers; each after a layer norm."""

    def __init__(self, *, spatial_dims: int, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.cross = DeformableAttention(
            spatial_dims=spatial_dims, channels=channels, heads=heads, levels=levels, points=points
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, place: Tensor, boxes: Tensor, grids: Sequence[Tensor], seen: Tensor | None) -> Tensor:
        """Queries (B, Q, C) with embeddings of their boxes (B, Q, C); ``seen`` (B, 1, Q, Q) says which queries see which."""
        normed = self.norms[0](x) + place
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(normed).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        x = x + self.cross(self.norms[1](x) + place, boxes, grids)
        result: Tensor = x + self.feed(self.norms[2](x))
        return result


class QueryNetwork(nn.Module):
    """The encoder, the auxiliary dense head, and the decoder of queries.

    Args:
        encoder: from an image to grids, finest first.
        spatial_dims: d, 2 or 3.
        num_classes: K.
        norm: of the dense head.
        stride: of the finest grid that is looked at, and of the dense head.
        queries: Q.
        channels: of queries.
        layers: of the decoder.
        heads, points: of its attention.

    Raises:
        NetworkError: for numbers that do not fit together.
    """

    takes_hints = True
    """In training it may be given the references, ``boxes`` (B, N, 2d) in voxels and ``classes`` (B, N), -1 for none."""

    def __init__(
        self, encoder: CMTBackbone, *, spatial_dims: int, num_classes: int, norm: str, stride: int, queries: int, channels: int,
        layers: int, heads: int, points: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels % heads or min(queries, layers, points) < 1:
            raise NetworkError(
                "the decoder of queries cannot be built",
                where=f"channels={channels}, heads={heads}, queries={queries}, layers={layers}, points={points}",
                why="heads divide the channels, and there is at least one of each",
                fix="use multiples of heads for channels, and numbers from 1 on",
            )
        self.dims, self.objects, self.queries = spatial_dims, num_classes, queries
        self.encoder = encoder
        self.decoder = CentreDecoder(
            spatial_dims=spatial_dims, widths=encoder.out_channels, strides=encoder.strides, num_classes=num_classes, norm=norm,
            stride=stride,
        )  # fmt: skip
        widths = encoder.out_channels[self.decoder.finest :]
        self.project = nn.ModuleList(Pointwise(width, channels) for width in widths)
        self.content = nn.Embedding(queries, channels)
        self.named = nn.Embedding(num_classes, channels)  # of noised references
        self.place = nn.Sequential(
            nn.Linear(4 * spatial_dims * _WAVES, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(spatial_dims=spatial_dims, channels=channels, heads=heads, levels=len(widths), points=points)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.classes = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(layers))
        self.refine = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, 2 * spatial_dims))
            for _ in range(layers)
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if re.match(r"classes\.\d+\.bias", name):
                    parameter.fill_(-math.log((1 - PRIOR) / PRIOR))
                elif re.match(r"refine\.\d+\.2\.", name):
                    parameter.zero_()

    def begin(self, x: Tensor, boxes: Tensor | None, classes: Tensor | None) -> Start:
        """Look at an image (B, C, *S): the grids, and the queries of the dense head's peaks behind those of noised references."""
        size = torch.tensor(x.shape[2:], device=x.device, dtype=x.dtype)
        pyramid = self.encoder(channels_last(x))
        grids = self.decoder.grids(pyramid)
        dense = torch.cat(self.decoder.maps(grids[0]), dim=1)
        memory = [project(grid) for project, grid in zip(self.project, grids, strict=True)]
        first, content = self._peaks(dense.detach().to(x.dtype), memory[0], size)
        count = 0
        seen: Tensor | None = None
        if self.training and boxes is not None and classes is not None and boxes.shape[1]:
            noised, named, seen = self._noised(boxes, classes, size)
            count = noised.shape[1]
            first, content = torch.cat([noised, first], 1), torch.cat([named, content], 1)
        return Start(size, pyramid, grids, dense, memory, content, first, seen, count)

    def refined(
        self, x: Tensor, boxes: Tensor, memory: Sequence[Tensor], seen: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The logits, boxes (as shares of the image) and embeddings of each layer.

        Boxes are learned relative to those of the layer before, which get no gradient.
        """
        said, found, embedded = [], [], []
        for layer, classify, refine in zip(self.layers, self.classes, self.refine, strict=True):
            x = layer(x, self.place(_waves(boxes)), boxes, memory, seen)
            normed = self.norm(x)
            moved = (torch.logit(boxes.clamp(1e-4, 1 - 1e-4)) + refine(normed).to(boxes.dtype)).sigmoid()
            said.append(classify(normed).to(boxes.dtype))
            found.append(moved)
            embedded.append(normed)
            boxes = moved.detach()
        return said, found, embedded

    def _peaks(self, dense: Tensor, memory: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes that queries begin with (B, Q, 2d), the largest peaks of the dense head, and what is seen there (B, Q, C)."""
        heat = dense[:, : self.objects].amax(1, keepdim=True)
        pool = F.max_pool3d if self.dims == 3 else F.max_pool2d
        heat = torch.where(pool(heat, 3, stride=1, padding=1) == heat, heat, heat - 100).flatten(1)
        count = min(self.queries, heat.shape[1])
        at = heat.topk(count, dim=1).indices
        stride = self.decoder.stride
        places = torch.stack(
            torch.meshgrid(
                *((torch.arange(n, device=dense.device) + 0.5) * stride for n in dense.shape[2:]), indexing="ij"
            )
        ).flatten(1)  # (d, P)
        reach = 4.0 * stride * dense[:, self.objects :].clamp(-8, 4).exp().flatten(2)
        reach = reach.gather(2, at[:, None].expand(-1, 2 * self.dims, -1))
        middle = places.T[at]  # (B, Q, d)
        low, high = middle - reach[:, : self.dims].transpose(1, 2), middle + reach[:, self.dims :].transpose(1, 2)
        boxes = torch.cat([(low + high) / 2 / size, (high - low) / size], -1).clamp(1e-3, 1 - 1e-3)
        there = memory.flatten(2).gather(2, at[:, None].expand(-1, memory.shape[1], -1)).transpose(1, 2)
        return boxes, there + self.content.weight[:count]

    def _noised(self, boxes: Tensor, classes: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noised references (B, M, 2d), embeddings of their classes (B, M, C), and which queries see which (B, 1, all, all)."""
        batch, number = classes.shape
        low, high = (boxes.to(size.dtype) / size.repeat(2)).chunk(2, -1)
        plain = torch.cat([(low + high) / 2, high - low], -1)
        copies = plain.repeat(1, 2 * GROUPS, 1).view(batch, GROUPS, 2, number, -1)
        middle, edges = copies.chunk(2, -1)
        signs = torch.randint(0, 2, copies.shape, device=boxes.device) * 2.0 - 1
        amount = torch.rand(copies.shape, device=boxes.device) * NEAR
        amount[:, :, 1] = NEAR + amount[:, :, 1] / NEAR * (FAR - NEAR)
        shift, scale = (signs * amount).chunk(2, -1)
        noised = (
            torch.cat([middle + shift * edges / 2, edges * (1 + scale / 2)], -1).flatten(1, 3).clamp(1e-3, 1 - 1e-3)
        )
        drawn = torch.randint(0, self.objects, (batch, 2 * GROUPS * number), device=boxes.device)
        repeated = classes.clamp_min(0).repeat(1, 2 * GROUPS)
        flipped = torch.rand(drawn.shape, device=boxes.device) < FLIPPED
        named = self.named(torch.where(flipped, drawn, repeated))
        total = noised.shape[1] + self.queries_at(size)
        group = torch.full((total,), -1, device=boxes.device)
        group[: noised.shape[1]] = torch.arange(GROUPS, device=boxes.device).repeat_interleave(2 * number)
        seen = group[:, None] == group[None]  # queries see each other, and groups themselves
        there = torch.ones((batch, total), dtype=torch.bool, device=boxes.device)
        there[:, : noised.shape[1]] = (classes >= 0).repeat(1, 2 * GROUPS)
        itself = torch.eye(total, dtype=torch.bool, device=boxes.device)
        return noised, named, ((seen[None] & there[:, None]) | itself)[:, None]

    def queries_at(self, size: Tensor) -> int:
        """Queries that an image of a size has: no more than positions of the dense head."""
        return min(self.queries, math.prod(math.ceil(int(n) / self.decoder.stride) for n in size.tolist()))


_WAVES = 8


def _waves(boxes: Tensor) -> Tensor:
    """Sines and cosines of middles and edges (B, Q, 2d) -> (B, Q, 4d · waves)."""
    rates = math.pi * 2 ** torch.arange(_WAVES, device=boxes.device, dtype=boxes.dtype)
    angles = (boxes[..., None] * rates).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def faces_of(boxes: Tensor, size: Tensor) -> Tensor:
    """Middles and edges as shares of an image -> faces in voxels, (..., 2d)."""
    middle, edges = boxes.chunk(2, -1)
    return torch.cat([(middle - edges / 2) * size, (middle + edges / 2) * size], -1)
