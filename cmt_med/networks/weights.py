"""Weights from elsewhere: the authors' ImageNet checkpoints, and 2D weights for 3D networks."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last_weights, replicate_depth
from cmt_med.blocks.position import resize_table
from cmt_med.errors import DataError, NetworkError
from cmt_med.networks.cmt import CMT, KV_STRIDES, PAPER, PaperBackbone

STAGES = "abcd"
MODES = ("centre", "average")

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


def load_official_cmt(
    path_or_state_dict: str | PathLike[str] | Mapping[str, Any],
    name: str,
    *,
    spatial_dims: int = 2,
    in_channels: int = 3,
    num_classes: int | None = 1000,
) -> CMT:
    """A network of the paper with the authors' weights.

    The size that the position tables belong to is read off the checkpoint; the network takes images of any size. For
    another number of channels, the colour kernels are summed (one channel) or repeated and rescaled; for another number
    of classes, the classifier starts anew; for volumes, see :func:`inflate` (centred).

    Args:
        path_or_state_dict: a file, or its content, possibly under the key ``model``.
        name: ``"cmt_ti"``, ``"cmt_xs"``, ``"cmt_s"`` or ``"cmt_b"``.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the logits; None for the backbone alone, which returns its five grids.

    Returns:
        The network, in train mode, as built.

    Raises:
        DataError: E_WEIGHTS, if the file cannot be read.
        NetworkError: if the content is not this network's.
    """
    if name not in PAPER:
        raise NetworkError(
            "there is no official network of this name", where=f"{name!r}", fix=f"use {', '.join(PAPER)}"
        )
    official = read_state_dict(path_or_state_dict)
    state = from_official(official)
    network = CMT(
        name,
        spatial_dims=2,
        in_channels=in_channels,
        num_classes=num_classes,
        input_size=_input_size(state),
    )
    own = network.state_dict()
    stem = "backbone.stem.convs.0.weight"
    state[stem] = _with_channels(state[stem], in_channels)
    if network.head is None:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    elif "head.classifier.weight" in state and len(state["head.classifier.weight"]) != num_classes:
        state |= {key: own[key] for key in ("head.classifier.weight", "head.classifier.bias")}
    state = {key: own[key] for key in own if key.endswith("num_batches_tracked")} | state
    _check_fit(state, own, f"a checkpoint of {name}")
    network.load_state_dict(state, strict=True)
    channels_last_weights(network)
    if spatial_dims == 2:
        return network
    volumes = CMT(
        name,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_classes=num_classes,
        input_size=network.backbone.input_size,
    )
    inflate(network.state_dict(), volumes)
    return volumes


def read_state_dict(source: str | PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file (``.safetensors``, or a pickle read with ``weights_only=True``) or of a dict.

    Raises:
        DataError: E_WEIGHTS, if the file cannot be read or holds something else.
    """
    content: Any = source
    if not isinstance(source, Mapping):
        path = Path(source)
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise DataError(
                "the weights cannot be read",
                where=str(path),
                why=str(error).splitlines()[0] if str(error) else type(error).__name__,
                fix="give a file of tensors; a pickle with anything else inside is refused for safety",
                code="E_WEIGHTS",
            ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(
            "these are not a network's weights",
            where="the dict" if isinstance(source, Mapping) else str(source),
            why="weights are a dict from names to tensors, possibly under the key 'model'",
            fix="give the checkpoint as published",
            code="E_WEIGHTS",
        )
    return dict(content)


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the authors' names."""
    return "stem_conv1.weight" in state


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and shapes translated to those of :class:`cmt_med.networks.cmt.CMT` in 2D.

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
        state[name] = tensor.flatten(1) if name.endswith(_LINEAR) else tensor
    for key in [key for key in state if ".attention.k." in key]:
        value = key.replace(".attention.k.", ".attention.v.")
        if value in state:
            state[key.replace(".attention.k.", ".attention.kv.")] = torch.cat([state.pop(key), state.pop(value)])
    return state


def inflate(state_dict_2d: Mapping[str, Tensor], network_3d: nn.Module, *, mode: str = "centre") -> nn.Module:
    """Load 2D weights into the 3D network of the same settings, so that depth-constant volumes give the 2D features.

    ``centre`` puts each kernel into its middle slice (an even one, which cuts depth into cells, into its first). ``average``
    spreads it evenly over depth; the equality then needs depth to be padded by repetition, which is switched on in the
    network (option ``depth_padding="replicate"`` of the paper's networks). Position tables are repeated along depth, or get
    a depth part of zero; matrices that read or write the 2×2 cells of a plane are shared among the 2×2×2 cells; everything
    else is copied.

    Args:
        state_dict_2d: of this package's network, or in the authors' layout.
        network_3d: its 3D sibling.
        mode: ``"centre"`` or ``"average"``.

    Returns:
        ``network_3d``.

    Raises:
        NetworkError: for an unknown mode, or if the two networks are no siblings.
    """
    if mode not in MODES:
        raise NetworkError("unknown inflation", where=f"mode={mode!r}", fix="use 'centre' or 'average'")
    planar = from_official(state_dict_2d) if is_official(state_dict_2d) else dict(state_dict_2d)
    own = network_3d.state_dict()
    if not any(key.startswith("head.") for key in own):
        planar = {key: tensor for key, tensor in planar.items() if not key.startswith("head.")}
    state: dict[str, Tensor] = {}
    for key, target in own.items():
        if key.endswith("depth_bias_table") and key not in planar:
            state[key] = torch.zeros_like(target)
        elif key.endswith("num_batches_tracked") and key not in planar:
            state[key] = target
        elif key in planar:
            state[key] = _inflated(key, planar[key], target, mode)
    missing = [key for key in own if key not in state]
    left = [key for key in planar if key not in own]
    if missing or left:
        raise NetworkError(
            "the 2D weights are not this network's",
            where=(missing or left)[0],
            why=f"{len(missing)} tensors are missing, {len(left)} are left over",
            fix="build both networks with the same options",
        )
    network_3d.load_state_dict(state, strict=True)
    if mode == "average":
        replicate_depth(network_3d)
    channels_last_weights(network_3d)
    return network_3d


def load_pretrained(network: nn.Module, source: str | PathLike[str] | Mapping[str, Any]) -> nn.Module:
    """Load the authors' weights into the encoder of a segmentation network, of images or volumes; returns it.

    Position tables are interpolated to the encoder's ``input_size``, colour kernels adapted to its channels, and weights
    centred in depth for volumes (:func:`inflate`). The decoder stays as it is.

    Raises:
        DataError: E_WEIGHTS, if the file cannot be read.
        NetworkError: if the network has no encoder of the paper, or the weights are not that encoder's.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, PaperBackbone):
        raise NetworkError(
            "this network has no encoder that official weights fit",
            where="network.pretrained",
            fix=f"use one of {', '.join(name.replace('cmt_', 'cmt_unetr_') for name in PAPER)}",
        )
    official = from_official(read_state_dict(source))
    edge = _input_size(official)
    state = {key.removeprefix("backbone."): t for key, t in official.items() if key.startswith("backbone.")}
    own = encoder.state_dict()
    state = {key: own[key] for key in own if key.endswith("num_batches_tracked")} | state
    stem = "stem.convs.0.weight"
    state[stem] = _with_channels(state[stem], own[stem].shape[1])
    for i, stride in enumerate(encoder.strides[1:]):
        key = f"positions.{i}.bias_table"
        grids = [((n // stride,) * 2, (-(-n // stride // KV_STRIDES[i]),) * 2) for n in (edge, encoder.input_size)]
        state[key] = resize_table(state[key], grids[0], grids[1])
    if own[stem].ndim == 5:
        inflate(state, encoder)
    else:
        _check_fit(state, own, "of this encoder")
        encoder.load_state_dict(state, strict=True)
    channels_last_weights(network)
    return network


def _translate(key: str) -> str | None:
    for pattern, replacement in _RULES:
        match = re.match(pattern, key)
        if match is None:
            continue
        name = match.expand(replacement) + key[match.end() :]
        name = re.sub(r"\{(\d)\}", lambda m: str(int(m[1]) - 1), name)  # they count the stem from 1
        return re.sub(r"\.([abcd])(?=\.)", lambda m: f".{STAGES.index(m[1])}", name, count=1)
    return None


def _input_size(state: Mapping[str, Tensor]) -> int:
    table = state.get("backbone.positions.0.bias_table")
    if table is None or table.ndim != 3 or math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
        raise NetworkError(
            "the checkpoint has no position table of a square image",
            where="relative_pos_a",
            why="missing" if table is None else f"its shape is {tuple(table.shape)}",
            fix="give the checkpoint as released",
        )
    return 4 * math.isqrt(table.shape[1])


def _with_channels(weight: Tensor, in_channels: int) -> Tensor:
    colours = weight.shape[1]
    if in_channels == colours:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % colours for i in range(in_channels)]] * (colours / in_channels)


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    wrong = sorted(set(state) ^ set(own)) or [key for key in own if state[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        given = tuple(state[key].shape) if key in state else "missing"
        wanted = tuple(own[key].shape) if key in own else "no such tensor"
        raise NetworkError(
            f"the weights are not {what}",
            where=key,
            why=f"{len(wrong)} tensors do not fit; this one is {given}, the network has {wanted}",
            fix="check the network's name, and that the file is complete",
        )


def _inflated(key: str, planar: Tensor, target: Tensor, mode: str) -> Tensor:
    if target.ndim == 5 and planar.ndim == 4:
        cells = _spread_cells(planar, target.shape[:2])
        depth = target.shape[2]
        if cells.shape != target[:, :, 0].shape:
            result = cells
        elif mode == "average":
            result = (cells / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
        else:
            result = torch.zeros_like(target)
            # an even kernel cuts depth into cells, of which the last may be cut short: its first slice is always there
            result[:, :, depth // 2 if depth % 2 else 0] = cells
    elif key.endswith("bias_table") and planar.ndim == 2 and planar.shape != target.shape:
        result = planar.repeat(target.shape[0] // planar.shape[0], 1)  # depth is the slowest axis
    elif planar.ndim == target.ndim and 1 <= planar.ndim <= 2:
        result = _spread_cells(planar, target.shape)
    else:
        result = planar
    if result.shape != target.shape:
        raise NetworkError(
            "a 2D tensor cannot be inflated to its 3D sibling",
            where=key,
            why=f"it has the shape {tuple(planar.shape)}, the 3D network's is {tuple(target.shape)}",
            fix="build both networks with the same options",
        )
    return result


def _spread_cells(weight: Tensor, shape: torch.Size) -> Tensor:
    """Share rows and columns that belong to the cells of a plane among the two planes of a volume's cells.

    Rows (outputs) are repeated. Of the columns (inputs), the last ``shape[1] - weight.shape[1]`` belong to cells: they
    are halved and repeated. Depth is the slowest index of a cell.
    """
    if len(shape) > 1 and shape[1] != weight.shape[1]:
        cells = shape[1] - weight.shape[1]
        features = weight.shape[1] - cells
        if cells < 0 or features < 0:
            return weight
        weight = torch.cat([weight[:, :features], weight[:, features:] / 2, weight[:, features:] / 2], dim=1)
    return torch.cat([weight, weight]) if shape[0] == 2 * weight.shape[0] else weight
