"""From an experiment and its data to the parts of a training run; commands compose them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.base.text import counted
from cmt_med.config.schema import Experiment, without_later_keys
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.data.manifest import Manifest
from cmt_med.data.patches.augment import augment
from cmt_med.data.patches.loader import PatchSet, patch_batches
from cmt_med.data.phantom import BANNER, make_phantom
from cmt_med.data.preprocessing.cache import CachedCase, default_cache_folder, prepare
from cmt_med.data.preprocessing.pipeline import WholeImaged, preprocessing_settings, slice_axes, whole_image_settings
from cmt_med.data.preprocessing.pipeline import patches as cut_patches
from cmt_med.data.splits import split_cases
from cmt_med.inference.model import load_model, member_folders
from cmt_med.inference.predict import Windows
from cmt_med.networks import CLASSIFIERS, FIXED, NETWORKS, NETWORKS_VERSION, build_network
from cmt_med.networks.encoders.cmt import PAPER
from cmt_med.networks.weights.frozen import freeze_encoder, levels_above
from cmt_med.networks.weights.official import is_official
from cmt_med.networks.weights.pretrained import load_pretrained, read_state_dict
from cmt_med.networks.weights.transfer import Account, ChannelMap, transfer
from cmt_med.tasks import TASKS
from cmt_med.tasks.task import Task
from cmt_med.training.state import TrainingSetup
from cmt_med.training.validation import Validate, validator

DEMO_MINUTES = 9.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Data of an experiment, checked and cached."""

    manifest: Manifest
    training: list[Case]
    validation: list[Case]
    training_entries: list[CachedCase]
    validation_entries: list[CachedCase]
    channels: list[str]
    task: Task


def ensure_phantom(experiment: Experiment, overrides: Sequence[str]) -> None:
    """Make the synthetic heads that a config asks for (``data.phantom``), unless its case list is there.

    A case list that the command line names is never made: a slip of the pen there must not become a data set.
    """
    path = Path(experiment.data.manifest)
    given = {item.partition("=")[0].strip() for item in overrides}
    if not experiment.data.phantom or path.exists() or given & {"data", "data.manifest"}:
        return
    log.info("making phantom heads for a first run (%s)", path)
    make_phantom(path, path.parent / path.stem)


def bound_demo(experiment: Experiment, manifest: Manifest, overrides: list[str]) -> Experiment:
    """Bound the training on demonstration data, unless the command line bounds it."""
    given = {item.partition("=")[0].strip() for item in overrides}
    if not manifest.demo or given & {"train.epochs", "train.max_minutes"}:
        return experiment
    log.info(
        "%s: bound to %g minutes for a first run; --set train.epochs=... or train.max_minutes=... lifts that",
        BANNER, DEMO_MINUTES,
    )  # fmt: skip
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"max_minutes": DEMO_MINUTES})})


def prepare_data(experiment: Experiment, manifest: Manifest, limit: int | None) -> Prepared:
    """Check, split, preprocess and cache the cases.

    Raises:
        ConfigError: if the config does not fit the data set.
        DataError: for faulty cases; all are checked before the first is raised.
    """
    settings = experiment.data
    channels = [canonical_channel(name) for name in settings.channels]
    if len(set_of := {*channels}) != len(channels):
        raise ConfigError(
            "a channel is named twice",
            where=f"data.channels={settings.channels}",
            why="one image would be read twice",
            fix=f"use {set_of}",
        )
    strange = [name for name in channels if name not in manifest.channels]
    if strange:
        raise ConfigError(
            f"the data set has no channel {', '.join(strange)}",
            where="data.channels",
            why=f"the case list names {', '.join(manifest.channels)}",
            fix=f"--set data.channels='[{', '.join(manifest.channels)}]'",
        )
    task = TASKS[experiment.task].from_data(experiment, manifest)
    task.check(experiment.inference)
    labelled = [case for case in manifest.cases if task.has_target(case)]
    if len(labelled) < len(manifest.cases):
        names = [case.name for case in manifest.cases if not task.has_target(case)]
        log.warning("%s without a label or a class left out: %s", counted(len(names), "case"), ", ".join(names[:5]))
    training, validation = split_cases(labelled, settings.split, experiment.seed)
    if limit is not None:  # of both sides in proportion; what is held out stays held out
        held_out = min(len(validation), max(1, round(limit * len(validation) / len(labelled)))) if validation else 0
        training, validation = training[: max(1, limit - held_out)], validation[:held_out]
    task = task.with_training(training)
    log.info(
        "%s: %s to train, %d to validate; channels %s; labels %s",
        manifest.name or manifest.path.name, counted(len(training), "case"), len(validation), ", ".join(channels),
        ", ".join(f"{name} {value}" for name, value in task.labels.items()),
    )  # fmt: skip
    entries = _cache_all([*training, *validation], channels, task, experiment)
    _require_slices(entries, experiment)
    _warn_of_missing_labels(entries[: len(training)], entries, task.labels)
    return Prepared(manifest, training, validation, entries[: len(training)], entries[len(training) :], channels, task)


def _require_slices(entries: Sequence[CachedCase], experiment: Experiment) -> None:
    """Raise where volumes are to be cut into slices, and nothing says across which axis."""
    if experiment.network.spatial_dims == 3 or experiment.data.slice_axis is not None:
        return
    thick = [entry for entry in entries if entry.image().shape[-1] > 1]
    if thick:
        shape = "×".join(map(str, thick[0].image().shape[1:]))
        raise ConfigError(
            "a 2D network needs to know how volumes are cut into slices", where="data.slice_axis",
            why=f"case {thick[0].name} has {shape} voxels, which is no 2D image",
            fix="--set data.slice_axis=2 (0, 1, 2 or all)",
        )  # fmt: skip


def _cache_all(cases: list[Case], channels: list[str], task: Task, experiment: Experiment) -> list[CachedCase]:
    folder = default_cache_folder()
    settings = settings_of(experiment, task)

    def one(case: Case) -> CachedCase | DataError:
        try:
            return prepare(
                case, channels=channels, labels=task.labels, settings=settings, folder=folder, target=task.target(case)
            )
        except DataError as error:
            return error

    begun = time.monotonic()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(one, cases))
    faults = [result for result in results if isinstance(result, DataError)]
    if faults:
        for fault in faults[1:10]:
            log.error("%s", fault.message())
        if len(faults) > 1:
            faults[0].what += f" ({len(faults)} cases are faulty; all are checked before training starts)"
        raise faults[0]
    log.info(
        "%s checked and preprocessed in %.0f s (%s)", counted(len(cases), "case"), time.monotonic() - begun, folder
    )
    return [result for result in results if isinstance(result, CachedCase)]


def settings_of(experiment: Experiment, task: Task) -> dict[str, Any]:
    """The preprocessing of an experiment's cases; part of the model."""
    if task.dense:
        return preprocessing_settings(experiment.data)
    return whole_image_settings(experiment.data, experiment.train.patch_size)


def _warn_of_missing_labels(training: list[CachedCase], entries: list[CachedCase], labels: Mapping[str, int]) -> None:
    """Say which label maps are empty, and which labels no case shows the network: more often a slip than meant so."""
    empty = [entry.name for entry in entries if not entry.values()]  # never of classes, which are not empty
    if empty:
        log.warning(
            "%s: the label map is empty (%s%s); if something should be there, look at the file", counted(len(empty), "case"),
            ", ".join(empty[:5]), ", ..." if len(empty) > 5 else "",
        )  # fmt: skip
    shown = {value for entry in training for value in entry.values()}
    classes = any(entry.target is not None for entry in entries)  # of which none is a background
    missing = [f"{name} ({value})" for name, value in labels.items() if (value or classes) and value not in shown]
    if missing:
        what = "class" if classes else "label"
        log.warning("no training case has the %s %s: the network cannot learn it", what, ", ".join(missing))


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
    fixed = [key for key in settings.options if key in FIXED]
    if fixed:
        raise ConfigError(
            f"network.options must not set {fixed[0]}", where=f"network.options.{fixed[0]}",
            why="channels, classes and dimensions follow from the data and from network.spatial_dims",
            fix="use train.deep_supervision" if fixed[0] == "deep_supervision" else "leave it out",
        )  # fmt: skip
    network = build_network(
        settings.name, spatial_dims=settings.spatial_dims,
        in_channels=len(experiment.data.channels) + int(experiment.data.foreground_channel), num_classes=2,
        deep_supervision=experiment.train.deep_supervision and dense, **settings.options,
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
    deep_supervision = deep_supervision and data.task.dense
    return build_network(**network_arguments(experiment, data), deep_supervision=deep_supervision)


def start_network(
    experiment: Experiment, data: Prepared, *, fresh: bool = False
) -> tuple[torch.nn.Module, Account | None]:
    """The network to train, from the weights that the config names, if it does, and the account of them, which is printed.

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


def monitored(experiment: Experiment, data: Prepared) -> list[CachedCase]:
    """The held-out cases that are scored while training."""
    wanted = experiment.train.validation_cases
    entries = data.validation_entries
    if wanted is None or wanted >= len(entries):
        return entries
    return [entries[i * len(entries) // wanted] for i in range(wanted)]


def training_setup(experiment: Experiment, data: Prepared, network: torch.nn.Module) -> TrainingSetup:
    """The arguments of :func:`cmt_med.training.fit.fit`.

    Raises:
        ConfigError: if the batch does not divide by the processes.
    """
    settings = experiment.train
    on_device = next(network.parameters()).device.type != "cpu"
    change = augment(experiment.data, settings, experiment.augmentation)
    axes = slice_axes(experiment.data, experiment.network.spatial_dims)
    dense = data.task.dense
    patches = PatchSet(
        data.training_entries,
        cut_patches(experiment.data, settings, change.margin) if dense else WholeImaged(["image"], change.margin, axes),
        change, patches_per_case=settings.patches_per_case, seed=experiment.seed, apply=not on_device,
        balanced=data.task.balanced,
    )  # fmt: skip
    world, rank = idist.get_world_size(), idist.get_rank()
    if settings.batch_size % world:
        raise ConfigError(
            "the batch does not divide by the processes",
            where=f"train.batch_size={settings.batch_size}, {world} processes",
            why="each process takes an equal part of it",
            fix="make it a multiple; it counts patches over all processes",
        )

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return patch_batches(
            patches,
            batch_size=settings.batch_size,
            start=start,
            workers=experiment.data.workers,
            rank=rank,
            world=world,
        )

    frozen = (freeze_encoder(network),) if experiment.network.freeze == "encoder" else ()
    levels = levels_above(network) if experiment.optimizer.layer_decay < 1 else None
    watched = monitored(experiment, data)
    validate = None
    if watched:
        validate = case_validator(experiment, data, watched)
    per_step = settings.batch_size * settings.accumulate
    # Neither where things are nor what leaves the result unchanged; the bounds are compared on their own.
    described = without_later_keys(
        experiment.model_dump(
            exclude={
                "output": True,
                "name": True,
                "data": {"manifest", "workers", "phantom"},
                "train": {"epochs", "max_minutes"},
                "inference": {"batch_size"},
            }
        )
    )
    sides = [[entry.identity for entry in side] for side in (data.training_entries, data.validation_entries)]
    identity = [NETWORKS_VERSION, described, sides, data.channels, *data.task.identity()]
    return TrainingSetup(
        network=network,
        task=data.task,
        batches=batches,
        augment=change if on_device else None,
        frozen=frozen,
        levels=levels,
        validate=validate,
        steps_per_epoch=max(1, -(-len(patches) // per_step)),
        case_names=[case.name for case in data.training],
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )


def case_validator(experiment: Experiment, data: Prepared, entries: list[CachedCase]) -> Validate:
    """Scores a network on cached cases; see :func:`cmt_med.training.validation.validator`."""
    return validator(entries, windows(experiment), data.task, experiment.inference)


def windows(experiment: Experiment) -> Windows:
    """The sliding window of an experiment."""
    settings = experiment.inference
    size = settings.window or experiment.train.patch_size
    patch = tuple(experiment.train.patch_size)
    axes = slice_axes(experiment.data, len(patch))
    return Windows(tuple(size), settings.overlap, settings.batch_size, axes, patch=patch)


def mirrored_axes(experiment: Experiment) -> list[int]:
    """The axes of the volume that training mirrors: those that test-time augmentation may mirror, too."""
    if experiment.augmentation.flip == 0:
        return []
    axes = experiment.augmentation.flip_axes
    planes = slice_axes(experiment.data, experiment.network.spatial_dims) or (None,)
    seen = [[axis for axis in range(3) if axis != plane] for plane in planes]  # by each kind of slice
    mirrored = [{axes_seen[i] for i in (range(len(axes_seen)) if axes is None else axes)} for axes_seen in seen]
    # Of slices in three planes: what is mirrored in every plane that shows it.
    return [a for a in range(3) if all(a in m for m, s in zip(mirrored, seen, strict=True) if a in s)]
