"""Networks under one contract: one literal table from name to builder, and one function."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from cmt_med.blocks.conv import check_spatial_dims
from cmt_med.errors import NetworkError
from cmt_med.networks.cmt_unetr import CMTUNETR

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cmt_unetr": CMTUNETR,
}


def build_network(
    name: str, *, spatial_dims: int, in_channels: int, num_classes: int, deep_supervision: bool = False, **options: Any
) -> nn.Module:
    """Build a network by name.

    Args:
        name: a key of ``NETWORKS``.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the result.
        deep_supervision: in train mode, return a list of logits, finest first.
        options: keyword arguments of that network.

    Returns:
        A module from (B, in_channels, *S) to (B, num_classes, *S).

    Raises:
        NetworkError: for an unknown name or option.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        raise NetworkError(
            "unknown network",
            where=f"network.name={name!r}",
            fix=f"did you mean {near[0]}?" if near else f"known networks: {', '.join(NETWORKS)}",
        )
    check_spatial_dims(spatial_dims)
    builder = NETWORKS[name]
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            raise NetworkError(
                f"{name} has no option {option}",
                where=f"network.options.{option}",
                fix=f"did you mean {near[0]}?" if near else f"its options: {', '.join(known)}",
            )
    try:
        return builder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise NetworkError(f"{name} cannot be built", where=f"network.options={options}", why=str(error)) from error
