"""Averaged weights, which are validated and become the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class AveragedWeights:
    """Exponential moving average of a network's parameters (EMA), with a warm-up of the decay.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, so that the start is forgotten quickly. Buffers are
    copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's present weights."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = network.state_dict()
        floating = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in floating], [current[n] for n in floating], weight)
        for name in self.weights.keys() - set(floating):
            self.weights[name].copy_(current[name])

    @contextlib.contextmanager
    def swapped_into(self, network: nn.Module) -> Iterator[None]:
        """Within the context, the network has the averaged weights."""
        saved = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(saved)
