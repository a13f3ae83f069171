"""One training from data to report: what ``cmt-med train`` does, once or for every fold."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ignite.distributed as idist
import torch

from cmt_med.base.errors import EXIT_DONE, DataError
from cmt_med.base.files import (
    locked,
    remove_leftovers,
    require_writable_folder,
    write_json,
    write_text,
)
from cmt_med.base.text import counted
from cmt_med.compute.heartbeat import Heartbeat
from cmt_med.compute.machine import (
    environment,
    listen_for_signals,
    peak_memory_gb,
    stop_listening,
)
from cmt_med.compute.ranks import ProcessGroup
from cmt_med.config.reading import changed_settings, dump_config
from cmt_med.config.schema import Experiment
from cmt_med.data.manifest import manifest_content
from cmt_med.data.phantom import BANNER
from cmt_med.inference.model import save_model
from cmt_med.networks.weights.adapters import merged, trained_parameters
from cmt_med.runs.assemble import case_validator, monitored, training_setup
from cmt_med.runs.folder import RUN_FILES, clear_run, require_run
from cmt_med.runs.network import plain_network, start_network
from cmt_med.runs.outcome import card_of, report_run
from cmt_med.runs.plan import fit_device
from cmt_med.runs.prepare import Prepared, bound_demo, ensure_phantom, prepare_data
from cmt_med.runs.recognition import data_set
from cmt_med.training.faults import explained
from cmt_med.training.fit import Outcome, fit
from cmt_med.training.state import TrainingSetup, require_same_run, said_bounds
from cmt_med.training.steps import on_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The request of the command line.

    Attributes:
        experiment: as configured, without changes for device and data.
        overrides: ``--set`` items; what they set is never changed.
        device: to train on.
        started: ``time.monotonic()`` at the start, from which ``train.max_minutes`` counts.
        fresh: drop what an earlier run left.
        dry_run: print the plan, run one step and one validation case.
        limit: number of cases at most.
    """

    experiment: Experiment
    overrides: tuple[str, ...]
    device: torch.device
    started: float
    fresh: bool = False
    dry_run: bool = False
    limit: int | None = None


def run_experiment(request: Request) -> int:
    """Train, or go on training, then segment and score the held-out cases; returns the exit code.

    Raises:
        OutputError: E_LOCKED if another process works in the run folder; and what the parts raise.
    """
    experiment, device = request.experiment, request.device
    folder = Path(experiment.output)
    with ProcessGroup(device) as group, contextlib.ExitStack() as stack:
        main = idist.get_rank() == 0
        if not main:
            logging.getLogger().setLevel(logging.ERROR)
        if main:
            require_writable_folder(folder)
            if not request.dry_run:
                stack.enter_context(locked(folder))
                remove_leftovers(folder, *(folder / name for name in RUN_FILES))
            ensure_phantom(experiment, request.overrides)
        group.meet()
        manifest = data_set(Path(experiment.data.manifest), experiment.data.missing, experiment.task)
        experiment = bound_demo(experiment, manifest, list(request.overrides))
        banner = BANNER if manifest.demo else ""
        if banner:
            log.warning("%s: these are synthetic volumes; no score below says anything about patients", banner)
        if main:
            data = prepare_data(experiment, manifest, request.limit)
        group.meet()
        if not main:
            data = prepare_data(experiment, manifest, request.limit)
        experiment, changes = fit_device(experiment, data, device, request.overrides)
        network, account = start_network(experiment, data, fresh=request.fresh)
        network = network.to(device)
        setup = replace(training_setup(experiment, data, network), notes=changes)
        if main:  # only now: a faulty config or case must not touch what an earlier run left
            if request.fresh:
                require_run(folder)
                if not request.dry_run and folder.exists():
                    clear_run(folder)
            else:
                require_same_run(folder, setup, experiment.train, changed_settings(folder / "config.yaml", experiment))
        if request.dry_run:
            with explained(experiment.train):
                return _dry_run(experiment, data, setup)
        if main:
            write_text(folder / "config.yaml", dump_config(experiment))
            write_json(folder / "environment.json", environment(device, experiment.seed))
            if account is not None:
                write_json(folder / "pretrained.json", account.as_dict())
            write_json(folder / "held_out.json", manifest_content(manifest, data.validation))
        group.meet()
        # When one process of a job is gone, torchrun asks the others to end: they do, and say why.
        stack.push(lambda kind, *_: stop_listening(ending=group.spread and kind is not None))
        outcome = _train(experiment, data, setup, folder, request.started, group.heartbeat, banner)
        if not main:
            return EXIT_DONE  # the first process alone segments, scores and reports
        stop_listening()
        # without the outputs of deep supervision, which only training needs
        plain = plain_network(experiment, data, deep_supervision=False)
        learned = merged(network, outcome.weights) if experiment.network.adapters is not None else outcome.weights
        weights = {name: learned[name] for name in plain.state_dict()}
        card = save_model(folder / "model", card_of(experiment, data, outcome, plain), weights)
        return report_run(experiment, data, card, folder, device, banner)


def _train(
    experiment: Experiment,
    data: Prepared,
    setup: TrainingSetup,
    folder: Path,
    started: float,
    heartbeat: Heartbeat,
    banner: str,
) -> Outcome:
    per_case = len(data.validation) / max(1, len(monitored(experiment, data)))
    return fit(
        setup,
        experiment.train,
        experiment.optimizer,
        seed=experiment.seed,
        folder=folder,
        started=started,
        reserve=lambda validation_seconds: 6.0 + 1.3 * per_case * validation_seconds,
        stop_requested=listen_for_signals(),
        heartbeat=heartbeat,
        banner=banner,
    )


def _dry_run(experiment: Experiment, data: Prepared, setup: TrainingSetup) -> int:
    batch = next(setup.batches(0))
    device = next(setup.network.parameters()).device
    begun = time.monotonic()
    moved = on_device(batch, device, setup.augment)
    moved = {**setup.task.prepared(moved)}
    hints = setup.task.hints(moved) if getattr(setup.network, "takes_hints", False) else ()
    value = setup.task.loss(setup.network.train()(moved["image"], *hints), moved)
    value.backward()
    if not bool(value.isfinite()):
        raise DataError(
            f"the loss of the first step is {float(value.detach())}", where="batch of " + ", ".join(
                sorted({data.training[int(i)].name for i in batch["case"]})
            ), why="these cases have extreme values, or nothing to learn from", fix="look at the cases", code="E_NAN",
        )  # fmt: skip
    step_seconds = time.monotonic() - begun
    begun = time.monotonic()
    score = "none is held out"
    if data.validation_entries:
        found = case_validator(experiment, data, data.validation_entries[:1])(setup.network.eval(), lambda: False)
        monitor = data.task.monitor
        score = f"{monitor.title} {found[monitor.name]:.4f} (untrained)" if found else score
    learned, parameters = trained_parameters(setup.network)
    part = "" if learned == parameters else f", {learned / 1e6:.3f} M of them trained"
    print(f"network     {experiment.network.name}, {parameters / 1e6:.2f} M parameters{part}, on {device}")
    print(f"data        {counted(len(data.training), 'case')} to train, {len(data.validation)} to validate")
    print(f"batch       {tuple(moved['image'].shape)}, {setup.steps_per_epoch} steps per epoch")
    print(f"bound       {said_bounds(experiment.train.epochs, experiment.train.max_minutes)}")
    print(f"first step  loss {float(value.detach()):.4f}, {step_seconds:.1f} s (the first is slower than the rest)")
    print(f"validation  one case in {time.monotonic() - begun:.1f} s, {score}")
    for change in setup.notes:
        print(f"changed     {change}")
    print(f"memory      {peak_memory_gb(device):.1f} GB at the most so far")
    return EXIT_DONE
