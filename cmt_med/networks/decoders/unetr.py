"""Decoders: from a pyramid of grids to logits. They know the pyramid's widths and strides, not the encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import INTERPOLATION, Pointwise, crop_to, norm_layer
from cmt_med.blocks.decoder import JOINS, FullResolutionHead, HalfResolutionHead, UpBlock

SUPERVISED_SCALES = 2
"""Auxiliary outputs under deep supervision, at strides 4 and 8."""

DEFAULT_SKIP = "sum"
"""In the same minutes at least as accurate as concatenation (docs/results.md, Speed)."""


def _check_strides(strides: Sequence[int]) -> None:
    if list(strides) != [2 ** (i + 1) for i in range(len(strides))]:
        raise NetworkError(
            "the decoder does not fit this pyramid",
            where=f"strides={tuple(strides)}",
            why="it doubles the resolution from level to level, down to stride 2",
            fix="use an encoder with the strides 2, 4, 8, ...",
        )


def _head(
    *, spatial_dims: int, features: int, image_channels: int, full_channels: int, num_classes: int
) -> FullResolutionHead | HalfResolutionHead:
    if full_channels < 0:
        raise NetworkError(
            "a width is negative",
            where=f"full_channels={full_channels}",
            fix="use 0 to stop at half resolution, or more",
        )
    if full_channels == 0:
        return HalfResolutionHead(spatial_dims=spatial_dims, features=features, num_classes=num_classes)
    return FullResolutionHead(
        spatial_dims=spatial_dims,
        features=features,
        in_channels=image_channels,
        channels=full_channels,
        num_classes=num_classes,
    )


class UNETRDecoder(nn.Module):
    """Joins the encoder's grid at every scale down to half resolution, then reads out at full resolution.

    A usual UNETR decoder spends most of its time in two blocks at full resolution; here, :class:`FullResolutionHead` takes
    one linear layer at half resolution and one narrow convolution.

    Args:
        spatial_dims: 2 or 3.
        image_channels: channels of the image.
        widths: of the pyramid's grids, finest first.
        strides: of the pyramid's grids: 2, 4, 8, ...
        num_classes: channels of the logits.
        norm: see :func:`cmt_med.blocks.conv.norm_layer`.
        full_channels: width at full resolution; 0 stops at half resolution.
        skip: how an upsampled grid joins the encoder's of that scale: ``"sum"``, ``"concat"``, or ``"fusion"`` to attend
            across all coarser levels of the pyramid, too.
        deep_supervision: in train mode, return a list: the logits, then those at strides 4 and 8.

    Raises:
        NetworkError: for other strides or an unknown skip.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        image_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        norm: str,
        full_channels: int,
        skip: str,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        _check_strides(strides)
        self.deep_supervision = deep_supervision
        if skip not in JOINS:
            raise NetworkError("unknown skip", where=f"skip={skip!r}", fix=f"use one of {', '.join(JOINS)}")
        self.fusion = skip == "fusion"
        self.ups = nn.ModuleList(
            UpBlock(
                spatial_dims=spatial_dims,
                in_channels=widths[i + 1],
                skip_channels=widths[i],
                norm=norm,
                join=skip,
                coarser=widths[i + 2 :] if self.fusion else (),
            )
            for i in range(len(widths) - 1)
        )
        self.head = _head(
            spatial_dims=spatial_dims,
            features=widths[0],
            image_channels=image_channels,
            full_channels=full_channels,
            num_classes=num_classes,
        )
        scales = range(1, min(1 + SUPERVISED_SCALES, len(self.ups))) if deep_supervision else ()
        self.auxiliary = nn.ModuleList(Pointwise(widths[i], num_classes) for i in scales)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor | list[Tensor]:
        """Grids (B, widths[i], *ceil(S / strides[i])) and the image (B, C, *S) to logits (B, num_classes, *S)."""
        grid = features[-1]
        coarse: list[Tensor] = []
        for i in reversed(range(len(self.ups))):
            grid = self.ups[i](grid, features[i], features[i + 2 :] if self.fusion else ())
            if self.training and 1 <= i <= len(self.auxiliary):
                coarse.insert(0, self.auxiliary[i - 1](grid))
        logits = self.head(grid, image)
        return [logits, *coarse] if self.training and self.deep_supervision else logits


class MLPDecoder(nn.Module):
    """All-MLP decoder (SegFormer, section 3.2): a linear layer per level, a sum at the finest, a linear read-out.

    SegFormer concatenates the upsampled levels and mixes them by one more linear layer, which is the same function; here
    each level is mixed at its own resolution and upsampled afterwards.

    Args:
        channels: width at which levels are summed.
        spatial_dims, image_channels, widths, strides, num_classes, norm, full_channels, deep_supervision: see
            :class:`UNETRDecoder`.

    Raises:
        NetworkError: for strides other than 2, 4, 8, ...
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        image_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        norm: str,
        full_channels: int,
        deep_supervision: bool,
        channels: int = 64,
    ) -> None:
        super().__init__()
        _check_strides(strides)
        self.deep_supervision = deep_supervision
        self.mode = INTERPOLATION[spatial_dims]
        self.levels = nn.ModuleList(Pointwise(width, channels) for width in widths)
        self.norm = norm_layer(norm, spatial_dims, channels)
        self.act = nn.LeakyReLU(0.01)
        self.head = _head(
            spatial_dims=spatial_dims,
            features=channels,
            image_channels=image_channels,
            full_channels=full_channels,
            num_classes=num_classes,
        )
        scales = range(1, min(1 + SUPERVISED_SCALES, len(widths))) if deep_supervision else ()
        self.auxiliary = nn.ModuleList(Pointwise(channels, num_classes) for _ in scales)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor | list[Tensor]:
        """Grids (B, widths[i], *ceil(S / strides[i])) and the image (B, C, *S) to logits (B, num_classes, *S)."""
        size = features[0].shape[2:]
        total = self.levels[0](features[0])
        coarse: list[Tensor] = []
        for i in range(1, len(self.levels)):
            grid = self.levels[i](features[i])
            if self.training and i <= len(self.auxiliary):
                coarse.append(self.auxiliary[i - 1](grid))
            up = F.interpolate(grid, scale_factor=2.0**i, mode=self.mode, align_corners=False)
            total = total + crop_to(up, size)
        logits = self.head(self.act(self.norm(total)), image)
        return [logits, *coarse] if self.training and self.deep_supervision else logits


def decoder(kind: str, *, skip: str, **settings: object) -> UNETRDecoder | MLPDecoder:
    """A decoder by name, ``"unetr"`` or ``"mlp"``; ``skip`` belongs to the first.

    Raises:
        NetworkError: for an unknown name, or another skip than the default with a decoder that has none.
    """
    if kind == "unetr":
        return UNETRDecoder(skip=skip, **settings)  # type: ignore[arg-type]
    if kind == "mlp" and skip != DEFAULT_SKIP:
        raise NetworkError(
            "the MLP decoder has no skips to fuse",
            where=f"decoder='mlp', skip={skip!r}",
            why="it sums the levels by linear layers",
            fix="leave skip out, or set decoder to 'unetr'",
        )
    if kind == "mlp":
        return MLPDecoder(**settings)  # type: ignore[arg-type]
    raise NetworkError("unknown decoder", where=f"decoder={kind!r}", fix="use 'unetr' or 'mlp'")
