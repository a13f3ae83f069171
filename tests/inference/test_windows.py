"""Our windows against MONAI's, and what skipping the empty ones changes: nothing inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from cmt_med.inference.windows import sliding_logits, window_starts


def convolution(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Conv3d if dims == 3 else nn.Conv2d)(2, 3, 3, padding=1).eval()


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.windows, self.calls = network, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.windows += x.shape[0]
        self.calls += 1
        result: Tensor = self.network(x)
        return result


@given(
    dims=st.sampled_from([2, 3]),
    data=st.data(),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    batch=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_same_as_monai(dims: int, data: st.DataObject, overlap: float, batch: int, seed: int) -> None:
    size = data.draw(st.tuples(*[st.integers(3, 17)] * dims))
    window = data.draw(st.tuples(*[st.integers(3, 9)] * dims))
    torch.manual_seed(seed)
    image = torch.randn(2, 2, *size)
    network = convolution(dims)
    with torch.inference_mode():
        found = sliding_logits(network, image, window, overlap=overlap, batch_size=batch).values
        expected = sliding_window_inference(image, window, 1, network, overlap=overlap, mode="gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [(6, 6, 6), (30, 6, 6)])
def test_empty_windows_are_skipped_and_nothing_inside_changes(window: tuple[int, ...]) -> None:
    image = torch.randn(1, 2, 24, 13, 17)
    inside = torch.zeros(1, 24, 13, 17, dtype=torch.bool)
    inside[0, 2:9, 3:10, 1:16] = True
    inside[0, 20, 12, 16] = True
    full, part = Counted(convolution(3)), Counted(convolution(3))
    with torch.inference_mode():
        whole = sliding_logits(full, image, window, overlap=0.5, batch_size=3).values
        found = sliding_logits(part, image, window, overlap=0.5, batch_size=3, inside=inside).values
    torch.testing.assert_close(found.movedim(1, -1)[inside], whole.movedim(1, -1)[inside], rtol=1e-5, atol=1e-6)
    if window == (6, 6, 6):
        assert part.windows < full.windows / 2
    assert part.calls == -(-part.windows // 3)  # batches are filled across the gaps


def test_nothing_inside() -> None:
    image = torch.randn(1, 2, 9, 9, 9)
    with torch.inference_mode():
        found = sliding_logits(
            convolution(3), image, (4, 12, 4), overlap=0.5, batch_size=2, inside=image[:, 0] > 99
        ).values
    assert found.shape == (1, 3, 9, 9, 9)
    assert not found.any()


@given(st.integers(1, 60), st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_starts_cover_the_axis(length: int, window: int, overlap: float) -> None:
    length = max(length, window)
    starts = window_starts(length, window, overlap)
    covered = np.zeros(length, dtype=int)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    assert len(set(starts)) == len(starts)
