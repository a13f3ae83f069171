"""``cmt-med train``: train a network from one YAML file."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import ignite.distributed as idist
import torch
import typer

import cmt_med
from cmt_med.assemble import (
    Prepared,
    assemble_parts,
    bound_demo,
    check_network,
    ensure_phantom,
    mirrored_axes,
    monitored,
    network_arguments,
    plain_network,
    prepare_data,
    scored_targets,
    start_network,
    windows,
)
from cmt_med.cli import Debug, pick_device, run_command, use_threads
from cmt_med.config import Experiment, dump_config, load_config
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.phantom import BANNER
from cmt_med.data.transforms import preprocessing_settings
from cmt_med.errors import EXIT_DONE, EXIT_SOME_FAILED, OutputError
from cmt_med.evaluate import print_summary
from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.files import read_lines, require_writable_folder, sha256, write_json, write_text
from cmt_med.inference.folder import infer_cases
from cmt_med.inference.model import ModelCard, RegionCard, load_model, save_model
from cmt_med.inference.predict import Predictor
from cmt_med.networks import build_network
from cmt_med.reports.html import write_report
from cmt_med.reports.scores import score_folder, write_metrics
from cmt_med.runtime import ProcessGroup, dense_convolution_rate, environment, listen_for_signals, stop_listening
from cmt_med.training.fit import fit
from cmt_med.training.state import Parts, require_same_run
from cmt_med.training.validation import validator

RUN_FILES = (
    "checkpoints",
    "config.yaml",
    "environment.json",
    "held_out.json",
    "log.jsonl",
    "model",
    "plan.json",
    "report",
    "tensorboard",
    "validation",
)

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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> int:
    """Train a network from one YAML file, then segment and score the held-out cases.

    The run folder gets model/ (give it to infer), report/report.html, checkpoints/, log.jsonl and tensorboard/. The same
    command again resumes an interrupted run (exit code 75). Runs unchanged under torchrun.
    """
    started = time.monotonic()
    use_threads(threads)
    overrides = list(set or []) + ([f"output={json.dumps(str(output))}"] if output is not None else [])
    experiment = load_config(config, overrides)
    check_network(experiment)
    folder = Path(experiment.output)
    chosen = pick_device(device)
    with ProcessGroup(chosen):
        main = idist.get_rank() == 0
        if not main:
            logging.getLogger().setLevel(logging.ERROR)
        if main:
            require_writable_folder(folder)
            ensure_phantom(Path(experiment.data.manifest))
        idist.barrier()
        manifest = load_manifest(Path(experiment.data.manifest))
        experiment = bound_demo(experiment, manifest, overrides)
        banner = BANNER if manifest.demo else ""
        if banner:
            log.warning("%s: these are synthetic volumes; no score below says anything about patients", banner)
        if main:
            data = prepare_data(experiment, manifest, limit)
        idist.barrier()
        if not main:
            data = prepare_data(experiment, manifest, limit)
        network = start_network(experiment, data).to(chosen)
        parts = assemble_parts(experiment, data, network)
        if dry_run:
            return _dry_run(experiment, data, parts)
        if main:  # only now: a faulty config or case must not touch what an earlier run left
            if fresh and folder.exists():
                _clear(folder)
            require_same_run(folder, parts, experiment.train)
            write_text(folder / "config.yaml", dump_config(experiment))
            write_json(folder / "environment.json", environment(chosen, experiment.seed))
            write_json(folder / "held_out.json", manifest_content(manifest, data.validation))
        idist.barrier()
        stop = listen_for_signals()
        per_case = len(data.validation) / max(1, len(monitored(experiment, data)))
        outcome = fit(
            parts,
            experiment.train,
            experiment.optimizer,
            seed=experiment.seed,
            folder=folder,
            started=started,
            reserve=lambda validation_seconds: 6.0 + 1.3 * per_case * validation_seconds,
            stop_requested=stop,
            banner=banner,
        )
        if not main:
            return EXIT_DONE  # the first process alone segments, scores and reports
        stop_listening()
        # without the outputs of deep supervision, which only training needs
        plain = plain_network(experiment, data, deep_supervision=False)
        weights = {name: outcome.weights[name] for name in plain.state_dict()}
        card = _card(experiment, data, outcome, plain)
        card = save_model(folder / "model", card, weights)
        return _report(experiment, data, card, folder, chosen, banner)


# ---- what comes out


def _card(experiment: Experiment, data: Prepared, outcome: Any, network: torch.nn.Module) -> ModelCard:
    regions = None
    if data.regions is not None:
        regions = [RegionCard(name=name, values=values, write=write) for name, values, write in data.regions]
    return ModelCard(
        name=experiment.name,
        network=network_arguments(experiment, data),
        channels=data.channels,
        labels=data.manifest.labels,
        regions=regions,
        preprocessing=preprocessing_settings(experiment.data),
        slice_axis=experiment.data.slice_axis,
        mirrored_axes=mirrored_axes(experiment),
        window=experiment.inference.window or experiment.train.patch_size,
        patch=experiment.train.patch_size,
        inference=experiment.inference,
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
            "pretrained_sha256": sha256(Path(pretrained)) if (pretrained := experiment.network.pretrained) else None,
            "cmt_med": cmt_med.__version__,
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        },
        validation=None,
    )


def _report(
    experiment: Experiment, data: Prepared, card: ModelCard, folder: Path, device: torch.device, banner: str
) -> int:
    """Segment the held-out cases with the model as saved, score them on their own grids, and write the report."""
    if not data.validation:
        log.info("no cases are held out, so there is no report; the model is in %s", folder / "model")
        return EXIT_DONE
    card, weights = load_model(folder / "model")
    network = build_network(**card.network)
    network.load_state_dict(weights, strict=True)
    predicted = folder / "validation"
    failures = infer_cases(Predictor(network, card, device), data.validation, predicted, banner=banner)
    references = {case.name: case.label for case in data.validation if case.label is not None}
    predictions = {name: predicted / f"{name}.nii.gz" for name in references if (predicted / f"{name}.nii.gz").exists()}
    targets = card.targets
    scored, unscored = score_folder(predictions, references, targets, rule="challenge")
    failures = failures or unscored
    selection = {
        "last": "The last averaged weights: these cases chose nothing.",
        "best": "The checkpoint was chosen on these cases: the scores are optimistic.",
    }
    extra: dict[str, Any] = {
        "notice": banner,
        "selection": selection[experiment.train.select],
        "provenance": card.provenance,
        "rate_gflops": dense_convolution_rate(),
    }
    if data.regions is not None:
        extra["threshold_baseline"] = _threshold_baseline(data)
    metrics = write_metrics(folder / "report", scored, targets, rule="challenge", failures=failures, extra=extra)
    save_model(folder / "model", card.model_copy(update={"validation": metrics["summary"]}), weights)
    page = write_report(
        folder / "report", metrics, title=experiment.name, cases={case.name: case for case in data.validation},
        predictions=predictions, references=references, log_rows=read_lines(folder / "log.jsonl"),
        settings=dump_config(experiment), banner=banner,
    )  # fmt: skip
    print_summary(metrics)
    for target, row in extra.get("threshold_baseline", {}).items():
        print(f"best threshold for {target}: Dice {row['dice']:.4f} ({row['channel']} {row['rule']})")
    print(f"dense 3×3×3 convolutions on this machine now: {extra['rate_gflops']:.0f} GFLOP/s")
    print(f"model: {folder / 'model'}\nreport: {page}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _threshold_baseline(data: Prepared) -> dict[str, dict[str, Any]]:
    baseline = ThresholdBaseline(data.channels, scored_targets(data))
    for entry in data.validation_entries:
        image = entry.image()
        baseline.add(image, entry.label()[0], (image != 0).any(axis=0))
    return baseline.best()


def _dry_run(experiment: Experiment, data: Prepared, parts: Parts) -> int:
    batch = next(parts.batches(0))
    device = next(parts.network.parameters()).device
    begun = time.monotonic()
    value = parts.loss(parts.network.train()(batch["image"].to(device)), batch["label"].to(device))
    value.backward()
    step_seconds = time.monotonic() - begun
    begun = time.monotonic()
    score = None
    if data.validation_entries:
        one = validator(
            data.validation_entries[:1],
            windows(experiment),
            targets=scored_targets(data), classes=list(data.manifest.labels.values()), regions=data.regions,
            threshold=experiment.inference.threshold,
        )  # fmt: skip
        score = one(parts.network.eval())["dice"]
    parameters = sum(p.numel() for p in parts.network.parameters())
    print(f"network     {experiment.network.name}, {parameters / 1e6:.2f} M parameters, on {device}")
    print(f"data        {len(data.training)} cases to train, {len(data.validation)} to validate")
    print(f"batch       {tuple(batch['image'].shape)}, {parts.steps_per_epoch} steps per epoch")
    print(f"bound       epochs {experiment.train.epochs}, minutes {experiment.train.max_minutes}")
    print(f"first step  loss {float(value.detach()):.4f}, {step_seconds:.1f} s (the first is slower than the rest)")
    print(f"validation  one case in {time.monotonic() - begun:.1f} s, Dice {score} (untrained)")
    return EXIT_DONE


# ---- surroundings


def _clear(folder: Path) -> None:
    strangers = [path.name for path in folder.iterdir() if path.name not in RUN_FILES]
    if strangers and not (folder / "checkpoints").is_dir():
        raise OutputError(
            "this folder is not a run",
            where=str(folder),
            why=f"--fresh clears a run's files, and here are others ({', '.join(sorted(strangers)[:3])}) but no checkpoints",
            fix="give another --output",
        )
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def main() -> int:
    """Run the command."""
    return run_command(train)


if __name__ == "__main__":
    sys.exit(main())
