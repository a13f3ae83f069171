"""``cmt-med train``: train a network, or one for each fold, from one YAML file."""

from __future__ import annotations

from cmt_med.compute.interrupts import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports below, which take seconds

import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.base.errors import ConfigError
from cmt_med.compute.device import pick_device, use_threads
from cmt_med.config.reading import load_config
from cmt_med.launch.command import Debug, run_command
from cmt_med.runs.folds import check_folds, cross_validate, fold_request
from cmt_med.runs.prepare import check_network
from cmt_med.runs.single import Request, run_experiment

log = logging.getLogger(__name__)


def train(
    config: Annotated[Path, typer.Option(help="The experiment, a YAML file; see configs/.")],
    set: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that replaces a key, e.g. optimizer.lr=3e-4.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default: output of the config.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; run one step and one validation case.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=2, help="Use at most so many cases.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="With folds: train this one alone, as a job of an array.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda:0; with folds also several, cuda:0,cuda:1, one fold on each.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> int:
    """Train a network from one YAML file, then segment and score the held-out cases.

    The run folder gets model/ (give it to infer), report/report.html, checkpoints/, log.jsonl and tensorboard/. The same
    command again resumes an interrupted run (exit code 75). Runs unchanged under torchrun.

    With --set folds=5, each fold's network is trained in fold_0/, fold_1/, ...; report/ scores every case by the network
    that has not seen it, and model/ holds all networks, as an ensemble for infer.
    """
    started = time.monotonic()
    use_threads(threads)
    overrides = list(set or []) + ([f"output={json.dumps(str(output))}"] if output is not None else [])
    experiment = load_config(config, overrides)
    check_network(experiment, fresh=fresh)
    devices = [name.strip() for name in device.split(",")]
    if experiment.folds is None and (fold is not None or len(devices) > 1):
        raise ConfigError(
            "the config has no folds", where=f"--fold {fold}" if fold is not None else f"--device {device}",
            why="a single training runs on one device; torchrun spreads it over several", fix="add --set folds=5",
        )  # fmt: skip
    request = Request(experiment, tuple(overrides), pick_device(devices[0]), started, fresh, dry_run, limit)
    if experiment.folds is None:
        if experiment.inference.choose:
            log.info(
                "inference.choose waits for folds (--set folds=5): settings are chosen on out-of-fold predictions alone"
            )
        return run_experiment(request)
    if dry_run:
        check_folds(experiment)
        return run_experiment(fold_request(request, fold or 0))
    return cross_validate(request, only=fold, devices=devices, arguments=sys.argv[1:])


def main() -> int:
    """Run the command."""
    return run_command(train)


if __name__ == "__main__":
    sys.exit(main())
