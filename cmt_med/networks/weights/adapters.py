"""Low-rank adapters (LoRA, Hu et al., ICLR 2022): a pretrained encoder stays, and its linear layers learn a small change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cmt_med.base.errors import NetworkError


class LowRank(nn.Module):
    """A matrix and a product of two narrow ones: W -> W + up · down, zero at the start.

    Args:
        outputs, inputs: size of the matrix.
        rank: columns of ``up`` and rows of ``down``.
    """

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.down = nn.Parameter(torch.empty(rank, inputs))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_adapters(network: nn.Module, rank: int) -> None:
    """Freeze the encoder, and give each linear layer in it (attention, pointwise convolutions) an adapter, in place.

    Layers that are no larger than the rank stay frozen.

    Raises:
        NetworkError: if the network has no encoder of its own, or no layer in it is larger than the rank.
    """
    encoder = getattr(network, "encoder", getattr(network, "backbone", None))
    layers = (
        [part for part in encoder.modules() if isinstance(part, nn.Linear)] if isinstance(encoder, nn.Module) else []
    )
    layers = [layer for layer in layers if min(layer.weight.shape) > rank]
    if not isinstance(encoder, nn.Module) or not layers:
        raise NetworkError(
            "this network has nothing to adapt", where=f"network.adapters={rank}",
            why="it has no encoder of its own" if encoder is None else "no linear layer of its encoder is larger than the rank",
            fix="use a cmt_unetr network and a rank of 4 to 16, or leave it out",
        )  # fmt: skip
    encoder.requires_grad_(False)
    for layer in layers:
        outputs, inputs = layer.weight.shape
        adapter = LowRank(outputs, inputs, rank).to(layer.weight)
        parametrize.register_parametrization(layer, "weight", adapter, unsafe=True)
        layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]


def merged(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network with adapters as those of one without: each matrix with its change added.

    Args:
        network: with adapters; it takes the weights.
        weights: its state.
    """
    network.load_state_dict(weights)
    found = {name: tensor for name, tensor in weights.items() if ".parametrizations." not in name}
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            found[f"{name}.weight"] = module.weight.detach().clone()
    return found


def trained_parameters(network: nn.Module) -> tuple[int, int]:
    """How many parameters training changes, and how many there are."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
