"""2D weights for 3D networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import GridConv3d, channels_last_weights, pad_depth
from cmt_med.networks.weights.official import from_official, is_official

MODES = ("centre", "average")

log = logging.getLogger(__name__)


def inflate(state_dict_2d: Mapping[str, Tensor], network_3d: nn.Module, *, mode: str = "centre") -> nn.Module:
    """Load 2D weights into the 3D network of the same settings, so that depth-constant volumes give the 2D features.

    ``centre`` puts each kernel into its middle slice (an even one, which cuts depth into cells, into its first).
    ``average`` spreads it evenly over depth; the equality then needs depth to be padded by repetition and to be a
    multiple of the coarsest stride. That padding is switched on in the network; build a network with the option
    ``depth_padding="replicate"`` to load such weights again later. Position tables are repeated along depth, or get a
    depth part of zero; matrices that write the 2×2 cells of a plane write both planes of the 2×2×2 cells; those that
    read them read the first plane (``centre``) or the mean of both; everything else is copied.

    Args:
        state_dict_2d: of this package's network of images, or in the authors' layout.
        network_3d: its sibling for volumes.
        mode: ``"centre"`` or ``"average"``.

    Returns:
        ``network_3d``.

    Raises:
        NetworkError: for an unknown mode, or if the two networks are no siblings; the network is then as it was.
    """
    if mode not in MODES:
        raise NetworkError("unknown inflation", where=f"mode={mode!r}", fix="use 'centre' or 'average'")
    if not isinstance(state_dict_2d, Mapping):
        raise NetworkError(
            "these are no weights", where=type(state_dict_2d).__name__, why="a dict from names to tensors is needed",
            fix="give network.state_dict(), not the network",
        )  # fmt: skip
    convolutions = [part for part in network_3d.modules() if isinstance(part, nn.Conv3d)]
    if not convolutions:
        raise NetworkError(
            "the network to fill is not for volumes", where=type(network_3d).__name__,
            why="it has no convolution over three axes", fix="build it with spatial_dims=3",
        )  # fmt: skip
    if mode == "average" and not any(isinstance(part, GridConv3d) for part in convolutions):
        raise NetworkError(
            "averaging is for this package's networks", where=f"mode='average', {type(network_3d).__name__}",
            why="depth must be padded by repetition, and this network's convolutions pad it with zeros",
            fix="use mode='centre'",
        )  # fmt: skip
    planar = from_official(state_dict_2d) if is_official(state_dict_2d) else dict(state_dict_2d)
    own = network_3d.state_dict()
    if not any(key.startswith("head.") for key in own):
        planar = {key: tensor for key, tensor in planar.items() if not key.startswith("head.")}
    layers = dict(network_3d.named_modules())
    state: dict[str, Tensor] = {}
    for key, target in own.items():
        if key.endswith("depth_bias_table") and key not in planar:
            state[key] = torch.zeros_like(target)
        elif key.endswith("num_batches_tracked") and key not in planar:
            state[key] = target
        elif key in planar:
            layer = layers[key.rpartition(".")[0]]
            if planar[key].ndim == 5:
                raise NetworkError(
                    "these weights are of volumes already", where=key, why=f"it has the shape {tuple(planar[key].shape)}",
                    fix="load them with load_state_dict",
                )  # fmt: skip
            state[key] = _inflated(planar[key], target, layer, mode)
            if state[key].shape != target.shape:
                raise NetworkError(
                    "a 2D tensor cannot be inflated to its 3D sibling",
                    where=key,
                    why=f"it has the shape {tuple(planar[key].shape)}, the 3D network's is {tuple(target.shape)}",
                    fix="build both networks with the same options, channels and classes",
                )
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
        if not all(part.replicate_depth for part in network_3d.modules() if isinstance(part, GridConv3d)):
            log.warning(
                "averaged weights: depth is padded by repetition from now on; rebuild with depth_padding=replicate"
            )
        pad_depth(network_3d, "replicate")
    channels_last_weights(network_3d)
    return network_3d


def _inflated(planar: Tensor, target: Tensor, layer: nn.Module, mode: str) -> Tensor:
    """The 2D tensor of a layer in 3D; of another shape than the target where the two are no siblings."""
    if isinstance(layer, nn.Conv3d | nn.Linear):
        weight = _with_cells(planar, layer, mode)
        return _with_depth(weight, target.shape[2], mode) if planar.ndim == 4 and target.ndim == 5 else weight
    if (
        planar.ndim == target.ndim == 2
        and target.shape[0] % planar.shape[0] == 0
        and planar.shape[1] == target.shape[1]
    ):
        return planar.repeat(target.shape[0] // planar.shape[0], 1)  # a bias table; depth is the slowest axis
    return planar


def _with_depth(kernel: Tensor, depth: int, mode: str) -> Tensor:
    """(O, I, H, W) -> (O, I, depth, H, W)"""
    if mode == "average":
        return (kernel / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
    result = kernel.new_zeros((*kernel.shape[:2], depth, *kernel.shape[2:]))
    # An even kernel cuts depth into cells, of which the last may be cut short: its first slice is always there.
    result[:, :, depth // 2 if depth % 2 else 0] = kernel
    return result


def _with_cells(weight: Tensor, layer: nn.Module, mode: str) -> Tensor:
    """Weight or bias of a layer that reads or writes cells (:func:`cmt_med.blocks.conv.cells_of`), for cells of a volume.

    Depth is the slowest index of a cell: its first plane comes first.
    """
    cells = 4 * int(getattr(layer, "cell_inputs", 0))
    if cells and weight.ndim > 1:
        features, plane = weight[:, : weight.shape[1] - cells], weight[:, weight.shape[1] - cells :]
        # Of a cell at an odd edge only the first plane is there.
        both = [plane / 2, plane / 2] if mode == "average" else [plane, torch.zeros_like(plane)]
        weight = torch.cat([features, *both], dim=1)
    return torch.cat([weight, weight]) if getattr(layer, "cell_outputs", False) else weight
