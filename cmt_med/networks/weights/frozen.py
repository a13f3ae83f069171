"""Parts of a network that training leaves as they are, and the depth of each parameter."""

from __future__ import annotations

import re

from torch import nn

from cmt_med.base.errors import NetworkError


def freeze_encoder(network: nn.Module) -> nn.Module:
    """Take the encoder out of training; returns it, so that its statistics can be kept, too (eval mode).

    Raises:
        NetworkError: if the network has no encoder of its own.
    """
    encoder = getattr(network, "encoder", getattr(network, "backbone", None))
    if not isinstance(encoder, nn.Module):
        raise NetworkError(
            "this network has no encoder to freeze", where="network.freeze=encoder",
            why="what extracts features cannot be told apart from the rest of it", fix="use a cmt_unetr network, or leave it out",
        )  # fmt: skip
    return encoder.requires_grad_(False).eval()


_LEVEL = re.compile(r"^(?:encoder|backbone)\.(?:merges|stages|positions|norms)\.(\d+)\.")


def levels_above(network: nn.Module) -> dict[str, int]:
    """For each parameter how many levels lie between it and the decoder: 0 for the decoder, 1 for the coarsest stage.

    Raises:
        NetworkError: if the network has no encoder of its own.
    """
    names = [name for name, _ in network.named_parameters()]
    stages = 1 + max((int(match[1]) for name in names if (match := _LEVEL.match(name))), default=-1)
    if not stages:
        raise NetworkError(
            "this network has no stages to train at rates of their own", where="optimizer.layer_decay",
            why="its parameters do not say how deep they lie", fix="use a cmt_unetr network, or leave it out",
        )  # fmt: skip
    found = {}
    for name in names:
        match = _LEVEL.match(name)
        found[name] = (
            stages - int(match[1]) if match else stages + 1 if name.startswith(("encoder.", "backbone.")) else 0
        )
    return found
