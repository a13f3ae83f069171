"""Peers from MONAI under this package's contract: any size in, the same size out, lists only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import create_mednext
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.base.errors import NetworkError


class Peer(nn.Module):
    """A network with sizes of its own taste, for images of any size: (B, C, *S) -> (B, K, *S).

    The image is padded with zeros at the far end, and the logits are cropped back.

    Args:
        network: the network.
        multiple: sizes that it takes are multiples of this.
        fixed: the one size that it takes; None for any multiple.
    """

    def __init__(self, network: nn.Module, *, multiple: int, fixed: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network, self.multiple, self.fixed = network, multiple, fixed

    def _padded(self, size: Sequence[int]) -> list[int]:
        if self.fixed is not None:
            if any(n > f for n, f in zip(size, self.fixed, strict=True)):
                raise NetworkError(
                    "the image is larger than the network takes",
                    where=f"size {tuple(size)}",
                    why=f"its position embedding is made for {tuple(self.fixed)}",
                    fix="use a sliding window of that size, or another img_size",
                )
            return list(self.fixed)
        padded = [-(-n // self.multiple) * self.multiple for n in size]
        if all(n == self.multiple for n in padded):
            padded[-1] *= 2  # instance norm at the coarsest grid refuses a single position
        return padded

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        size = tuple(x.shape[2:])
        padded = self._padded(size)
        pads = [p for n, q in zip(reversed(size), reversed(padded), strict=True) for p in (0, q - n)]
        out = self.network(F.pad(x, pads) if any(pads) else x)
        if isinstance(out, Tensor) and out.ndim == x.ndim + 1:
            out = out.unbind(1)  # DynUNet stacks its scales, all upsampled to full size
        if isinstance(out, Tensor):
            return _corner(out, size)
        return [_corner(y, [-(-n * m // q) for n, m, q in zip(size, y.shape[2:], padded, strict=True)]) for y in out]


def _corner(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[(slice(None), slice(None), *(slice(0, n) for n in size))]


def _no_deep_supervision(name: str, wanted: bool) -> None:
    if wanted:
        raise NetworkError(
            f"{name} has no deep supervision", where="deep_supervision=True", fix="set train.deep_supervision to false"
        )


def monai_swin_unetr(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    feature_size: int = 48,
    checkpointing: bool = False,
) -> Peer:
    """MONAI's Swin UNETR: (B, C, *S) -> (B, num_classes, *S)."""
    return _swin_unetr(
        "monai_swin_unetr",
        use_v2=False,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_classes=num_classes,
        deep_supervision=deep_supervision,
        feature_size=feature_size,
        checkpointing=checkpointing,
    )


def monai_swin_unetr_v2(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    feature_size: int = 48,
    checkpointing: bool = False,
) -> Peer:
    """MONAI's Swin UNETR, second version, with a convolution at the start of each stage: (B, C, *S) -> (B, num_classes, *S)."""
    return _swin_unetr(
        "monai_swin_unetr_v2",
        use_v2=True,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_classes=num_classes,
        deep_supervision=deep_supervision,
        feature_size=feature_size,
        checkpointing=checkpointing,
    )


def _swin_unetr(
    name: str, *, use_v2: bool, deep_supervision: bool, num_classes: int, checkpointing: bool, **settings: int
) -> Peer:
    _no_deep_supervision(name, deep_supervision)
    network = SwinUNETR(out_channels=num_classes, use_v2=use_v2, use_checkpoint=checkpointing, **settings)
    return Peer(network, multiple=32)


def monai_unetr(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    img_size: int | Sequence[int] = 96,
    feature_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_heads: int = 12,
) -> Peer:
    """MONAI's UNETR, for images up to ``img_size``, to which smaller ones are padded."""
    _no_deep_supervision("monai_unetr", deep_supervision)
    fixed = (img_size,) * spatial_dims if isinstance(img_size, int) else tuple(img_size)
    network = UNETR(
        in_channels=in_channels,
        out_channels=num_classes,
        img_size=fixed,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        spatial_dims=spatial_dims,
    )
    return Peer(network, multiple=16, fixed=fixed)


def monai_segresnet(
    *, spatial_dims: int, in_channels: int, num_classes: int, deep_supervision: bool = False, init_filters: int = 16
) -> Peer:
    """MONAI's SegResNet, without its autoencoder branch."""
    _no_deep_supervision("monai_segresnet", deep_supervision)
    network = SegResNet(
        spatial_dims=spatial_dims, init_filters=init_filters, in_channels=in_channels, out_channels=num_classes
    )
    return Peer(network, multiple=8)


def monai_dynunet(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    filters: Sequence[int] = (32, 64, 128, 256, 320, 320),
) -> Peer:
    """MONAI's DynUNet as nnU-Net plans it for isotropic patches: plain convolutions, widths 32 to 320."""
    levels = len(filters)
    network = DynUNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=num_classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(filters),
        deep_supervision=deep_supervision,
        deep_supr_num=min(2, levels - 2) if deep_supervision else 1,
    )
    return Peer(network, multiple=2 ** (levels - 1))


def monai_mednext(
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    variant: str = "S",
    kernel_size: int = 3,
) -> Peer:
    """MONAI's MedNeXt, variant S, B, M or L."""
    network = create_mednext(
        variant,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=num_classes,
        kernel_size=kernel_size,
        deep_supervision=deep_supervision,
    )
    return Peer(network, multiple=16)
