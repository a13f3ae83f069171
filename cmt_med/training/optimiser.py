"""The optimiser, as the config names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cmt_med.config.schema import Optimizer


def optimiser(
    network: nn.Module, settings: Optimizer, levels: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """AdamW (fused), or SGD with Nesterov's momentum; the learning rate of each step is set by the step.

    Args:
        network: parameters that need no gradient are left out.
        settings: of the config.
        levels: for each parameter how many levels it lies above the decoder, for ``layer_decay``; None for one rate.
    """
    groups = parameter_groups(network, settings.weight_decay, settings.layer_decay, levels)
    if settings.decoder_first > 0:
        groups = [group | {"late": group.pop("level", 0) > 0} for group in groups]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def parameter_groups(
    network: nn.Module, weight_decay: float, layer_decay: float = 1.0, levels: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimiser: matrices and kernels decay, biases, norms and position tables do not.

    Where there are ``levels``, a group for each of them, whose rate is the step's times ``scale``.
    """
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    if levels is None:
        found = {(0, True): [], (0, False): []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = not (parameter.ndim <= 1 or "bias" in name.rpartition(".")[2])
            found.setdefault((levels[name] if levels is not None else 0, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        | ({"scale": layer_decay**level, "level": level} if levels is not None else {})
        for (level, decays), parameters in found.items()
    ]
