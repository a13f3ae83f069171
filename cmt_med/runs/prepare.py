"""The data of an experiment: checked, split, preprocessed and cached."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.base.text import counted
from cmt_med.config.schema import Experiment
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.data.manifest import Manifest
from cmt_med.data.phantom import BANNER, make_phantom
from cmt_med.data.phantom_lesions import make_lesion_phantom
from cmt_med.data.preprocessing.cache import CachedCase, default_cache_folder, prepare
from cmt_med.data.preprocessing.pipeline import preprocessing_settings, whole_image_settings
from cmt_med.data.splits import split_cases
from cmt_med.tasks import task_class
from cmt_med.tasks.task import Task

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
    make = make_lesion_phantom if experiment.data.phantom == "lesions" else make_phantom
    make(path, path.parent / path.stem)


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
    strange = [name for name in settings.window or () if name not in settings.channels]
    if strange:
        raise ConfigError(
            f"there is no channel {strange[0]!r}", where="data.window", why=f"data.channels are {', '.join(settings.channels)}",
            fix="name channels of the config",
        )  # fmt: skip
    task = task_class(experiment.task, experiment.network.name).from_data(experiment, manifest)
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
    lacking = [f"{case.name} {name}" for case in labelled for name in channels if name not in case.images]
    if lacking and settings.missing == "zeros":
        log.warning("0 stands for the channels that cases lack: %s%s", ", ".join(lacking[:5]), _more(lacking, 5))
    entries = _cache_all([*training, *validation], channels, task, experiment)
    _require_slices(entries, experiment, boxes=task.boxes)
    thick = [entry.name for entry in entries if task.queries and entry.image().shape[-1] > 1]
    if thick and experiment.network.spatial_dims == 2:
        raise ConfigError(
            "masks of slices are not put together", where=f"network.spatial_dims=2, case {thick[0]}",
            why=f"it is a volume, and {experiment.network.name} numbers the objects of each slice alone",
            fix="set network.spatial_dims to 3, or use cmt_unetr",
        )  # fmt: skip
    if not task.unlabelled:
        _warn_of_missing_labels(entries[: len(training)], entries, task.labels)
    return Prepared(manifest, training, validation, entries[: len(training)], entries[len(training) :], channels, task)


def _more(names: Sequence[str], told: int) -> str:
    """Count what is not told."""
    return f" and {len(names) - told} more" if len(names) > told else ""


def _require_slices(entries: Sequence[CachedCase], experiment: Experiment, *, boxes: bool) -> None:
    """Raise where volumes are to be cut into slices, and nothing says across which axis, or where 2D images would be."""
    if experiment.network.spatial_dims == 3:
        return
    thick = [entry for entry in entries if entry.image().shape[-1] > 1]
    if boxes and thick:
        raise ConfigError(
            "2D networks find boxes in 2D images alone", where="network.spatial_dims=2",
            why=f"case {thick[0].name} is a volume: a box of a slice would be none of the object",
            fix="use network.spatial_dims: 3",
        )  # fmt: skip
    if experiment.data.slice_axis is not None:
        if experiment.data.slice_axis != 2 and entries and all(entry.image().shape[-1] == 1 for entry in entries):
            raise ConfigError(
                "2D images cannot be cut into slices", where=f"data.slice_axis={experiment.data.slice_axis}",
                why="lines of one pixel would be left", fix="leave data.slice_axis out",
            )  # fmt: skip
        return
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
                case, channels=channels, labels=task.labels, settings=settings, folder=folder, target=task.target(case),
                objects=task.objects, boxed=task.boxes, min_component_mm3=experiment.detection.min_component_mm3,
                unlabelled=task.unlabelled,
            )  # fmt: skip
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
    numbers = Counter(entry.target for entry in entries if entry.target is not None)
    rare = [name for name, value in labels.items() if numbers and numbers[value] == 1]
    if rare:
        log.warning("of class %s there is one case: it can be trained on or scored, not both", ", ".join(rare))
    missing = [f"{name} ({value})" for name, value in labels.items() if (value or classes) and value not in shown]
    if missing:
        what = "class" if classes else "label"
        log.warning("no training case has the %s %s: the network cannot learn it", what, ", ".join(missing))
