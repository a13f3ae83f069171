"""Networks under one contract: one literal table from name to builder, and one function."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, ValidationError, create_model
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.blocks.conv import check_channels, check_spatial_dims
from cmt_med.networks.cmt_unetr import PAPER_UNETRS, cmt_unetr, cmt_unetr_pyramid
from cmt_med.networks.encoders.cmt import PAPER_NETWORKS
from cmt_med.networks.heads.classifier import cmt_classifier, monai_densenet
from cmt_med.networks.heads.detector import cmt_detector
from cmt_med.networks.heads.mask_queries import cmt_mask_queries
from cmt_med.networks.heads.retinanet import cmt_retinanet
from cmt_med.networks.heads.set_detector import cmt_detr
from cmt_med.networks.peers import (
    monai_dynunet,
    monai_mednext,
    monai_segresnet,
    monai_swin_unetr,
    monai_swin_unetr_v2,
    monai_unetr,
)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cmt_ti": PAPER_NETWORKS["cmt_ti"],
    "cmt_xs": PAPER_NETWORKS["cmt_xs"],
    "cmt_s": PAPER_NETWORKS["cmt_s"],
    "cmt_b": PAPER_NETWORKS["cmt_b"],
    "cmt_classifier": cmt_classifier,
    "cmt_detector": cmt_detector,
    "cmt_detr": cmt_detr,
    "cmt_mask_queries": cmt_mask_queries,
    "cmt_retinanet": cmt_retinanet,
    "cmt_unetr": cmt_unetr,
    "cmt_unetr_pyramid": cmt_unetr_pyramid,
    "cmt_unetr_ti": PAPER_UNETRS["cmt_unetr_ti"],
    "cmt_unetr_xs": PAPER_UNETRS["cmt_unetr_xs"],
    "cmt_unetr_s": PAPER_UNETRS["cmt_unetr_s"],
    "cmt_unetr_b": PAPER_UNETRS["cmt_unetr_b"],
    "monai_swin_unetr": monai_swin_unetr,
    "monai_swin_unetr_v2": monai_swin_unetr_v2,
    "monai_unetr": monai_unetr,
    "monai_segresnet": monai_segresnet,
    "monai_dynunet": monai_dynunet,
    "monai_mednext": monai_mednext,
    "monai_densenet": monai_densenet,
}

CLASSIFIERS = (*PAPER_NETWORKS, "cmt_classifier", "monai_densenet")
"""Names of the networks that answer once for a whole image."""
DETECTORS = ("cmt_detector", "cmt_detr", "cmt_retinanet")
"""Names of the networks that find boxes."""
MASK_NETWORKS = ("cmt_mask_queries",)
"""Names of the networks that find objects with a mask each; all others answer for each position."""

NETWORKS_VERSION = 2
"""Counts up when a name and its options come to mean another network: runs begun before cannot be resumed."""

FIXED = ("spatial_dims", "in_channels", "num_classes", "deep_supervision")
"""Arguments of every builder that the experiment sets; ``network.options`` must not."""


REFUSALS = (ValueError, RuntimeError)
"""Errors that torch raises for sizes that do not go together; anything else in our own networks is a fault of ours."""
PEERS_REFUSALS = (*REFUSALS, ArithmeticError, LookupError, TypeError, AttributeError)
"""Errors that MONAI's networks raise for options that they do not check."""


def build_network(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_classes: int | None,
    deep_supervision: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: a key of ``NETWORKS``.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the result; None, for our own ``CLASSIFIERS`` only: no classifier, the result is the pyramid.
        deep_supervision: in train mode, return a list of logits, finest first.
        options: keyword arguments of that network.

    Returns:
        A module from (B, in_channels, *S) to (B, num_classes, *S), to (B, num_classes) for ``CLASSIFIERS``, or to maps
        (B, num_classes + 2d, *ceil(S / stride)) for ``cmt_detector``; ``cmt_detr`` and
        ``cmt_retinanet`` give a set, (B, n, num_classes + 2d), and ``cmt_mask_queries`` one with masks,
        (B, n, num_classes + 2d + positions). It raises NetworkError for an input of another kind.

    Raises:
        NetworkError: for an unknown name or option, or one that the network does not have.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        near = difflib.get_close_matches(str(name), NETWORKS, 1)
        raise NetworkError(
            "unknown network",
            where=f"network.name={name!r}",
            fix=f"did you mean {near[0]}?" if near else f"known networks: {', '.join(NETWORKS)}",
        )
    check_spatial_dims(spatial_dims)
    check_channels(in_channels, num_classes)
    builder = NETWORKS[name]
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            raise NetworkError(
                f"{name} has no option {option}",
                where=f"network.options.{option}",
                fix=f"did you mean {near[0]}?"
                if near
                else f"its options: {', '.join(k for k in known if k not in FIXED)}",
            )
    for option, value in {**options, "deep_supervision": deep_supervision}.items():
        default = known[option].default if option in known else False
        if isinstance(default, bool) and not isinstance(value, bool):
            raise NetworkError(
                f"{option} is a switch", where=f"network.options.{option}={value!r}",
                why="any word but an empty one would switch it on", fix="use true or false",
            )  # fmt: skip
    if "deep_supervision" in known:
        options["deep_supervision"] = deep_supervision
    elif deep_supervision:
        raise NetworkError(f"{name} has no deep supervision", where="deep_supervision=True", fix="set it to false")
    headless = [key for key in CLASSIFIERS if key.startswith("cmt_")]
    if num_classes is None and name not in headless:
        raise NetworkError(
            f"{name} needs a number of classes",
            where="num_classes=None",
            fix=f"only {', '.join(headless)} can do without",
        )
    _check_types(name, builder, options)
    try:
        network = builder(spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes, **options)
    except PEERS_REFUSALS as error:
        if name.startswith("cmt_") and not isinstance(error, REFUSALS):
            raise  # a fault of ours
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = ", ".join(f"{option}={value!r}" for option, value in options.items() if option != "deep_supervision")
        raise NetworkError(
            f"{name} cannot be built", where=f"network.options: {where or 'none given'}", why=why,
            fix="correct the option that the line above is about; the defaults fit together",
        ) from error  # fmt: skip
    network.register_forward_pre_hook(partial(_require_image, in_channels, spatial_dims), with_kwargs=True)
    return network


def _check_types(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    """Raise for options of another type than the builder's annotations say.

    Raises:
        NetworkError: naming the option.
    """
    made = builder.func if isinstance(builder, partial) else builder
    hints = get_type_hints(vars(made)["__init__"] if isinstance(made, type) else made)
    fields: Any = {option: (hints[option], ...) for option in options}
    try:
        create_model("Options", __config__=_TYPES, **fields).model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0])
        raise NetworkError(
            f"{name} cannot be built", where=f"network.options.{option}={options[option]!r}", why=first["msg"],
            fix="correct the option",
        ) from error  # fmt: skip


_TYPES = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _require_image(
    in_channels: int, spatial_dims: int, network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Raise unless the one input is a batch of images that the network is made for.

    Raises:
        NetworkError: with the shapes, where a layer inside would speak of its matrices.
    """
    wanted = f"(B, {in_channels}, {', '.join(f'D{i + 1}' for i in range(spatial_dims))})"
    inputs = (*arguments, *named.values())
    x = inputs[0] if len(inputs) == 1 or (inputs and getattr(network, "takes_hints", False)) else None
    if not isinstance(x, Tensor):
        raise NetworkError(
            "the network takes one tensor", where=", ".join(type(item).__name__ for item in inputs) or "no input",
            why=f"it maps images {wanted} of floats", fix="torch.from_numpy(array) makes a tensor of an array",
        )  # fmt: skip
    shape = tuple(x.shape)
    if len(shape) != spatial_dims + 2 or shape[1] != in_channels or any(size == 0 for size in shape):
        raise NetworkError(
            f"the network takes {wanted}", where=f"an input of shape {shape}",
            why=f"it was built for {in_channels} channels and {spatial_dims} spatial dimensions",
            fix="x[None] adds the batch axis to a single image; other channels need another network",
        )  # fmt: skip
    parameter = next(network.parameters(), None)
    dtype = x.dtype if parameter is None else parameter.dtype  # replicas of DataParallel have none
    if not x.is_floating_point() or (x.dtype != dtype and not torch.is_autocast_enabled(x.device.type)):
        raise NetworkError(
            f"the network takes {dtype}", where=f"an input of {x.dtype}", why="its weights are of that type",
            fix="x.float(), or network.to(x.dtype)",
        )  # fmt: skip
