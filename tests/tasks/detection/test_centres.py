"""The dense head's targets, loss and boxes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmt_med.tasks.detection.boxes import giou, pairwise_iou
from cmt_med.tasks.detection.centres import centre_loss, centre_targets, faces, focal, peaks, stride_of


def apart(rng: np.random.Generator, dims: int, count: int) -> Tensor:
    """Boxes of different middles, at least three positions of 4 voxels apart."""
    cells = list(itertools.product(range(4), repeat=dims))
    chosen = rng.permutation(len(cells))[:count]
    middles = torch.tensor([[16.0 * c + 8 + rng.uniform(-3, 3) for c in cells[i]] for i in chosen]).reshape(count, dims)
    sizes = torch.tensor(rng.uniform(5, 30, (count, dims)), dtype=torch.float32)  # a middle within each
    return torch.cat([middles - sizes / 2, middles + sizes / 2], dim=1)


@pytest.mark.parametrize("dims", [2, 3])
@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 8), seed=st.integers(0, 10_000))
def test_perfect_maps_give_the_boxes(dims: int, count: int, seed: int) -> None:
    """What the targets say, put into maps, is found again: every box, its class, and nothing else."""
    rng = np.random.default_rng(seed)
    boxes, classes = apart(rng, dims, count), torch.tensor(rng.integers(0, 3, count), dtype=torch.int64)
    size, stride = (64,) * dims, 4
    heat, known, target, weight = centre_targets(
        boxes[None], classes[None], torch.zeros((1, count), dtype=torch.bool), (16,) * dims, stride, 3
    )
    assert bool(known.all())
    assert 0.5 * count <= weight.sum() <= count + 1e-4
    assert int((heat == 1).sum()) == count
    middle = faces(torch.zeros_like(target), stride)  # around each position, 16 voxels to each side
    place = (middle[:, :dims] + middle[:, dims:]) / 2
    distances = torch.cat([place - target[:, :dims], target[:, dims:] - place], dim=1).clamp_min(1e-3)
    output = torch.cat([torch.logit(heat.clamp(1e-4, 1 - 1e-4)), (distances / (4 * stride)).log()], dim=1)
    ((found, named, scores),) = peaks(output, size, least=0.99, most=100)
    assert len(found) == count
    for box, value in zip(boxes, classes, strict=True):
        agreement = pairwise_iou(box[None], found[named == value])
        assert agreement.numel()
        assert float(agreement.max()) > 0.99
    assert bool((scores > 0.99).all())


def test_the_loss_is_smallest_where_maps_are_right() -> None:
    boxes, classes = torch.tensor([[[8.0, 8, 24, 24]]]), torch.tensor([[0]])
    nothing = torch.zeros((1, 1), dtype=torch.bool)
    right = torch.full((1, 5, 8, 8), -8.0)
    right[:, 1:] = math.log(8 / 16)
    right[0, 0, 4, 4] = 8.0  # its own position, next to the middle
    wrong = right.clone()
    wrong[0, 0, 4, 4], wrong[0, 0, 0, 0] = -8.0, 8.0
    values = [float(centre_loss(maps, boxes, classes, nothing, (32, 32), 1.0)) for maps in (right, wrong)]
    assert values[0] < 0.5 < 7 < values[1]
    ignored = float(centre_loss(wrong, boxes, classes, ~nothing, (32, 32), 1.0))
    assert ignored > 7  # the false one lies outside of the ignored box
    wrong[0, 0, 0, 0], wrong[0, 0, 4, 4] = -8.0, 8.0
    assert float(centre_loss(wrong, boxes, classes, ~nothing, (32, 32), 1.0)) == pytest.approx(0, abs=1e-3)


def test_focal_loss_by_hand() -> None:
    logits, heat = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 0.0])
    p = 1 / (1 + math.exp(-2))
    wanted = [0.25 * math.log(2), 0.5**4 * 0.25 * math.log(2), -(p**2) * math.log(1 - p)]
    np.testing.assert_allclose(focal(logits, heat).numpy(), wanted, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), dims=st.integers(1, 3))
def test_giou_counts_voxels(seed: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    masks, hull_low, hull_high, rows = [], np.full(dims, 99), np.zeros(dims, int), []
    for _ in range(2):
        low = rng.integers(0, 8, dims)
        high = low + rng.integers(1, 8, dims)
        mask = np.zeros((16,) * dims, bool)
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        masks.append(mask)
        hull_low, hull_high = np.minimum(hull_low, low), np.maximum(hull_high, high)
        rows.append(torch.tensor([*low, *high], dtype=torch.float32))
    both, union = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    hull = (hull_high - hull_low).prod()
    assert float(giou(*rows)) == pytest.approx(both / union - (hull - union) / hull, abs=1e-5)
    assert float(pairwise_iou(rows[0][None], rows[1][None])) == pytest.approx(both / union, abs=1e-5)


def test_strides() -> None:
    assert [stride_of((math.ceil(37 / s), math.ceil(20 / s)), (37, 20)) for s in (1, 2, 4, 8)] == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="no stride"):
        stride_of((5, 7), (20, 20))
