"""The optimiser is the one that the config names, with its numbers."""

from __future__ import annotations

import pytest
import torch

from cmt_med.config.schema import Optimizer
from cmt_med.training.optimiser import optimiser


def test_adamw_with_the_betas_of_the_config() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    found = optimiser(network, Optimizer(betas=(0.8, 0.95), weight_decay=0.1))
    assert isinstance(found, torch.optim.AdamW)
    assert [group["betas"] for group in found.param_groups] == [(0.8, 0.95)] * 2
    assert [group["weight_decay"] for group in found.param_groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in found.param_groups] == [1, 3]  # the matrix; its bias, and the norm's two


def test_sgd_moves_by_hand() -> None:
    """Two steps of Nesterov's momentum on f(w) = w² / 2, whose gradient is w: v = m v + g, w -= lr (g + m v)."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    found = optimiser(network, Optimizer(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.0))
    w, v = 1.0, 0.0
    for _ in range(2):
        found.zero_grad()
        (network.weight.square().sum() / 2).backward()
        found.step()
        v = 0.5 * v + w
        w -= 0.1 * (w + 0.5 * v)
        assert network.weight.item() == pytest.approx(w, abs=1e-6)
