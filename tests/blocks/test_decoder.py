"""Parts of the decoder, against what they are said to compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmt_med.blocks.conv import channels_last
from cmt_med.blocks.decoder import JOINS, CellNorm, UpBlock


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_a_cell_is_normalised_as_one(size: tuple[int, ...]) -> None:
    count, channels = 2 ** len(size), 3
    norm = CellNorm(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -3.0]))
        norm.bias.copy_(torch.tensor([0.0, 5.0, 1.0]))
        x = channels_last(torch.randn(2, count * channels, *size) * 7 + 3)
        found = norm(x).numpy()
    cells = x.numpy().astype(np.float64)
    normed = (cells - cells.mean(1, keepdims=True)) / np.sqrt(cells.var(1, keepdims=True) + 1e-5)
    for channel in range(count * channels):  # channels of the first position, of the second, ...
        weight, bias = norm.weight[channel % channels].item(), norm.bias[channel % channels].item()
        np.testing.assert_allclose(found[:, channel], normed[:, channel] * weight + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 8, 4), (5, 8, 3)], ids=["even", "odd"])
@pytest.mark.parametrize("join", JOINS)
def test_scales_join_at_the_size_of_the_skip(join: str, size: tuple[int, ...]) -> None:
    """Channels-last or not, with gradients or without: one function of both grids."""
    torch.manual_seed(0)
    block = UpBlock(spatial_dims=3, in_channels=8, skip_channels=4, norm="instance", join=join).eval()
    coarse, skip = torch.randn(2, 8, *(-(-n // 2) for n in size)), torch.randn(2, 4, *size)
    found = block(channels_last(coarse), channels_last(skip))
    assert found.shape == skip.shape
    with torch.no_grad():
        torch.testing.assert_close(block(coarse, skip), found, rtol=1e-4, atol=1e-5)
        for changed in (block(coarse + 1, skip), block(coarse, skip + torch.randn_like(skip))):
            assert (changed - found).abs().max() > 1e-3
