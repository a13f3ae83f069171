"""The optimiser, as the config names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cmt_med.config.schema import Optimizer


def optimiser(network: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW (fused), or SGD with Nesterov's momentum; the learning rate of each step is set by the step."""
    groups = decay_groups(network, settings.weight_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices and kernels decay, biases, norms and position tables do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (kept if parameter.ndim <= 1 or "bias" in name.rpartition(".")[2] else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
