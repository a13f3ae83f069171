"""A trained network from its card and its weights, neither of which is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cmt_med.base.errors import DataError, NetworkError
from cmt_med.inference.model import ModelCard
from cmt_med.networks import CLASSIFIERS, DETECTORS, MASK_NETWORKS, build_network


def trained_network(card: ModelCard, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network that the card describes, with the weights.

    A card can claim any size: no more memory is touched while the network is built than twice what the weights take.

    Raises:
        DataError: E_MODEL if there is no such network, or the weights are another's.
    """
    try:
        with _no_larger_than(weights):
            network = build_network(**card.network)
    except (NetworkError, MemoryError) as error:
        raise _fault(card, getattr(error, "why", "") or "it does not fit into memory") from error
    if (card.network["name"] in CLASSIFIERS) == card.outputs.dense:
        answers = "for each position" if not card.outputs.dense else "once for a whole image"
        raise _fault(card, f"{card.network['name']} answers {answers}, and its task is {card.task}")
    name, task = card.network["name"], card.outputs
    if (name in DETECTORS) != task.boxes or (name in MASK_NETWORKS) != task.queries:
        raise _fault(card, f"{card.network['name']} is no network for its task, {card.task}")
    own = network.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        given, wanted = (tuple(d[wrong[0]].shape) if wrong[0] in d else "missing" for d in (weights, own))
        why = f"{len(wrong)} tensors do not fit; {wrong[0]} is {given} in the file, {wanted} in the network"
        raise _fault(card, why)
    network.load_state_dict(weights, strict=True)
    return network


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, modules get no more than twice the parameters that the weights have: some replace a few.

    Each is counted when a module gets it, which is before it is initialised: until then its memory is only reserved.
    """
    left = 2 * sum(tensor.numel() for tensor in weights.values())

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal left
        left -= parameter.numel() if parameter is not None else 0
        if left < 0:
            raise ValueError("it is far larger than the file of its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _fault(card: ModelCard, why: str) -> DataError:
    return DataError(
        "model.json and the weights are not of one network", where=f"model {card.name}", why=why,
        fix="copy the model again, from where it was trained", code="E_MODEL",
    )  # fmt: skip
