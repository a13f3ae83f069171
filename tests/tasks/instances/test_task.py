"""Numbered objects: what is learned, and how objects are found in maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmt_med.config.instances import Instances as Settings
from cmt_med.data.preprocessing.depth import depth_map
from cmt_med.tasks.instances.decode import decode
from cmt_med.tasks.instances.task import Instances


def discs(*middles: tuple[int, ...], radius: int = 5, shape: tuple[int, ...] = (32, 40, 1)) -> NDArray[np.int64]:
    """Discs, or balls, which are numbered; of two that overlap, each has what is nearer to its middle."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distances = np.stack([np.linalg.norm(grid - np.array(middle), axis=-1) for middle in middles])
    return np.where(distances.min(0) < radius, distances.argmin(0) + 1, 0)


def maps_of(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """What a network that makes no error says."""
    depth = depth_map(numbers, (1.0,) * numbers.ndim)
    return np.stack([depth > 0, depth / 255]).astype(np.float32)


@pytest.mark.parametrize("shape", [(32, 40, 1), (32, 40, 20)])
def test_objects_that_touch_are_told_apart(shape: tuple[int, ...]) -> None:
    depth = shape[2] // 2
    numbers = discs((8, 8, depth), (8, 16, depth), (20, 30, depth), shape=shape)
    found = decode(maps_of(numbers), Settings(), (1.0,) * 3)
    pairs = np.unique(np.stack([found.numbers.ravel(), numbers.ravel()]), axis=1)
    assert pairs.shape[1] == 4  # each is one object, and no more
    assert sorted(found.voxels.tolist()) == sorted(np.bincount(numbers.ravel())[1:].tolist())
    assert found.probabilities.tolist() == [1.0] * 3
    near = min(np.linalg.norm(centre - np.array([20, 30, depth])) for centre in found.centres)
    assert near < 0.1


def test_thresholds_and_prominence() -> None:
    maps = maps_of(discs((8, 8, 0), (8, 16, 0)))
    maps[0] *= 0.6
    assert len(decode(maps, Settings(), (1.0,) * 3).voxels) == 2
    assert len(decode(maps, Settings(threshold=0.7), (1.0,) * 3).voxels) == 0
    assert (
        len(decode(maps, Settings(prominence=0.95), (1.0,) * 3).voxels) == 1
    )  # the valley between them is not deep enough


def test_a_part_without_a_peak_is_an_object() -> None:
    maps = np.zeros((2, 9, 9, 1), np.float32)
    maps[0, 1:3, 1:3] = maps[0, 5:8, 5:8] = 0.9
    assert sorted(decode(maps, Settings(), (1.0,) * 3).voxels.tolist()) == [4, 9]


def test_small_objects_are_removed_in_mm() -> None:
    numbers = discs((6, 6, 0), radius=3) + 2 * discs((20, 24, 0), radius=6)
    small, large = np.bincount(numbers.ravel())[1:]
    maps = maps_of(numbers)
    for spacing, limit in (((1.0, 1.0, 1.0), small), ((0.5, 0.5, 2.0), small * 0.5)):
        assert decode(maps, Settings(min_object_mm3=float(limit)), spacing).removed == 0
        found = decode(maps, Settings(min_object_mm3=float(limit) + 0.01), spacing)
        assert (found.removed, found.voxels.tolist(), found.numbers.max()) == (1, [large], 1)
        assert found.centres[0] == pytest.approx([20, 24, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_the_maps_say(seed: int) -> None:
    """Numbers are 1 to n, cover the foreground, and each is one connected part."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.random((2, 20, 17, 3)), (0, 2, 2, 1)).astype(np.float32)
    found = decode(maps, Settings(threshold=0.5), (1.0,) * 3)
    assert np.unique(found.numbers[found.numbers > 0]).tolist() == list(range(1, len(found.voxels) + 1))
    assert ((found.numbers > 0) == (maps[0] > 0.5)).all()
    for number in range(1, len(found.voxels) + 1):
        assert ndimage.label(found.numbers == number, np.ones((3, 3, 3)))[1] == 1


def test_the_loss_by_hand() -> None:
    """Logits of 0 are probabilities of ½: two cross-entropies of ln 2, and a Dice of 2 · ½ / (1 + 2 · ½) over two of four."""
    label = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    value = Instances().loss(torch.zeros(1, 2, 2, 2), {"label": label})
    assert float(value) == pytest.approx(2 * np.log(2) + 1 - 2 * 1 / (2 + 2), abs=1e-5)
    twice = Instances(Settings(depth_weight=3.0)).loss(torch.zeros(1, 2, 2, 2), {"label": label})
    assert float(twice - value) == pytest.approx(2 * np.log(2), abs=1e-5)


def test_deep_supervision_averages_targets() -> None:
    task, label = Instances(), torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    fine = torch.full((1, 2, 2, 2), -20.0)
    fine[:, :, 1] = 20.0
    shares = torch.zeros(1, 2, 1, 1)  # half of the position is foreground
    right = task.loss([fine, shares], {"label": label})
    assert float(task.loss([fine, shares + 1], {"label": label})) > float(right)
    assert float(task.loss([fine, shares - 1], {"label": label})) > float(right)
