"""MONAI's RetinaNet detector over our pyramid: anchors, ATSS matching, hard negatives, and its losses, as the known baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from monai.apps.detection.networks import retinanet_detector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import Pointwise, channels_last, channels_last_weights
from cmt_med.networks.encoders.backbone import CMTBackbone
from cmt_med.networks.heads.detector import CentreDecoder

CANDIDATES = 4
"""Anchors of each level that ATSS looks at for a reference (Zhang et al., CVPR 2020), as MONAI's tutorial has it."""
SAMPLED, POSITIVE, POOL, LEAST_NEGATIVES = 64, 0.3, 20, 16
"""Anchors of an image that are learned from, their positive share, and the pool of hard negatives, as there."""
LEAST_SCORE, REPEATS = 0.02, 0.5
ABSENT = -20.0
"""Logit of a class that a box does not have."""


class DetectionLosses(NamedTuple):
    """What MONAI's detector says in training: the losses of classes and of boxes."""

    classes: Tensor
    boxes: Tensor


class _Features(nn.Module):
    """What MONAI's network calls for its grids; the parts belong to the network around it, under the names of the others."""

    def __init__(self, grids: Callable[[Tensor], list[Tensor]], channels: int) -> None:
        super().__init__()
        self.grids, self.out_channels = grids, channels

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.grids(x)


class RetinaNetOverPyramid(nn.Module):
    """Maps an image (B, C, *S) to (B, most, K + 2d), logits of classes and boxes in voxels, as :class:`SetDetector` does.

    In training with references, to the losses (:class:`DetectionLosses`); without, to the heads' maps.
    """

    takes_hints = True

    def __init__(
        self, encoder: CMTBackbone, *, spatial_dims: int, num_classes: int, norm: str, stride: int, channels: int,
        edges: Sequence[float], most: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.objects, self.dims, self.most = num_classes, spatial_dims, most
        self.encoder = encoder
        self.decoder = CentreDecoder(
            spatial_dims=spatial_dims, widths=encoder.out_channels, strides=encoder.strides, num_classes=1, norm=norm,
            stride=stride,
        )  # fmt: skip
        del self.decoder.towers  # MONAI's heads are in their place
        widths = encoder.out_channels[self.decoder.finest :]
        self.project = nn.ModuleList(Pointwise(width, channels) for width in widths)
        levels = len(widths)
        network = RetinaNet(
            spatial_dims,
            num_classes,
            len(edges),
            _Features(self._grids, channels),
            size_divisible=stride * 2 ** (levels - 1),
        )
        anchors = AnchorGeneratorWithAnchorShape(
            [2.0**i for i in range(levels)], [(edge * stride,) * spatial_dims for edge in edges]
        )
        _do_without_torchvision()
        self.detector = retinanet_detector.RetinaNetDetector(network=network, anchor_generator=anchors)
        self.detector.set_atss_matcher(num_candidates=CANDIDATES, center_in_gt=False)
        self.detector.set_hard_negative_sampler(
            batch_size_per_image=SAMPLED, positive_fraction=POSITIVE, pool_size=POOL, min_neg=LEAST_NEGATIVES
        )
        self.detector.set_target_keys(box_key="box", label_key="label")
        self.detector.set_box_selector_parameters(
            score_thresh=LEAST_SCORE, topk_candidates_per_level=1000, nms_thresh=REPEATS, detections_per_img=most
        )
        channels_last_weights(self)

    def _grids(self, x: Tensor) -> list[Tensor]:
        """The pyramid with what is coarser in each grid, all of one width."""
        grids = self.decoder.grids(self.encoder(channels_last(x)))
        return [project(grid) for project, grid in zip(self.project, grids, strict=True)]

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor | DetectionLosses | list[Tensor]:
        if not self.training:
            found: list[dict[str, Tensor]] = self.detector(x)
            return torch.stack([self._as_set(image) for image in found])
        if boxes is None or classes is None:
            maps: dict[str, list[Tensor]] = self.detector.network(_padded(x, self.detector.size_divisible))
            return [part for parts in maps.values() for part in parts]
        targets: list[dict[str, Any]] = [
            {"box": own[named >= 0].to(x.dtype), "label": named[named >= 0]}
            for own, named in zip(boxes, classes, strict=True)
        ]
        losses = self.detector(x, targets)
        # Without a positive anchor MONAI's loss leaves out the heads of boxes; several processes wait for every gradient.
        nothing = 0.0 * torch.stack([p.flatten()[0] for p in self.parameters() if p.requires_grad]).sum()
        return DetectionLosses(losses["classification"] + nothing, losses["box_regression"])

    def _as_set(self, found: dict[str, Tensor]) -> Tensor:
        """One image's boxes as rows (most, K + 2d); the rest is absent."""
        rows = found["box"].new_full((self.most, self.objects + 2 * self.dims), ABSENT)
        rows[:, self.objects :] = 0.0
        count = len(found["label"])
        scores = found["label_scores"].to(rows.dtype).clamp(1e-6, 1 - 1e-6)
        rows[:count, self.objects :] = found["box"]
        rows[torch.arange(count, device=rows.device), found["label"]] = torch.logit(scores)
        return rows


def _do_without_torchvision() -> None:
    """Give MONAI classes to compare its matcher and sampler with, where torchvision's are not there: neither is one of those."""
    for name in ("Matcher", "BalancedPositiveNegativeSampler"):
        if not isinstance(getattr(retinanet_detector, name), type):
            setattr(retinanet_detector, name, type(name, (), {}))


def _padded(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Zeros at the ends, up to a multiple along each axis."""
    pads = [p for n, m in reversed(list(zip(x.shape[2:], multiples, strict=True))) for p in (0, -n % m)]
    return nn.functional.pad(x, pads)


def cmt_retinanet(
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
    channels: int = 64,
    anchor_edges: Sequence[float] = (3.0, 4.5),
    most: int = 100,
    checkpointing: bool = False,
) -> RetinaNetOverPyramid:
    """MONAI's RetinaNet (Lin et al., ICCV 2017; nnDetection's ancestor) over the backbone of ``cmt_unetr``.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: channels of the image.
        num_classes: K, of objects.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        stride: of the finest grid with anchors, in voxels.
        channels: of the heads.
        anchor_edges: edges of anchors, in strides of their grid.
        most: boxes of an image.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    if channels % 8 or not anchor_edges or min(anchor_edges) <= 0 or most < 1:
        raise NetworkError(
            "MONAI's heads cannot be built", where=f"channels={channels}, anchor_edges={list(anchor_edges)}, most={most}",
            why="group norm divides channels by 8, and anchors have edges above 0", fix="use multiples of 8, and edges from 1 on",
        )  # fmt: skip
    encoder = CMTBackbone(
        spatial_dims=spatial_dims, in_channels=in_channels, stem_channels=stem_channels, dims=dims, depths=depths,
        head_dim=head_dim, attention=attention, kv_strides=kv_strides, window=window, ffn_ratio=ffn_ratio,
        drop_path=drop_path, norm=norm, embedding=embedding, merging=merging, checkpointing=checkpointing,
    )  # fmt: skip
    return RetinaNetOverPyramid(
        encoder, spatial_dims=spatial_dims, num_classes=num_classes, norm=norm, stride=stride, channels=channels,
        edges=anchor_edges, most=most,
    )  # fmt: skip
