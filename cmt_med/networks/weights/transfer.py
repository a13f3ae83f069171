"""Starting from another network's weights: what fits by name and shape is taken, and an account says what was not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import channels_last_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChannelMap:
    """The correspondence of two networks' image channels.

    Attributes:
        rows: for each of the own channels, the other network's; None for the mean of all of its channels.
        theirs: number of the other network's channels.
        spatial_dims: 2 or 3.
    """

    rows: tuple[int | None, ...]
    theirs: int
    spatial_dims: int

    @classmethod
    def by_name(cls, own: Sequence[str], theirs: Sequence[str], spatial_dims: int) -> ChannelMap:
        """Channels of one name correspond."""
        return cls(tuple(theirs.index(name) if name in theirs else None for name in own), len(theirs), spatial_dims)

    @property
    def is_plain(self) -> bool:
        """Tell whether both take the same channels in the same order."""
        return self.rows == tuple(range(self.theirs))

    def __str__(self) -> str:
        parts = [f"{i} is the mean of all" if r is None else f"{i} was {r}" for i, r in enumerate(self.rows)]
        return f"image channels: {', '.join(parts)}"


@dataclass
class Account:
    """An account of all tensors; every name of the network is in exactly one of the first four.

    Attributes:
        matched: taken as they are.
        adapted: taken for another number of image channels; name -> how.
        skipped: there under that name, but of another shape, so started at random; name -> the two shapes.
        missing: not there, so started at random.
        left_over: there, but not in this network.
    """

    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    @property
    def taken(self) -> set[str]:
        """Names of what does not start at random."""
        return {*self.matched, *self.adapted}

    def as_dict(self) -> dict[str, Any]:
        """For ``pretrained.json``."""
        return dict(vars(self))

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{len(self.matched)} tensors taken as they are"]
        found += [f"{name}: {how}" for name, how in self.adapted.items()]
        found += [f"{name} starts at random: {shapes}" for name, shapes in self.skipped.items()]
        found += [f"{name} starts at random: it is not there" for name in self.missing]
        return found + [f"{name} is left over" for name in self.left_over]


def transfer(network: nn.Module, state: Mapping[str, Tensor], channels: ChannelMap | None = None) -> Account:
    """Load what fits of another network's weights, in place.

    Args:
        network: to start.
        state: the other network's tensors.
        channels: how image channels correspond; None if that is not known, and both take the same number.

    Returns:
        The account.

    Raises:
        NetworkError: if nothing fits, or a tensor that would be taken is not finite.
    """
    own = network.state_dict()
    layers = dict(network.named_modules())
    state = {_own_name(name, own): tensor for name, tensor in state.items()}
    account, loaded = Account(left_over=[name for name in state if name not in own]), {}
    for name, target in own.items():
        if name not in state:
            account.missing.append(name)
            continue
        source, adapted = state[name], False
        if channels is not None and not channels.is_plain and name.endswith(".weight"):
            found = _with_channels(source, target, layers[name.rpartition(".")[0]], channels)
            source, adapted = (source, False) if found is None else (found, True)
        if source.shape != target.shape:
            account.skipped[name] = f"{tuple(source.shape)} there, {tuple(target.shape)} here"
            continue
        if not bool(source.isfinite().all()):
            raise NetworkError(
                "the weights to start from are not finite", where=name, why="they are damaged, or their training diverged",
                fix="give other weights",
            )  # fmt: skip
        loaded[name] = source
        if adapted:
            account.adapted[name] = str(channels)
        else:
            account.matched.append(name)
    if not any(own[name].ndim > 1 for name in loaded):
        raise NetworkError(
            "none of the weights fits this network", where="network.pretrained",
            why=f"{len(account.left_over)} of its tensors have other names, {len(account.skipped)} other shapes",
            fix="build the network with the name and options of the one that was trained",
        )  # fmt: skip
    network.load_state_dict(own | loaded, strict=True)
    channels_last_weights(network)
    return account


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """The name of a tensor in this network: the paper's networks call ``backbone`` what the others call ``encoder``."""
    for theirs, ours in (("encoder.", "backbone."), ("backbone.", "encoder.")):
        if name.startswith(theirs) and name not in own and ours + name.removeprefix(theirs) in own:
            return ours + name.removeprefix(theirs)
    return name


def _with_channels(source: Tensor, target: Tensor, layer: nn.Module, channels: ChannelMap) -> Tensor | None:
    """Adapt the weight of a layer that reads the image to other channels; None for any other layer.

    Its last inputs are the image's channels, or 2×2(×2) cells of them, channels fastest: (O, F + n·C', ...) becomes
    (O, F + n·C, ...).
    """
    mine = len(channels.rows)
    cells = int(getattr(layer, "cell_inputs", 0))
    plain = isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.groups == 1 and layer.in_channels == mine
    if cells != mine and not plain:
        return None
    n = 2**channels.spatial_dims if cells else 1
    features = target.shape[1] - n * mine
    if source.ndim != target.ndim or features < 0 or source.shape[1] != features + n * channels.theirs:
        return None
    image = source[:, features:].unflatten(1, (n, channels.theirs))  # (O, n, C', ...)
    mean = image.mean(2)
    chosen = torch.stack([mean if row is None else image[:, :, row] for row in channels.rows], dim=2)  # (O, n, C, ...)
    return torch.cat([source[:, :features], chosen.flatten(1, 2)], dim=1)
