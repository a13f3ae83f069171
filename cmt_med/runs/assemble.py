"""The parts of a training, assembled from an experiment, its data and its network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import ignite.distributed as idist
import torch

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Experiment, without_later_keys
from cmt_med.data.patches.augment import augment
from cmt_med.data.patches.cut import WholeImaged, slice_axes
from cmt_med.data.patches.cut import patches as cut_patches
from cmt_med.data.patches.loader import PatchSet, patch_batches
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.inference.predict import Windows
from cmt_med.networks import NETWORKS_VERSION
from cmt_med.networks.weights.adapters import add_adapters, trained_parameters
from cmt_med.networks.weights.frozen import freeze_encoder, levels_above
from cmt_med.runs.prepare import Prepared
from cmt_med.training.state import TrainingSetup
from cmt_med.training.validation import Validate, validator

log = logging.getLogger(__name__)


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
        cut_patches(experiment.data, settings, change.margin, with_label=not (data.task.boxes or data.task.unlabelled)) if dense
        else WholeImaged(["image"], change.margin, axes),
        change, patches_per_case=settings.patches_per_case, seed=experiment.seed, apply=not on_device,
        balanced=data.task.balanced, numbered=data.task.queries,
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
    if experiment.network.adapters is not None:
        add_adapters(network, experiment.network.adapters)
    if experiment.network.adapters is not None or frozen:
        learned, every = trained_parameters(network)
        log.info("%.3f of %.3f M parameters are trained", learned / 1e6, every / 1e6)
    by_level = experiment.optimizer.layer_decay < 1 or experiment.optimizer.decoder_first > 0
    levels = levels_above(network) if by_level else None
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
    """Return a function that scores a network on cached cases; see :func:`cmt_med.training.validation.validator`."""
    return validator(entries, windows(experiment), data.task, experiment.inference, experiment.detection)


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
