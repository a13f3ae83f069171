"""The CMT block: local perception unit, attention, inverted residual feed-forward (CMT, section 3.2, equations 1-6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt_med.blocks.conv import ChannelNorm, Pointwise, norm_layer
from cmt_med.blocks.depthwise import depthwise


class DropPath(nn.Module):
    """Drops the residual branch of whole samples with probability ``rate`` while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand((x.shape[0], *(1,) * (x.ndim - 1)), device=x.device) < keep
        return x * (mask.to(x.dtype) / keep)


class LocalPerceptionUnit(nn.Module):
    """``x + DWConv(x)`` (equation 2): translation-invariant position information, no norm and no activation."""

    def __init__(self, *, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.conv = depthwise(spatial_dims, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class InvertedResidualFeedForward(nn.Module):
    """Expand, depthwise convolution with a shortcut inside, project (equation 4).

    ``1×1 -> GELU -> norm -> (DW + identity) -> GELU -> norm -> 1×1``, hidden width ``int(channels * ratio)``. With
    ``norm="layer"`` the statistics do not depend on the batch.
    """

    def __init__(self, *, spatial_dims: int, channels: int, ratio: float, norm: str = "layer") -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.expand = Pointwise(channels, hidden, gelu=True)
        self.conv = depthwise(spatial_dims, hidden)
        self.norm = norm_layer(norm, spatial_dims, hidden)
        self.project = Pointwise(hidden, channels)
        self.act = nn.GELU(approximate="tanh")  # the exact GELU has a backward more than twice as slow on CPUs

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        x = self.norm(self.act(x + self.conv(x)))
        return self.project(x)


class PaperFeedForward(nn.Module):
    """The paper's own inverted residual feed-forward, with BatchNorm after every part and the exact GELU.

    ``1×1 -> GELU -> BN -> (DW + identity) -> GELU -> BN -> 1×1 -> BN``, hidden width ``int(channels * ratio)``.
    """

    def __init__(self, *, spatial_dims: int, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.expand = Pointwise(channels, hidden)
        self.norm1 = norm_layer("batch", spatial_dims, hidden)
        self.conv = depthwise(spatial_dims, hidden)
        self.norm2 = norm_layer("batch", spatial_dims, hidden)
        self.project = Pointwise(hidden, channels)
        self.norm3 = norm_layer("batch", spatial_dims, channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.act(self.expand(x)))
        x = self.norm2(self.act(x + self.conv(x)))
        return self.norm3(self.project(x))


class CMTBlock(nn.Module):
    """One block over a grid (B, C, *S); its attention and its feed-forward are handed in built.

    Args:
        spatial_dims: 2 or 3.
        channels: width C.
        attention: a module from (B, C, *S) to (B, C, *S); ``nn.Identity`` switches the branch off.
        feed_forward: a module from (B, C, *S) to (B, C, *S).
        drop_path: probability with which the two normalised branches are dropped per sample.
        eps: of the two norms.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: int,
        attention: nn.Module,
        feed_forward: nn.Module,
        drop_path: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.local = LocalPerceptionUnit(spatial_dims=spatial_dims, channels=channels)
        # With identity attention the branch is left out: x + norm(x) would be a control with parameters of its own.
        self.has_attention = not isinstance(attention, nn.Identity)
        if self.has_attention:
            self.norm1 = ChannelNorm(channels, eps=eps)
            self.attention = attention
        self.norm2 = ChannelNorm(channels, eps=eps)
        self.feed_forward = feed_forward
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """``position`` (h, N, M) is the bias that some attentions take."""
        x = self.local(x)
        if self.has_attention:
            normed = self.norm1(x)
            mixed = self.attention(normed) if position is None else self.attention(normed, position)
            x = x + self.drop_path(mixed)
        return x + self.drop_path(self.feed_forward(self.norm2(x)))
