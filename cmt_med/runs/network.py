"""The network of an experiment, as it starts: at random, or from weights that the config names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Experiment
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.inference.model import load_model, member_folders
from cmt_med.networks import CLASSIFIERS, DETECTORS, FIXED, MASK_NETWORKS, NETWORKS, build_network
from cmt_med.networks.encoders.cmt import PAPER
from cmt_med.networks.weights.official import is_official
from cmt_med.networks.weights.pretrained import load_pretrained, read_state_dict
from cmt_med.networks.weights.transfer import Account, ChannelMap, transfer
from cmt_med.runs.prepare import Prepared
from cmt_med.tasks import TASKS

log = logging.getLogger(__name__)


def check_network(experiment: Experiment, *, fresh: bool = False) -> None:
    """Build the network once, before data is read, which may take long.

    Raises:
        ConfigError: for a network that does not fit the task, or settings that do not fit together.
        DataError: E_WEIGHTS, if pretrained weights cannot be read.
    """
    settings = experiment.network
    dense = TASKS[experiment.task].dense
    if settings.name in CLASSIFIERS and dense:
        paper = settings.name.removeprefix("cmt_") if settings.name in PAPER else ""
        raise ConfigError(
            "this network classifies whole images",
            where=f"network.name={settings.name}",
            why=f"{experiment.task} needs a decoder",
            fix=f"use {f'cmt_unetr_{paper}' if paper else 'cmt_unetr'}, which has an encoder of its kind",
        )
    if settings.name in NETWORKS and settings.name not in CLASSIFIERS and not dense:
        raise ConfigError(
            "this network answers for each position", where=f"network.name={settings.name}",
            why=f"{experiment.task} needs one answer for a whole image", fix=f"use one of {', '.join(CLASSIFIERS)}",
        )  # fmt: skip
    boxes, unlabelled = TASKS[experiment.task].boxes, TASKS[experiment.task].unlabelled
    if settings.name in NETWORKS and (settings.name in DETECTORS) != boxes:
        raise ConfigError(
            f"this network finds {'no ' if boxes else ''}boxes", where=f"network.name={settings.name}",
            why=f"network and task ({experiment.task}) do not go together",
            fix=f"use {' or '.join(DETECTORS)}" if boxes
            else f"use task: detection, or {'cmt_unetr' if dense else 'cmt_classifier'}",
        )  # fmt: skip
    if settings.name in MASK_NETWORKS and not TASKS[experiment.task].objects:
        raise ConfigError(
            "this network finds objects with a mask each", where=f"network.name={settings.name}",
            why=f"network and task ({experiment.task}) do not go together", fix="use task: instances, or cmt_unetr",
        )  # fmt: skip
    fixed = [key for key in settings.options if key in FIXED]
    if fixed:
        raise ConfigError(
            f"network.options must not set {fixed[0]}", where=f"network.options.{fixed[0]}",
            why="channels, classes and dimensions follow from the data and from network.spatial_dims",
            fix="use train.deep_supervision" if fixed[0] == "deep_supervision" else "leave it out",
        )  # fmt: skip
    network = build_network(
        settings.name, spatial_dims=settings.spatial_dims,
        in_channels=len(experiment.data.channels) + int(experiment.data.foreground_channel),
        num_classes=2,
        deep_supervision=experiment.train.deep_supervision and dense and not boxes and not unlabelled
        and settings.name not in MASK_NETWORKS, **settings.options,
    )  # fmt: skip
    if settings.pretrained is not None and (fresh or not has_checkpoints(Path(experiment.output))):
        channels = [canonical_channel(name) for name in experiment.data.channels]
        start_from(network, settings.pretrained, channels, experiment)  # what does not fit as a whole is found now


def has_checkpoints(folder: Path) -> bool:
    """Tell whether a run was begun there: what it has learned replaces pretrained weights."""
    return any((folder / "checkpoints").glob("step-*.pt"))


def plain_network(experiment: Experiment, data: Prepared, *, deep_supervision: bool) -> torch.nn.Module:
    """The experiment's network, as seeded, without pretrained weights."""
    torch.manual_seed(experiment.seed)
    task = data.task
    deep_supervision = deep_supervision and task.dense and not (task.boxes or task.unlabelled or task.queries)
    return build_network(**network_arguments(experiment, data), deep_supervision=deep_supervision)


def start_network(
    experiment: Experiment, data: Prepared, *, fresh: bool = False
) -> tuple[torch.nn.Module, Account | None]:
    """Build the network, load ``network.pretrained`` if it is set, and return both the network and the account of its weights.

    Raises:
        NetworkError: if no weight fits; DataError: E_WEIGHTS or E_MODEL, if they cannot be read.
    """
    network = plain_network(experiment, data, deep_supervision=experiment.train.deep_supervision)
    source = experiment.network.pretrained
    begun = has_checkpoints(Path(experiment.output)) and not fresh
    if source is not None and not (begun and not Path(source).exists()):  # a run that goes on has no need of it
        account = start_from(network, source, data.channels, experiment)
        log.info("starts from %s", source)
        for line in account.lines() if account is not None else ():
            log.info("pretrained: %s", line)
        return network, account
    return network, None


def start_from(
    network: torch.nn.Module, source: str, channels: Sequence[str], experiment: Experiment
) -> Account | None:
    """Load a run, a model, a file of tensors, or the authors' checkpoint; None for the last, which fits as a whole.

    Raises:
        NetworkError: if nothing fits; DataError: E_WEIGHTS or E_MODEL.
    """
    path = Path(source)
    if not path.is_dir():
        state = read_state_dict(path)
        if is_official(state):
            load_pretrained(network, state)
            return None
        return transfer(network, state)
    folders = member_folders(path)
    if len(folders) > 1:
        raise ConfigError(
            "there are several networks to start from", where=f"network.pretrained={source}",
            why=f"it holds {', '.join(folder.name for folder in folders)}", fix=f"name one: {folders[0]}",
        )  # fmt: skip
    card, weights = load_model(path)
    dims = experiment.network.spatial_dims
    if int(card.network["spatial_dims"]) != dims:
        raise ConfigError(
            f"the weights to start from are of a {card.network['spatial_dims']}D network", where=f"network.pretrained={source}",
            why=f"network.spatial_dims is {dims}", fix="start from a network of the same dimensions",
        )  # fmt: skip
    mask = ["foreground mask"] if experiment.data.foreground_channel else []
    theirs = [*card.channels, *(["foreground mask"] if card.preprocessing.get("foreground_channel") else [])]
    return transfer(network, weights, ChannelMap.by_name([*channels, *mask], theirs, dims))


def network_arguments(experiment: Experiment, data: Prepared) -> dict[str, Any]:
    """Keyword arguments of ``build_network``; part of the model."""
    return {
        "name": experiment.network.name,
        "spatial_dims": experiment.network.spatial_dims,
        "in_channels": len(data.channels) + int(experiment.data.foreground_channel),
        "num_classes": data.task.channels,
        **experiment.network.options,
    }
