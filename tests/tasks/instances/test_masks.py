"""Sets of masks: who belongs to whom, what is learned, and which query has a position."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.config.instances import Instances as Settings
from cmt_med.networks import build_network
from cmt_med.networks.heads.mask_queries import MaskOutput
from cmt_med.tasks.detection.boxes import pairwise_giou
from cmt_med.tasks.detection.sets import ALPHA, GAMMA, OF_CLASSES, OF_FACES, OF_GIOU
from cmt_med.tasks.instances.masks import OF_CROSS_ENTROPY, OF_DICE, assignment, mask_loss, masks_of, numbered_objects
from cmt_med.tasks.instances.pieces import pieces
from cmt_med.tasks.instances.query_task import MaskInstances

TINY = {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8, "attention": ("identity",) * 2,
        "kv_strides": (2, 1), "drop_path": 0.0, "channels": 16, "heads": 2, "queries": 6, "layers": 2}  # fmt: skip


def blocks(dims: int) -> torch.Tensor:
    """Two patches: of two blocks of numbers 7 and 300, one cut by the border, and of nothing."""
    label = torch.zeros((2, 1, *[16] * dims), dtype=torch.int32)
    label[(0, 0, *[slice(2, 7)] * dims)] = 300
    label[(0, 0, *[slice(10, 20)] * dims)] = 7
    return label


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dims=st.integers(2, 3), count=st.integers(0, 4))
def test_the_assignment_is_the_cheapest_of_all(seed: int, dims: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    low = torch.tensor(rng.uniform(0, 20, (5 + count, dims)), dtype=torch.float32)
    both = torch.cat([low, low + torch.tensor(rng.uniform(2, 10, low.shape), dtype=torch.float32)], 1)
    found, boxes = both[:5], both[5:]
    logits = torch.tensor(rng.normal(0, 2, (5, 1)), dtype=torch.float32)
    drawn = torch.tensor(rng.normal(0, 2, (5, 12)), dtype=torch.float32)
    masks = torch.tensor(rng.random((count, 12)), dtype=torch.float32)
    scale, around = torch.full((2 * dims,), 32.0), torch.tensor(rng.uniform(1, 9, count), dtype=torch.float32)

    def cost(query: int, reference: int) -> float:
        p = float(logits[query, 0].sigmoid())
        total = OF_CLASSES * (ALPHA * (1 - p) ** GAMMA * -math.log(p) - (1 - ALPHA) * p**GAMMA * -math.log(1 - p))
        total += OF_FACES * float(((found[query] - boxes[reference]) / scale).abs().sum())
        total -= OF_GIOU * float(pairwise_giou(found[query : query + 1], boxes[reference : reference + 1]))
        chances, wanted = drawn[query].sigmoid().tolist(), masks[reference].tolist()
        entropy = -sum(t * math.log(c) + (1 - t) * math.log(1 - c) for c, t in zip(chances, wanted, strict=True))
        shared = sum(c * t for c, t in zip(chances, wanted, strict=True))
        total += OF_CROSS_ENTROPY * entropy / float(around[reference])
        return total + OF_DICE * (1 - (2 * shared + 1) / (sum(chances) + sum(wanted) + 1))

    rows, columns = assignment(logits, found, drawn, boxes, masks, scale, around)
    assert sorted(columns.tolist()) == list(range(count))
    ours = sum(cost(q, r) for q, r in zip(rows.tolist(), columns.tolist(), strict=True))
    best = min(sum(cost(q, r) for r, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), count))
    assert ours == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_objects_of_a_patch(dims: int) -> None:
    numbers, boxes, there = numbered_objects(blocks(dims), 4)
    assert there.tolist() == [[True, True], [False, False]]
    assert boxes[0].tolist() == [
        [10.0] * dims + [16.0] * dims,
        [2.0] * dims + [7.0] * dims,
    ]  # in the order of their numbers
    assert numbers.unique().tolist() == [0, 1, 2]
    assert numbered_objects(blocks(dims), 5**dims + 1)[2].tolist() == [[True], [False]]
    masks = masks_of(numbers[0, 0], 2, 2)
    assert masks.shape == (2, 8**dims)
    assert float(masks[1].sum()) * 2**dims == pytest.approx(5**dims)
    assert float(masks[1].view([8] * dims)[(3,) * dims]) == 0.5**dims  # of that position, one voxel


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mask_stride", [2, 4])
def test_a_step_lowers_the_loss(dims: int, mask_stride: int) -> None:
    torch.manual_seed(0)
    network = build_network(
        "cmt_mask_queries", spatial_dims=dims, in_channels=1, num_classes=1, mask_stride=mask_stride, **TINY
    ).train()
    task = MaskInstances()
    batch = task.prepared({"image": torch.randn(2, 1, *[16] * dims), "label": blocks(dims)})
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)  # the same noise
        loss = task.loss(network(batch["image"], *task.hints(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert math.isfinite(losses[0])
    assert losses[1] < losses[0]


def test_right_answers_have_less_loss_than_others() -> None:
    numbers, boxes, there = numbered_objects(blocks(2), 4)
    masks = masks_of(numbers[0, 0], 2, 2).view(2, 8, 8)
    nothing = torch.zeros((1, 2, 0, 1)), torch.zeros((1, 2, 0, 4)), torch.zeros((1, 2, 0, 8, 8))

    def loss(sure: float) -> float:
        """Of two queries, which are right in the first patch, and say of the second that there is nothing."""
        logits = torch.tensor([[[4.0], [4.0]], [[-4.0], [-4.0]]])[None]
        drawn = torch.where(masks > 0.5, sure, -sure)[None, None].repeat(1, 2, 1, 1, 1)
        output = MaskOutput(logits, boxes[None].expand(1, 2, 2, 4), drawn, torch.zeros((2, 5, 4, 4)), *nothing)
        return float(mask_loss(output, numbers, boxes, there, 1.0))

    assert loss(6.0) < loss(1.0) < loss(-1.0)


def test_a_position_has_one_query() -> None:
    """Three masks on 8 × 8 positions of stride 2: two that touch, and a worse repetition of the first; one is unlikely."""
    drawn = torch.full((4, 8, 8), -9.0)
    drawn[0, :4, :4] = drawn[2, :4, :4] = 9.0
    drawn[1, :4, 3:8] = drawn[3, 6:, 6:] = 9.0
    logits = torch.tensor([3.0, 2.0, 0.0, -5.0])
    output = torch.cat([logits[:, None], torch.zeros(4, 4), drawn.flatten(1)], 1)[None]
    (found,) = pieces(output, (16, 15), Settings())
    assert found.numbers.shape == (16, 15)
    assert np.unique(found.numbers).tolist() == [0, 1, 2]
    assert (found.numbers[:7, :7] == found.numbers[0, 0]).all()
    assert (found.numbers[:7, 9:] == found.numbers[0, 14]).all()
    assert not found.numbers[9:].any()
    assert sorted(found.probabilities.tolist()) == pytest.approx(sorted(logits[:2].sigmoid().tolist()), abs=0.03)
    (nothing,) = pieces(output - 20, (16, 15), Settings())
    assert not nothing.numbers.any()
