"""The names and shapes of the authors' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cmt_med.base.errors import NetworkError

STAGES = "abcd"

_RULES: tuple[tuple[str, str], ...] = (
    (r"stem_conv(\d)\.", r"backbone.stem.convs.{\1}."),
    (r"stem_norm(\d)\.", r"backbone.stem.norms.{\1}."),
    (r"patch_embed_([a-d])\.proj\.", r"backbone.merges.\1.conv."),
    (r"patch_embed_([a-d])\.norm\.", r"backbone.merges.\1.norm."),
    (r"relative_pos_([a-d])", r"backbone.positions.\1.bias_table"),
    (r"blocks_([a-d])\.(\d+)\.attn\.sr\.", r"backbone.stages.\1.\2.attention.reduce."),
    (r"blocks_([a-d])\.(\d+)\.attn\.(q|k|v|proj)\.", r"backbone.stages.\1.\2.attention.\3."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.conv1\.0\.", r"backbone.stages.\1.\2.feed_forward.expand."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.conv1\.2\.", r"backbone.stages.\1.\2.feed_forward.norm1."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.proj\.", r"backbone.stages.\1.\2.feed_forward.conv."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.proj_bn\.", r"backbone.stages.\1.\2.feed_forward.norm2."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.conv2\.0\.", r"backbone.stages.\1.\2.feed_forward.project."),
    (r"blocks_([a-d])\.(\d+)\.mlp\.conv2\.1\.", r"backbone.stages.\1.\2.feed_forward.norm3."),
    (r"blocks_([a-d])\.(\d+)\.(norm1|norm2)\.", r"backbone.stages.\1.\2.\3."),
    (r"blocks_([a-d])\.(\d+)\.proj\.", r"backbone.stages.\1.\2.local.conv."),
    (r"_fc\.", r"head.conv."),
    (r"_bn\.", r"head.norm."),
    (r"head\.", r"head.classifier."),
)
_LINEAR = ("feed_forward.expand.weight", "feed_forward.project.weight", "head.conv.weight")
"""1×1 convolutions there, matrices here."""


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the authors' names."""
    return "stem_conv1.weight" in state


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and shapes translated to those of :class:`cmt_med.networks.encoders.cmt.CMT` in 2D.

    Raises:
        NetworkError: for a name that the layout does not have.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in official.items():
        name = _translate(key)
        if name is None:
            raise NetworkError(
                "not a checkpoint of the authors' network",
                where=key,
                why="their layout has no such name",
                fix="give the file as released",
            )
        if name.endswith(_LINEAR) and tensor.shape[2:] != (1, 1):
            raise _unlike(key, tensor, "a convolution of 1×1 has four axes, the last two of length one")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _unlike(key, tensor, "it has values that are not finite")
        state[name] = tensor.flatten(1) if name.endswith(_LINEAR) else tensor
    for key in [key for key in state if ".attention.k." in key]:
        value = key.replace(".attention.k.", ".attention.v.")
        if value in state:
            if state[key].shape != state[value].shape:
                raise _unlike(
                    key, state[key], f"keys and values have the same shape, and {value} has {tuple(state[value].shape)}"
                )
            state[key.replace(".attention.k.", ".attention.kv.")] = torch.cat([state.pop(key), state.pop(value)])
    return state


def _unlike(key: str, tensor: Tensor, why: str) -> NetworkError:
    return NetworkError(
        "not a checkpoint of the authors' network", where=f"{key}, shape {tuple(tensor.shape)}", why=why,
        fix="give the file as released",
    )  # fmt: skip


def _translate(key: str) -> str | None:
    for pattern, replacement in _RULES:
        match = re.match(pattern, key)
        if match is None:
            continue
        name = match.expand(replacement) + key[match.end() :]
        name = re.sub(r"\{(\d)\}", lambda m: str(int(m[1]) - 1), name)  # they count the stem from 1
        return re.sub(r"\.([abcd])(?=\.)", lambda m: f".{STAGES.index(m[1])}", name, count=1)
    return None
