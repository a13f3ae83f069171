"""Weights from elsewhere: the authors' ImageNet checkpoints, for images and, inflated, for volumes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmt_med.base.errors import DataError, NetworkError
from cmt_med.blocks.conv import channels_last_weights, check_channels
from cmt_med.blocks.position import resize_table
from cmt_med.networks.encoders.cmt import CMT, KV_STRIDES, PAPER, PaperBackbone
from cmt_med.networks.weights.inflation import inflate
from cmt_med.networks.weights.official import from_official

__all__ = ["inflate", "load_official_cmt", "load_pretrained", "read_state_dict"]


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
    check_channels(in_channels, num_classes)
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
    state[stem] = _with_channels(_entry(state, stem), in_channels)
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
                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            pickle.UnpicklingError,
            SafetensorError,
        ) as error:
            raise DataError(
                "the weights cannot be read",
                where=str(path),
                why=_reason(error, path),
                fix="check the path"
                if isinstance(error, FileNotFoundError)
                else "give a file of tensors; of a checkpoint with more inside, save the state dict alone",
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
            fix="give the checkpoint as published; of a run of cmt_med, its folder or its model/",
            code="E_WEIGHTS",
        )
    return dict(content)


_TEXT = (".csv", ".json", ".txt", ".yaml", ".yml")


def _reason(error: Exception, path: Path) -> str:
    """Why a file cannot be read; torch's own words advise to switch the protection off."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if path.suffix.lower() in _TEXT:
        return "it is a text file"
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
        return "it holds objects beside tensors, which could run code while they are read"
    if isinstance(error, SafetensorError):
        return str(error).splitlines()[0]
    return f"it is no {'safetensors file' if path.suffix == '.safetensors' else 'checkpoint of torch'}"


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
    state[stem] = _with_channels(_entry(state, stem), own[stem].shape[1])
    for i, stride in enumerate(encoder.strides[1:]):
        key = f"positions.{i}.bias_table"
        grids = [((n // stride,) * 2, (-(-n // stride // KV_STRIDES[i]),) * 2) for n in (edge, encoder.input_size)]
        table = _entry(state, key)
        if table.shape[1:] != tuple(math.prod(grid) for grid in grids[0]):
            raise NetworkError(
                "a position table does not belong to this checkpoint's image size",
                where=key,
                why=f"its shape is {tuple(table.shape)}, the first table is of images of {edge}×{edge}",
                fix="give the checkpoint as released",
            )
        state[key] = resize_table(table, grids[0], grids[1])
    if own[stem].ndim == 5:
        inflate(state, encoder)
    else:
        _check_fit(state, own, "of this encoder")
        encoder.load_state_dict(state, strict=True)
    channels_last_weights(network)
    return network


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


def _entry(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise NetworkError(
            "the checkpoint is not complete",
            where=key,
            why="there is no such tensor in it",
            fix="give the checkpoint as released",
        )
    return state[key]


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
