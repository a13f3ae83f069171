"""CMT-UNETR: the CMT backbone, or one of the paper's encoders, with a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cmt_med.blocks.conv import pad_depth
from cmt_med.networks.decoders.unetr import DEFAULT_SKIP
from cmt_med.networks.decoders.unetr import decoder as build_decoder
from cmt_med.networks.encoders.backbone import CMTBackbone
from cmt_med.networks.encoders.cmt import PAPER, PaperBackbone
from cmt_med.networks.heads.segmenter import Segmenter


def cmt_unetr(
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
    embedding: str = "single",
    merging: str = "overlapping",
    decoder: str = "unetr",
    skip: str = DEFAULT_SKIP,
    full_channels: int = 16,
    depth_padding: str = "zeros",
    checkpointing: bool = False,
) -> Segmenter:
    """Segmentation network for images and volumes of any size: (B, C, *S) -> logits (B, num_classes, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: in train mode, return a list: the logits, then those at strides 4 and 8.
        stem_channels, dims, depths, head_dim, attention, kv_strides, window, ffn_ratio, drop_path, embedding, merging,
            checkpointing: see :class:`cmt_med.networks.encoders.backbone.CMTBackbone`.
        norm: of the token embedding and the decoder.
        decoder: ``"unetr"`` or ``"mlp"``.
        skip: how scales join in the UNETR decoder: ``"sum"``, ``"concat"``, or ``"fusion"`` to attend across them.
        full_channels: width at full resolution; 0 stops the decoder at half resolution.
        depth_padding: ``"zeros"`` or ``"replicate"``, how 3D convolutions pad the first axis.

    Raises:
        NetworkError: if the settings do not fit together.
    """
    encoder = CMTBackbone(
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
        embedding=embedding,
        merging=merging,
        checkpointing=checkpointing,
    )
    return _with_decoder(
        encoder,
        decoder,
        depth_padding=depth_padding,
        skip=skip,
        spatial_dims=spatial_dims,
        image_channels=in_channels,
        num_classes=num_classes,
        norm=norm,
        full_channels=full_channels,
        deep_supervision=deep_supervision,
    )


def _with_decoder(encoder: CMTBackbone | PaperBackbone, kind: str, *, depth_padding: str, **settings: Any) -> Segmenter:
    decoder = build_decoder(kind, widths=encoder.out_channels, strides=encoder.strides, **settings)
    network = Segmenter(encoder, decoder)
    pad_depth(network, depth_padding)
    return network


cmt_unetr_pyramid = partial(
    cmt_unetr,
    dims=(64, 128, 256, 512),
    depths=(2, 2, 2, 2),
    attention=("window", "window", "lightweight", "lightweight"),
    kv_strides=(8, 4, 2, 1),
    embedding="grouped",
    merging="grouped",
    skip="fusion",
)
"""The product card's progressive pyramid, 64 -> 128 -> 256 -> 512 channels, with its other ideas switched on."""


def _with_paper_encoder(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    input_size: int | None = None,
    depth_padding: str = "zeros",
    drop_path: float | None = None,
    norm: str = "instance",
    decoder: str = "unetr",
    skip: str = DEFAULT_SKIP,
    full_channels: int = 16,
    checkpointing: bool = False,
) -> Segmenter:
    encoder = PaperBackbone(
        PAPER[name],
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        input_size=input_size,
        drop_path=drop_path,
        checkpointing=checkpointing,
    )
    return _with_decoder(
        encoder,
        decoder,
        depth_padding=depth_padding,
        skip=skip,
        spatial_dims=spatial_dims,
        image_channels=in_channels,
        num_classes=num_classes,
        norm=norm,
        full_channels=full_channels,
        deep_supervision=deep_supervision,
    )


PAPER_UNETRS: dict[str, Callable[..., Segmenter]] = {
    f"cmt_unetr_{name.removeprefix('cmt_')}": partial(_with_paper_encoder, name) for name in PAPER
}
"""The paper's encoders, which take the official weights, with a decoder; options as of :func:`cmt_unetr` and
:class:`cmt_med.networks.encoders.cmt.PaperBackbone`."""
