"""Instance norm against its definition, and the crossings between grid and tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cmt_med.blocks.conv import (
    InstanceNorm,
    Pointwise,
    channels_last,
    crop_to,
    grid_to_tokens,
    pad_to_multiple,
    tokens_to_grid,
)
from cmt_med.blocks.embedding import depth_to_space, space_to_depth
from cmt_med.blocks.readout import read_out, shared_axes


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6), (1, 1, 1), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_instance_norm_equals_its_definition(size: tuple[int, ...], batch: int) -> None:
    torch.manual_seed(0)
    layer = InstanceNorm(5)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = channels_last(torch.randn(batch, 5, *size) * 3 + 1).requires_grad_()
    axes = tuple(range(2, x.ndim))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
    shape = (1, 5, *(1,) * len(size))
    expected = (x - mean) / (variance + 1e-5).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)
    g = torch.randn_like(expected)
    for train in (True, False):
        torch.testing.assert_close(layer.train(train)(x), expected, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], g)
    reference = torch.autograd.grad(expected, [x, layer.weight, layer.bias], g)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_crossings_are_views_and_inverse(size: tuple[int, ...]) -> None:
    x = channels_last(torch.randn(2, 5, *size))
    tokens = grid_to_tokens(x)
    assert tokens.data_ptr() == x.data_ptr()
    assert torch.equal(tokens[1, 1], x[(1, slice(None), *(0,) * (len(size) - 1), 1)])  # row-major over the grid
    assert torch.equal(tokens_to_grid(tokens, size), x)
    assert tokens_to_grid(tokens, size).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_space_to_depth(size: tuple[int, ...]) -> None:
    x = channels_last(torch.randn(2, 3, *size))
    y = space_to_depth(x)
    assert y.shape == (2, 3 * 2 ** len(size), *(n // 2 for n in size))
    first = x[(slice(None), slice(None), *(slice(0, None, 2),) * len(size))]
    assert torch.equal(y[:, :3], first)
    assert torch.equal(depth_to_space(y), x)


def test_padding_and_cropping_copy_only_where_needed() -> None:
    x = channels_last(torch.randn(1, 2, 4, 5, 6))
    assert pad_to_multiple(x, [4, 5, 3]) is x
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 2, 4, 8, 8)
    assert torch.equal(crop_to(padded, x.shape[2:]), x)
    assert padded[:, :, :, 5:].abs().max() == 0


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (5, 3), (4, 8, 6), (3, 5, 6), (4, 6, 5), (3, 5, 7)])
@pytest.mark.parametrize("channels", [1, 3, 5, 9])
def test_read_out_equals_a_plain_convolution(size: tuple[int, ...], channels: int) -> None:
    torch.manual_seed(0)
    layer = read_out(len(size), 6, channels)
    x = channels_last(torch.randn(2, 6, *size)).requires_grad_()
    if channels <= 4 and size[-1] % 2 == 0:
        assert shared_axes(x, layer)  # else this would compare a thing with itself
    plain = F.conv2d if len(size) == 2 else F.conv3d
    expected = plain(x, layer.weight, layer.bias, padding=1)
    g = torch.randn_like(expected)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], g)
    for a, b in zip(ours, torch.autograd.grad(expected, [x, layer.weight, layer.bias], g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_cells_join_others_in_the_same_copy(size: tuple[int, ...]) -> None:
    x = channels_last(torch.randn(2, 3, *size))
    cells, other = space_to_depth(x), channels_last(torch.randn(2, 5, *(n // 2 for n in size)))
    assert torch.equal(space_to_depth(x, beside=other), torch.cat([other, cells], dim=1))
    assert torch.equal(depth_to_space(cells, beside=x * 2), torch.cat([x, x * 2], dim=1))
    total = depth_to_space(cells, onto=x * 2)
    assert torch.equal(total, x * 2 + x)
    assert total.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("gelu", [False, True])
def test_pointwise_is_the_same_with_and_without_gradients(gelu: bool) -> None:
    layer = Pointwise(5, 7, gelu=gelu)
    x = channels_last(torch.randn(2, 5, 3, 4, 6))
    with torch.no_grad():
        found = layer(x)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)
