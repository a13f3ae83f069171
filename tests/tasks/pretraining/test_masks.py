"""What is hidden, and what the loss looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.config.pretraining import Pretraining as Settings
from cmt_med.tasks.pretraining.masks import hidden_blocks
from cmt_med.tasks.pretraining.task import Pretraining


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), dims=st.integers(2, 3), block=st.integers(2, 16), share=st.floats(0.05, 0.95),
    edge=st.integers(8, 40),
)  # fmt: skip
def test_blocks_are_whole_and_as_many_as_asked(seed: int, dims: int, block: int, share: float, edge: int) -> None:
    torch.manual_seed(seed)
    size = (edge, edge + 5, edge + 2)[:dims]
    masks = hidden_blocks(3, size, block, share, torch.device("cpu"))
    assert masks.shape == (3, 1, *size)
    assert masks.dtype == torch.bool
    for mask in masks[:, 0]:
        for axis in range(dims):  # along each axis, changes are a block apart
            moved = (mask.narrow(axis, 1, size[axis] - 1) != mask.narrow(axis, 0, size[axis] - 1)).movedim(axis, 0)
            at = torch.nonzero(moved.flatten(1).any(1)).flatten().tolist()
            assert len({place % block for place in at}) <= 1
        if block < min(size):
            assert 0 < int(mask.sum()) < mask.numel()
    if block * 4 <= edge:
        assert abs(float(masks.float().mean()) - share) < 0.35


def test_the_loss_looks_at_hidden_voxels_alone() -> None:
    torch.manual_seed(0)
    task = Pretraining(["a", "b"], Settings(block=4, hidden=0.5))
    image = torch.randn(2, 2, 16, 16)
    batch = task.prepared({"image": image})
    hidden = batch["hidden"].expand_as(image)
    assert bool((batch["image"][hidden] == 0).all())
    assert torch.equal(batch["image"][~hidden], image[~hidden])
    assert torch.equal(batch["whole"], image)
    right = torch.where(hidden, image, 100.0)
    assert float(task.loss(right, batch)) == 0.0
    wrong = right + 2.0 * hidden
    assert float(task.loss(wrong, batch)) == pytest.approx(4.0)
    noisy = Pretraining(["a", "b"], Settings(block=4, hidden=0.5, noise=1.0))
    batch = noisy.prepared({"image": image})
    hidden = batch["hidden"].expand_as(image)
    assert not torch.equal(batch["image"][~hidden], image[~hidden])
    assert float(noisy.loss(image, batch)) == 0.0
    assert float(noisy.loss(image + 3.0 * ~hidden, batch)) == pytest.approx(9.0, rel=1e-5)


def test_scores_of_all_cases() -> None:
    found = Pretraining(["a"]).summarise(np.array([[0.5, 1.0], [0.25, 2.0]]))
    assert found == {"explained": pytest.approx(1 - 0.375 / 1.5), "error": pytest.approx(0.375)}
