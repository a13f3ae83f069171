"""Window attention against a slow reference with an explicit mask over all pairs."""

from __future__ import annotations

import itertools

import pytest
import torch

from cmt_med.blocks.attention import LightweightAttention, WindowAttention


def slow_window_attention(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every pair of tokens, one by one, in float64: who sees whom is decided from coordinates alone."""
    size = x.shape[2:]
    tokens = list(itertools.product(*(range(n) for n in size)))
    window = [min(layer.window, n) for n in size]
    shift = [layer.window // 2 if layer.shifted and n > layer.window else 0 for n in size]

    def home(token: tuple[int, ...]) -> tuple[int, ...]:
        # With a shift s, windows start at s, s + w, ...; what lies before s is a piece of its own. Padding belongs to no
        # token, so windows cut by the border are just smaller.
        return tuple(-1 if t < s else (t - s) // w for t, s, w in zip(token, shift, window, strict=True))

    flat = x.movedim(1, -1).flatten(1, -2).double()
    qkv = torch.nn.functional.linear(flat, layer.qkv.weight.double(), layer.qkv.bias.double())
    q, k, v = qkv.unflatten(-1, (3, layer.heads, -1)).unbind(2)
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    table = layer.bias_table.double()
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            if home(a) != home(b):
                logits[:, :, i, j] = -torch.inf
                continue
            index = 0
            for p, r in zip(a, b, strict=True):
                index = index * (2 * layer.window - 1) + (p - r + layer.window - 1)
            logits[:, :, i, j] += table[index]
    out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v).flatten(2)
    out = torch.nn.functional.linear(out, layer.proj.weight.double(), layer.proj.bias.double())
    return out.unflatten(1, size).movedim(-1, 1)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (3, 10), (4, 4), (5, 4, 6), (4, 8, 3), (2, 5, 9)])
def test_window_attention_equals_slow_reference(size: tuple[int, ...], shifted: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(spatial_dims=len(size), channels=8, heads=2, window=4, shifted=shifted)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(layer(x).double(), slow_window_attention(layer, x), rtol=1e-5, atol=1e-5)


def test_lightweight_attention_without_reduction_is_global() -> None:
    torch.manual_seed(0)
    layer = LightweightAttention(spatial_dims=2, channels=8, heads=2, kv_stride=1)
    x = torch.randn(1, 8, 3, 5)
    t = x.flatten(2).transpose(1, 2)
    q = layer.q(t).unflatten(-1, (2, 4))
    k, v = (u.unflatten(-1, (2, 4)) for u in layer.kv(t).chunk(2, -1))
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 2.0).softmax(-1)
    out = layer.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), out, rtol=1e-5, atol=1e-6)


def test_no_token_is_left_out_of_the_keys() -> None:
    torch.manual_seed(0)
    layer = LightweightAttention(spatial_dims=3, channels=8, heads=2, kv_stride=4)
    x = torch.randn(1, 8, 5, 6, 7, requires_grad=True)
    layer(x)[0, :, 0, 0, 0].sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).all()  # the first token's output depends on the last, odd edge too
