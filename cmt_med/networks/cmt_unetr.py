"""CMT-UNETR: the CMT backbone with a UNETR-style decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cmt_med.blocks.conv import Pointwise, channels_last, channels_last_weights
from cmt_med.blocks.decoder import FullResolutionHead, HalfResolutionHead, UpBlock
from cmt_med.networks.backbone import CMTBackbone

SUPERVISED_SCALES = 2
"""Auxiliary outputs under deep supervision, at strides 4 and 8."""


class CMTUNETR(nn.Module):
    """Segmentation network for images and volumes of any size: (B, C, *S) -> logits (B, num_classes, *S).

    The decoder joins the encoder's grid at every scale down to half resolution. A usual UNETR decoder spends most of its
    time in two blocks at full resolution; here, :class:`FullResolutionHead` takes one linear layer at half resolution and
    one narrow convolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: in train mode, return a list: the logits, then those at strides 4 and 8.
        full_channels: width at full resolution; 0 stops the decoder at half resolution.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, norm: see
            :class:`cmt_med.networks.backbone.CMTBackbone`; ``norm`` is the decoder's, too.

    Raises:
        NetworkError: if the settings do not fit together.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
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
        full_channels: int = 16,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.backbone = CMTBackbone(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            stem_channels=stem_channels,
            dims=dims,
            depths=depths,
            head_dim=head_dim,
            attention=attention,
            kv_strides=kv_strides,
            window=window,
            ffn_ratio=ffn_ratio,
            drop_path=drop_path,
            norm=norm,
        )
        widths = self.backbone.out_channels
        self.ups = nn.ModuleList(
            UpBlock(spatial_dims=spatial_dims, in_channels=widths[i + 1], skip_channels=widths[i], norm=norm)
            for i in range(len(widths) - 1)
        )
        self.head: FullResolutionHead | HalfResolutionHead
        if full_channels:
            self.head = FullResolutionHead(
                spatial_dims=spatial_dims,
                features=widths[0],
                in_channels=in_channels,
                channels=full_channels,
                num_classes=num_classes,
            )
        else:
            self.head = HalfResolutionHead(spatial_dims=spatial_dims, features=widths[0], num_classes=num_classes)
        self.auxiliary = nn.ModuleList()
        if deep_supervision:
            scales = range(1, min(1 + SUPERVISED_SCALES, len(self.ups)))
            self.auxiliary.extend(Pointwise(widths[i], num_classes) for i in scales)
        channels_last_weights(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        image = channels_last(x)
        features = self.backbone(image)
        grid = features[-1]
        coarse: list[Tensor] = []
        for i in reversed(range(len(self.ups))):
            grid = self.ups[i](grid, features[i])
            if self.training and 1 <= i <= len(self.auxiliary):
                coarse.insert(0, self.auxiliary[i - 1](grid))
        logits = self.head(grid, image)
        return [logits, *coarse] if self.training and self.deep_supervision else logits
