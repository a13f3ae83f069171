"""Sliding windows, mirroring and painting, with networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmt_med.inference.predict import Windows, predict_probabilities
from cmt_med.tasks.segmentation.labels import Classes, Regions
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.segmentation.task import Segmentation

ONE = [Target("one", (1,), 1)]
CLASSES, REGIONS = (Segmentation(kind(ONE), {"background": 0, "one": 1}) for kind in (Classes, Regions))


class Pointwise(nn.Module):
    """Logits that depend on each voxel alone: windows, order and mirroring cannot matter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], -2 * x[:, :1], x[:, :1] ** 2], dim=1)


class Lopsided(nn.Module):
    """Logits from the position along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, x.shape[-1]).expand_as(x[:, :1])
        return torch.cat([ramp, -ramp], dim=1)


@pytest.mark.parametrize("slice_axes", [(), (0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("size", [(9, 12, 7), (30, 5, 21)])
def test_windows_do_not_change_a_pointwise_network(size: tuple[int, ...], slice_axes: tuple[int, ...]) -> None:
    image = torch.randn(2, *size)
    window = (8, 8) if slice_axes else (8, 8, 8)
    expected = Pointwise()(image[None])[0]
    for axes, patch in (((), None), ((0, 2), None), ((0,), tuple(n - 1 for n in window))):
        windows = Windows(window, 0.5, 3, slice_axes, axes, patch)
        found = predict_probabilities(Pointwise(), image, windows, CLASSES)
        torch.testing.assert_close(found, expected.softmax(0), rtol=1e-4, atol=1e-5)
        found = predict_probabilities(Pointwise(), image, windows, REGIONS)
        torch.testing.assert_close(found, expected.sigmoid(), rtol=1e-4, atol=1e-5)


def test_small_volumes_are_padded_to_the_patch_of_training() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[2:]))
            return torch.cat([x, -x], dim=1)

    for patch, volume, expected in (
        ((8, 8, 8), (5, 9, 20), (8, 9, 16)),  # never larger than the volume, but where training padded
        (None, (5, 9, 20), (5, 9, 16)),
        ((32, 32, 32), (5, 9, 20), (12, 12, 16)),  # the window is smaller than the patch
    ):
        window = (12, 12, 16)
        seen: list[tuple[int, ...]] = []
        image = torch.randn(1, *volume)
        found = predict_probabilities(Sizes(), image, Windows(window, 0.5, 1, patch=patch), CLASSES)
        assert set(seen) == {expected}
        torch.testing.assert_close(found, torch.cat([image, -image]).softmax(0), rtol=1e-4, atol=1e-5)


def test_mirroring_averages_probabilities() -> None:
    image = torch.zeros(1, 4, 4, 6)
    plain = predict_probabilities(Lopsided(), image, Windows((8, 8, 8), 0.5, 1), CLASSES)
    averaged = predict_probabilities(Lopsided(), image, Windows((8, 8, 8), 0.5, 1, (), (2,)), CLASSES)
    torch.testing.assert_close(averaged, (plain + plain.flip(-1)) / 2)
    assert not torch.allclose(averaged, plain)


def test_three_planes_average_the_probabilities_of_each() -> None:
    class Rows(nn.Module):  # (B, 1, H, W): unlike in each plane
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.cumsum(-1), x], dim=1)

    image = torch.randn(1, 5, 6, 7)
    window = (8, 8)
    single = [predict_probabilities(Rows(), image, Windows(window, 0.5, 1, (a,)), REGIONS) for a in range(3)]
    both = predict_probabilities(Rows(), image, Windows(window, 0.5, 1, (0, 1, 2)), REGIONS)
    torch.testing.assert_close(both, sum(single) / 3)
    assert not torch.allclose(single[0], single[2])
