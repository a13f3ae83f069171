"""The depthwise convolution's own backward, against autograd in double precision."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cmt_med.blocks.conv import channels_last
from cmt_med.blocks.depthwise import DepthwiseConv3d


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 8, 17]),
    seed=st.integers(0, 99),
)
def test_depthwise_gradients_equal_autograd(size: tuple[int, int, int], batch: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = DepthwiseConv3d(channels, channels, 3, padding=1, groups=channels)
    x = channels_last(torch.randn(batch, channels, *size)).requires_grad_()
    g = torch.randn(batch, channels, *size)
    y = layer(x)
    ours = torch.autograd.grad(y, [x, layer.weight, layer.bias], g)
    reference_y = F.conv3d(x.double(), layer.weight.double(), layer.bias.double(), padding=1, groups=channels)
    reference = torch.autograd.grad(reference_y, [x, layer.weight, layer.bias], g.double())
    torch.testing.assert_close(y.double(), reference_y, rtol=1e-4, atol=1e-5)
    for ours_i, reference_i in zip(ours, reference, strict=True):
        torch.testing.assert_close(ours_i.double(), reference_i.double(), rtol=1e-4, atol=1e-4)
