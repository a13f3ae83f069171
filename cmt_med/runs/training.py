"""From a config to a training, or one for each fold: ``cmt-med train``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from cmt_med.base.errors import ConfigError
from cmt_med.compute.device import pick_device, use_threads
from cmt_med.config.reading import load_config
from cmt_med.runs.folds import check_folds, cross_validate, fold_request
from cmt_med.runs.network import check_network
from cmt_med.runs.single import Request, run_experiment

log = logging.getLogger(__name__)


def train_from_config(
    config: Path, *, settings: list[str] | None = None, output: Path | None = None, fresh: bool = False, dry_run: bool = False,
    limit: int | None = None, fold: int | None = None, device: str = "auto", threads: int | None = None,
    arguments: Sequence[str] = (),
) -> int:  # fmt: skip
    """Train, then segment and score the held-out cases, and return the exit code; arguments as of ``cmt-med train``.

    ``arguments`` are the command's own, which are repeated for folds on several devices.

    Raises:
        ConfigError: for a config or arguments that do not fit together; and what the parts raise.
    """
    started = time.monotonic()
    use_threads(threads)
    overrides = list(settings or []) + ([f"output={json.dumps(str(output))}"] if output is not None else [])
    experiment = load_config(config, overrides)
    check_network(experiment, fresh=fresh)
    devices = [name.strip() for name in device.split(",")]
    if experiment.folds is None and (fold is not None or len(devices) > 1):
        raise ConfigError(
            "the config has no folds", where=f"--fold {fold}" if fold is not None else f"--device {device}",
            why="there is only one training, and nothing to choose from" if fold is not None
            else "a single training runs on one device; torchrun spreads it over several", fix="add --set folds=5",
        )  # fmt: skip
    request = Request(experiment, tuple(overrides), pick_device(devices[0]), started, fresh, dry_run, limit)
    if experiment.folds is None:
        if experiment.inference.choose:
            log.info(
                "inference.choose waits for folds (--set folds=5): settings are chosen on out-of-fold predictions alone"
            )
        return run_experiment(request)
    if dry_run:
        check_folds(experiment, overrides)
        return run_experiment(fold_request(request, fold or 0))
    return cross_validate(request, only=fold, devices=devices, arguments=arguments)
