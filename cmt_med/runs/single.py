"""One training from data to report: what ``cmt-med train`` does, once or for every fold."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

import cmt_med
from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, OutputError
from cmt_med.base.files import (
    LOCK_NAME,
    locked,
    read_lines,
    remove_leftovers,
    require_writable_folder,
    sha256,
    write_json,
    write_text,
)
from cmt_med.base.text import counted
from cmt_med.compute.heartbeat import Heartbeat
from cmt_med.compute.machine import (
    dense_convolution_rate,
    environment,
    listen_for_signals,
    peak_memory_gb,
    stop_listening,
)
from cmt_med.compute.ranks import ProcessGroup
from cmt_med.config.reading import changed_settings, dump_config
from cmt_med.config.schema import Experiment
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.phantom import BANNER
from cmt_med.data.preprocessing.fingerprint import fingerprint_of
from cmt_med.data.preprocessing.pipeline import slice_axes
from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.inference.folder import Probabilities, engine_of, infer_cases
from cmt_med.inference.model import ModelCard, RegionCard, load_model, save_model
from cmt_med.inference.predict import Predictor
from cmt_med.runs.assemble import case_validator, mirrored_axes, monitored, training_setup
from cmt_med.runs.network import network_arguments, plain_network, start_network
from cmt_med.runs.plan import fit_device
from cmt_med.runs.prepare import Prepared, bound_demo, ensure_phantom, prepare_data, settings_of
from cmt_med.runs.scoring import scored_cases
from cmt_med.runs.trained import trained_network
from cmt_med.training.faults import explained
from cmt_med.training.fit import Outcome, fit
from cmt_med.training.state import TrainingSetup, require_same_run, said_bounds
from cmt_med.training.steps import on_device

RUN_FILES = (
    "finished.json", "checkpoints", "config.yaml", "environment.json", "held_out.json", "log.jsonl", "model", "plan.json",
    "pretrained.json", "report", "tensorboard", "validation",
)  # fmt: skip

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
        manifest = load_manifest(Path(experiment.data.manifest))
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
        parts = replace(training_setup(experiment, data, network), notes=changes)
        if main:  # only now: a faulty config or case must not touch what an earlier run left
            if request.fresh:
                require_run(folder)
                if not request.dry_run and folder.exists():
                    clear_run(folder)
            else:
                require_same_run(folder, parts, experiment.train, changed_settings(folder / "config.yaml", experiment))
        if request.dry_run:
            with explained(experiment.train):
                return _dry_run(experiment, data, parts)
        if main:
            write_text(folder / "config.yaml", dump_config(experiment))
            write_json(folder / "environment.json", environment(device, experiment.seed))
            if account is not None:
                write_json(folder / "pretrained.json", account.as_dict())
            write_json(folder / "held_out.json", manifest_content(manifest, data.validation))
        group.meet()
        # When one process of a job is gone, torchrun asks the others to end: they do, and say why.
        stack.push(lambda kind, *_: stop_listening(ending=group.spread and kind is not None))
        outcome = _train(experiment, data, parts, folder, request.started, group.heartbeat, banner)
        if not main:
            return EXIT_DONE  # the first process alone segments, scores and reports
        stop_listening()
        # without the outputs of deep supervision, which only training needs
        plain = plain_network(experiment, data, deep_supervision=False)
        weights = {name: outcome.weights[name] for name in plain.state_dict()}
        card = save_model(folder / "model", _card(experiment, data, outcome, plain), weights)
        return _report(experiment, data, card, folder, device, banner)


def _train(
    experiment: Experiment,
    data: Prepared,
    parts: TrainingSetup,
    folder: Path,
    started: float,
    heartbeat: Heartbeat,
    banner: str,
) -> Outcome:
    per_case = len(data.validation) / max(1, len(monitored(experiment, data)))
    return fit(
        parts,
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


# ---- what comes out


def _card(experiment: Experiment, data: Prepared, outcome: Outcome, network: torch.nn.Module) -> ModelCard:
    return ModelCard(
        name=experiment.name,
        network=network_arguments(experiment, data),
        channels=data.channels,
        task=data.task.name,
        labels=data.task.labels,
        regions=[RegionCard(**region) for region in data.task.regions] if data.task.regions is not None else None,
        preprocessing=settings_of(experiment, data.task),
        slice_axes=list(slice_axes(experiment.data, experiment.network.spatial_dims)),
        mirrored_axes=mirrored_axes(experiment),
        window=experiment.inference.window or experiment.train.patch_size,
        patch=experiment.train.patch_size,
        inference=experiment.inference,
        convention=data.manifest.convention,
        training_data=fingerprint_of([entry.statistics() for entry in data.training_entries], data.task.scored),
        provenance={
            "demo": data.manifest.demo,
            "notice": BANNER if data.manifest.demo else "",
            "data_set": data.manifest.name,
            "training_cases": len(data.training),
            "validation_cases": len(data.validation),
            "steps": outcome.steps,
            "epochs": round(outcome.epochs, 2),
            "minutes": round(outcome.seconds / 60, 2),
            "stopped_by": outcome.stopped_by,
            "selected": experiment.train.select,
            "seed": experiment.seed,
            "parameters": sum(p.numel() for p in network.parameters()),
            "pretrained_sha256": _sum_of(experiment.network.pretrained),
            "cmt_med": cmt_med.__version__,
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        },
        validation=None,
    )


def _sum_of(pretrained: str | None) -> str | None:
    """The checksum of the weights that the network started from; unknown where they have gone since."""
    if pretrained is None:
        return None
    path = Path(pretrained)
    places = (path, path / "model/model.safetensors", path / "model.safetensors")
    return next((sha256(place) for place in places if place.is_file()), None)


def _report(
    experiment: Experiment, data: Prepared, card: ModelCard, folder: Path, device: torch.device, banner: str
) -> int:
    """Segment the held-out cases with the model as saved, score them on their own grids, and write the report."""
    if not data.validation:
        log.info("no cases are held out, so there is no report; the model is in %s", folder / "model")
        return EXIT_DONE
    card, weights = load_model(folder / "model")
    predicted = folder / "validation"
    kept: Probabilities = "uint8" if experiment.inference.choose and experiment.folds is not None else "none"
    engine = engine_of([Predictor(trained_network(card, weights), card, device)])
    failures = infer_cases(engine, data.validation, predicted, probabilities=kept, banner=banner)
    cases = {case.name: case for case in data.validation}
    scored = scored_cases(card, dict.fromkeys(cases, predicted), cases, data.manifest.convention, banner)
    scored.add_failures(failures)
    selection = {
        "last": "The last averaged weights: these cases chose nothing.",
        "best": "The checkpoint was chosen on these cases: the scores are optimistic.",
    }
    extra: dict[str, Any] = {
        "selection": selection[experiment.train.select],
        "provenance": card.provenance,
        "rate_gflops": dense_convolution_rate(),
    }
    if data.task.overlapping:
        extra["threshold_baseline"] = _threshold_baseline(data)
    metrics = scored.write_metrics(folder / "report", extra)
    save_model(folder / "model", card.model_copy(update={"validation": metrics["summary"]}), weights)
    page = scored.write_page(
        folder / "report", experiment.name, log_rows=read_lines(folder / "log.jsonl"), settings=dump_config(experiment),
        details=report_details(card, folder),
    )  # fmt: skip
    for target, row in extra.get("threshold_baseline", {}).items():
        print(f"best threshold for {target}: Dice {row['dice']:.4f} ({row['channel']} {row['rule']})")
    log.info("dense 3×3×3 convolutions on this machine now: %.0f GFLOP/s", extra["rate_gflops"])
    print(f"model: {folder / 'model'}\nreport: {page}")
    return EXIT_SOME_FAILED if scored.failures else EXIT_DONE


def report_details(card: ModelCard, run: Path) -> dict[str, dict[str, Any]]:
    """Details of a report on the model and the machine: the card, but for its scores, and ``environment.json``."""
    facts = {"Model card": card.model_dump(exclude={"validation", "provenance"})}
    with contextlib.suppress(OSError, ValueError):  # a report without it is better than none
        facts["Environment"] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return facts


def _threshold_baseline(data: Prepared) -> dict[str, dict[str, Any]]:
    baseline = ThresholdBaseline(data.channels, data.task.scored)
    for entry in data.validation_entries:
        image = entry.image()
        baseline.add(image, entry.label()[0], (image != 0).any(axis=0))
    return baseline.best()


def _dry_run(experiment: Experiment, data: Prepared, parts: TrainingSetup) -> int:
    batch = next(parts.batches(0))
    device = next(parts.network.parameters()).device
    begun = time.monotonic()
    moved = on_device(batch, device, parts.augment)
    value = parts.task.loss(parts.network.train()(moved["image"]), moved)
    value.backward()
    step_seconds = time.monotonic() - begun
    begun = time.monotonic()
    score = "none is held out"
    if data.validation_entries:
        found = case_validator(experiment, data, data.validation_entries[:1])(parts.network.eval(), lambda: False)
        monitor = data.task.monitor
        score = f"{monitor.title} {found[monitor.name]:.4f} (untrained)" if found else score
    parameters = sum(p.numel() for p in parts.network.parameters())
    print(f"network     {experiment.network.name}, {parameters / 1e6:.2f} M parameters, on {device}")
    print(f"data        {counted(len(data.training), 'case')} to train, {len(data.validation)} to validate")
    print(f"batch       {tuple(moved['image'].shape)}, {parts.steps_per_epoch} steps per epoch")
    print(f"bound       {said_bounds(experiment.train.epochs, experiment.train.max_minutes)}")
    print(f"first step  loss {float(value.detach()):.4f}, {step_seconds:.1f} s (the first is slower than the rest)")
    print(f"validation  one case in {time.monotonic() - begun:.1f} s, {score}")
    for change in parts.notes:
        print(f"changed     {change}")
    print(f"memory      {peak_memory_gb(device):.1f} GB at the most so far")
    return EXIT_DONE


def require_run(folder: Path) -> None:
    """Refuse to clear a folder that is no run: one that has other files, and no checkpoints.

    Raises:
        OutputError: naming the files.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    strangers = [path.name for path in found if path.name not in (*RUN_FILES, LOCK_NAME)]
    if strangers and not (folder / "checkpoints").is_dir():
        raise OutputError(
            "this folder is not a run",
            where=str(folder),
            why=f"--fresh clears a run's files, and here are others ({', '.join(sorted(strangers)[:3])}) but no checkpoints",
            fix="give another --output",
        )


def clear_run(folder: Path) -> None:
    """Remove a run's files.

    Raises:
        OutputError: if the folder is no run.
    """
    require_run(folder)
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
