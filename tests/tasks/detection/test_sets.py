"""Set prediction: who belongs to whom, what noise may tell, and attention counted in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmt_med.blocks.deformable import DeformableAttention
from cmt_med.networks import build_network
from cmt_med.networks.heads.set_detector import SetOutput
from cmt_med.tasks.detection.boxes import pairwise_giou
from cmt_med.tasks.detection.sets import ALPHA, GAMMA, OF_CLASSES, OF_FACES, OF_GIOU, assignment, set_boxes, set_loss

TINY = {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8, "attention": ("identity",) * 2,
        "kv_strides": (2, 1), "drop_path": 0.0, "channels": 16, "heads": 2, "queries": 6, "layers": 2}  # fmt: skip


def some_boxes(rng: np.random.Generator, count: int, dims: int) -> Tensor:
    low = rng.uniform(0, 20, (count, dims))
    return torch.tensor(np.concatenate([low, low + rng.uniform(2, 10, (count, dims))], 1), dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dims=st.integers(2, 3), count=st.integers(0, 4))
def test_the_assignment_is_the_cheapest_of_all(seed: int, dims: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    logits, found = torch.tensor(rng.normal(0, 2, (5, 3)), dtype=torch.float32), some_boxes(rng, 5, dims)
    boxes, classes = some_boxes(rng, count, dims), torch.tensor(rng.integers(0, 3, count), dtype=torch.int64)
    scale = torch.full((2 * dims,), 32.0)

    def cost(query: int, reference: int) -> float:
        p = float(logits[query, classes[reference]].sigmoid())
        of_class = ALPHA * (1 - p) ** GAMMA * -np.log(p + 1e-8) - (1 - ALPHA) * p**GAMMA * -np.log(1 - p + 1e-8)
        apart = float(((found[query] - boxes[reference]) / scale).abs().sum())
        agreement = float(pairwise_giou(found[query : query + 1], boxes[reference : reference + 1]))
        return float(OF_CLASSES * of_class + OF_FACES * apart - OF_GIOU * agreement)

    rows, columns = assignment(logits, found, boxes, classes, scale)
    assert sorted(columns.tolist()) == list(range(count))
    ours = sum(cost(q, r) for q, r in zip(rows.tolist(), columns.tolist(), strict=True))
    best = min(sum(cost(q, r) for r, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), count))
    assert ours == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_noised_references_tell_queries_nothing(dims: int) -> None:
    """What the network says of its own queries is the same with and without them, and whatever they are."""
    torch.manual_seed(0)
    network = build_network("cmt_detr", spatial_dims=dims, in_channels=1, num_classes=2, **TINY).train()
    image = torch.randn(2, 1, *(16,) * dims)
    plain = network(image)
    assert isinstance(plain, SetOutput)
    assert plain.noised_classes.shape[2] == 0
    rng = np.random.default_rng(0)
    boxes = torch.stack([some_boxes(rng, 3, dims)] * 2)
    for classes in (torch.tensor([[0, 1, -1], [1, 0, 0]]), torch.tensor([[-1, -1, -1]] * 2)):
        told = network(image, boxes, classes)
        torch.testing.assert_close(told.classes, plain.classes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(told.boxes, plain.boxes, atol=1e-4, rtol=1e-4)
        assert told.noised_classes.shape == (2, 2, 2 * 4 * 3, 2)
        assert bool(torch.isfinite(told.noised_classes).all())
    # A row of the padding changes nothing for the noised references of its group.
    torch.manual_seed(5)
    one = network(image, boxes, torch.tensor([[0, 1, -1], [1, 0, -1]]))
    torch.manual_seed(5)
    other_boxes = boxes.clone()
    other_boxes[:, 2] += 3.0
    two = network(image, other_boxes, torch.tensor([[0, 1, -1], [1, 0, -1]]))
    kept = torch.arange(24).view(8, 3)[:, :2].flatten()
    torch.testing.assert_close(one.noised_classes[:, :, kept], two.noised_classes[:, :, kept], atol=1e-5, rtol=1e-4)


def test_the_loss_is_smallest_where_the_set_is_right() -> None:
    boxes, classes = torch.tensor([[[4.0, 4, 12, 12], [0, 0, 1, 1]]]), torch.tensor([[1, -1]])
    ignored = torch.zeros((1, 2), dtype=torch.bool)
    dense = torch.full((1, 6, 4, 4), -6.0)
    nothing = torch.zeros((1, 1, 0, 2)), torch.zeros((1, 1, 0, 4))

    def loss(logits: list[list[float]], found: list[list[float]], ignore: Tensor = ignored) -> float:
        output = SetOutput(torch.tensor([[logits]]), torch.tensor([[found]]), dense, *nothing)
        return float(set_loss(output, boxes, classes, ignore, (16, 16), 1.0))

    right = loss([[-9.0, 9.0], [-9.0, -9.0]], [[4.0, 4, 12, 12], [0, 0, 2, 2]])
    swapped = loss([[-9.0, -9.0], [-9.0, 9.0]], [[0.0, 0, 2, 2], [4, 4, 12, 12]])
    assert right == pytest.approx(swapped)
    assert right < loss([[-9.0, 9.0], [-9.0, -9.0]], [[4.0, 4, 12, 14], [0, 0, 2, 2]])
    assert right < loss([[9.0, -9.0], [-9.0, -9.0]], [[4.0, 4, 12, 12], [0, 0, 2, 2]])
    assert right < loss([[-9.0, 9.0], [-9.0, 9.0]], [[4.0, 4, 12, 12], [4, 4, 12, 12]])  # found twice
    all_ignored = torch.tensor([[True, False]])
    inside = loss([[-9.0, 9.0], [-9.0, -9.0]], [[4.0, 4, 12, 12], [0, 0, 2, 2]], all_ignored)
    outside = loss([[-9.0, 9.0], [-9.0, -9.0]], [[13.0, 13, 15, 15], [0, 0, 2, 2]], all_ignored)
    assert inside < outside


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_in_loops(dims: int) -> None:
    """Places of each head, grid and point, read by linear interpolation between the middles of positions."""
    torch.manual_seed(0)
    layer = DeformableAttention(spatial_dims=dims, channels=8, heads=2, levels=2, points=3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    grids = [torch.randn(1, 8, *(6, 5, 4)[:dims]).double(), torch.randn(1, 8, *(3, 3, 2)[:dims]).double()]
    queries, boxes = torch.randn(1, 2, 8).double(), 0.2 + 0.5 * torch.rand(1, 2, 2 * dims).double()
    result = layer(queries, boxes, grids)
    for number in range(2):
        query = queries[0, number]
        offsets = layer.offsets(query).view(2, 2, 3, dims)
        share = layer.weights(query).view(2, 6).softmax(-1).view(2, 2, 3)
        heads = []
        for head in range(2):
            total = torch.zeros(4).double()
            for level, point in itertools.product(range(2), range(3)):
                at = boxes[0, number, :dims] + offsets[head, level, point] * boxes[0, number, dims:] / 2
                value = layer.value(grids[level][0].movedim(0, -1))[..., 4 * head : 4 * head + 4]
                total = total + share[head, level, point] * _read(value, at)
            heads.append(total)
        torch.testing.assert_close(result[0, number], layer.out(torch.cat(heads)))


def _read(value: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation at a place in shares of the grid; zero outside."""
    size = value.shape[:-1]
    place = [float(a) * n - 0.5 for a, n in zip(at, size, strict=True)]
    total = torch.zeros(value.shape[-1], dtype=value.dtype)
    for corner in itertools.product((0, 1), repeat=len(size)):
        index = [int(np.floor(p)) + c for p, c in zip(place, corner, strict=True)]
        weight = float(np.prod([1 - abs(p - i) for p, i in zip(place, index, strict=True)]))
        if all(0 <= i < n for i, n in zip(index, size, strict=True)):
            total = total + weight * value[tuple(index)]
    return total


def test_boxes_of_a_set() -> None:
    output = torch.tensor([[[2.0, -9, 0, 0, 4, 4], [-9, 1.0, 1, 1, 3, 3], [-9, -9, 0, 0, 1, 1]]])
    ((boxes, classes, scores),) = set_boxes(output, 2, least=0.1, most=10)
    assert classes.tolist() == [0, 1]
    assert boxes.tolist() == [[0, 0, 4, 4], [1, 1, 3, 3]]
    np.testing.assert_allclose(scores.numpy(), torch.tensor([2.0, 1.0]).sigmoid().numpy())
