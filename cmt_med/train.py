"""``cmt-med train``: train a network from one YAML file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ignite.distributed as idist
import torch
import typer
from torch import Tensor

import cmt_med
from cmt_med.cli import Debug, pick_device, run_command, use_threads
from cmt_med.config import Experiment, dump_config, load_config
from cmt_med.data.cache import Entry, default_cache_folder, prepare
from cmt_med.data.loader import PatchSet, patch_loader
from cmt_med.data.manifest import Case, Manifest, load_manifest, manifest_content, region_values, split_cases
from cmt_med.data.names import canonical_channel
from cmt_med.data.phantom import BANNER, make_phantom
from cmt_med.data.transforms import augmentation, preprocessing_settings
from cmt_med.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError
from cmt_med.evaluate import print_summary
from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.files import read_lines, require_writable_folder, sha256, write_json, write_text
from cmt_med.inference.folder import infer_cases
from cmt_med.inference.model import ModelCard, RegionCard, load_model, save_model
from cmt_med.inference.predict import Predictor, Windows
from cmt_med.networks import CLASSIFIERS, build_network
from cmt_med.networks.weights import load_pretrained
from cmt_med.reports.html import write_report
from cmt_med.reports.scores import score_folder, write_metrics
from cmt_med.runtime import ProcessGroup, dense_convolution_rate, environment, listen_for_signals
from cmt_med.training.fit import Parts, fit
from cmt_med.training.losses import segmentation_loss
from cmt_med.training.validation import validator

PHANTOM_MANIFEST = "brats_phantom.json"
DEMO_MINUTES = 9.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Data of an experiment, checked and cached."""

    manifest: Manifest
    training: list[Case]
    validation: list[Case]
    training_entries: list[Entry]
    validation_entries: list[Entry]
    channels: list[str]
    regions: list[tuple[str, list[int], int]] | None


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
    folder = Path(experiment.output)
    chosen = pick_device(device)
    with ProcessGroup(chosen):
        main = idist.get_rank() == 0
        if not main:
            logging.getLogger().setLevel(logging.ERROR)
        if main:
            if fresh:
                _clear(folder)
            require_writable_folder(folder)
            _ensure_phantom(Path(experiment.data.manifest))
        idist.barrier()
        manifest = load_manifest(Path(experiment.data.manifest))
        experiment = _bound_demo(experiment, manifest, overrides)
        banner = BANNER if manifest.demo else ""
        if banner:
            log.warning("%s: these are synthetic volumes; no score below says anything about patients", banner)
        if main:
            data = _prepare(experiment, manifest, limit)
        idist.barrier()
        if not main:
            data = _prepare(experiment, manifest, limit)
        network = _start_network(experiment, data).to(chosen)
        parts = _parts(experiment, data, network)
        if main:
            write_text(folder / "config.yaml", dump_config(experiment))
            write_json(folder / "environment.json", environment(chosen, experiment.seed))
            write_json(folder / "held_out.json", manifest_content(manifest, data.validation))
        if dry_run:
            return _dry_run(experiment, data, parts, folder)
        stop = listen_for_signals()
        per_case = len(data.validation) / max(1, len(_monitored(experiment, data)))
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
            idist.barrier()
            return EXIT_DONE
        # without the outputs of deep supervision, which only training needs
        plain = _network(experiment, data, deep_supervision=False)
        weights = {name: outcome.weights[name] for name in plain.state_dict()}
        card = _card(experiment, data, outcome, plain)
        card = save_model(folder / "model", card, weights)
        code = _report(experiment, data, card, folder, chosen, banner)
        idist.barrier()
    return code


# ---- what goes in


def _ensure_phantom(path: Path) -> None:
    if path.exists() or path.name != PHANTOM_MANIFEST:
        return
    log.info("making phantom heads for a first run (%s)", path)
    make_phantom(path, path.parent / "brats_phantom")


def _bound_demo(experiment: Experiment, manifest: Manifest, overrides: list[str]) -> Experiment:
    given = {item.partition("=")[0].strip() for item in overrides}
    if not manifest.demo or given & {"train.epochs", "train.max_minutes"}:
        return experiment
    log.info(
        "%s: bound to %g minutes for a first run; --set train.epochs=... or train.max_minutes=... lifts that",
        BANNER, DEMO_MINUTES,
    )  # fmt: skip
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"max_minutes": DEMO_MINUTES})})


def _prepare(experiment: Experiment, manifest: Manifest, limit: int | None) -> Prepared:
    settings = experiment.data
    channels = [canonical_channel(name) for name in settings.channels]
    if len(set_of := {*channels}) != len(channels):
        raise ConfigError("a channel is named twice", where=f"data.channels={settings.channels}", fix=f"use {set_of}")
    strange = [name for name in channels if name not in manifest.channels]
    if strange:
        raise ConfigError(
            f"the data set has no channel {', '.join(strange)}",
            where="data.channels",
            why=f"the case list names {', '.join(manifest.channels)}",
            fix=f"--set data.channels='[{', '.join(manifest.channels)}]'",
        )
    labelled = [case for case in manifest.cases if case.label is not None]
    if not manifest.labels or not labelled:
        raise DataError(
            "there is nothing to learn from", where=str(manifest.path),
            why="no labels are named" if not manifest.labels else "no case has a label",
            fix='add "labels": {"0": "background", ...} and a "label" for each case', code="E_MANIFEST",
        )  # fmt: skip
    regions = region_values(settings.regions, manifest.labels) if settings.regions is not None else None
    if limit is not None:
        labelled = labelled[:limit]
    training, validation = split_cases(labelled, settings.split, experiment.seed)
    log.info(
        "%s: %d cases to train, %d to validate; channels %s; labels %s",
        manifest.name, len(training), len(validation), ", ".join(channels),
        ", ".join(f"{name} {value}" for name, value in manifest.labels.items()),
    )  # fmt: skip
    entries = _cache_all([*training, *validation], channels, manifest, experiment)
    return Prepared(
        manifest, training, validation, entries[: len(training)], entries[len(training) :], channels, regions
    )


def _cache_all(cases: list[Case], channels: list[str], manifest: Manifest, experiment: Experiment) -> list[Entry]:
    folder = default_cache_folder()
    settings = preprocessing_settings(experiment.data)

    def one(case: Case) -> Entry | DataError:
        try:
            return prepare(case, channels=channels, labels=manifest.labels, settings=settings, folder=folder)
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
    log.info("%d cases checked and preprocessed in %.0f s (%s)", len(cases), time.monotonic() - begun, folder)
    return [result for result in results if isinstance(result, Entry)]


def _network(experiment: Experiment, data: Prepared, *, deep_supervision: bool) -> torch.nn.Module:
    if experiment.network.name in CLASSIFIERS:
        raise ConfigError(
            "this network classifies whole images",
            where=f"network.name={experiment.network.name}",
            why="segmentation needs a decoder",
            fix=f"use cmt_unetr_{experiment.network.name.removeprefix('cmt_')}, which has the same encoder",
        )
    torch.manual_seed(experiment.seed)
    return build_network(**_network_arguments(experiment, data), deep_supervision=deep_supervision)


def _start_network(experiment: Experiment, data: Prepared) -> torch.nn.Module:
    """The network to train, with pretrained weights in its encoder if there are any."""
    network = _network(experiment, data, deep_supervision=experiment.train.deep_supervision)
    if experiment.network.pretrained is not None:
        load_pretrained(network, experiment.network.pretrained)
        log.info("encoder starts from %s", experiment.network.pretrained)
    return network


def _network_arguments(experiment: Experiment, data: Prepared) -> dict[str, Any]:
    return {
        "name": experiment.network.name,
        "spatial_dims": experiment.network.spatial_dims,
        "in_channels": len(data.channels),
        "num_classes": len(data.regions) if data.regions is not None else len(data.manifest.labels),
        **experiment.network.options,
    }


def _monitored(experiment: Experiment, data: Prepared) -> list[Entry]:
    wanted = experiment.train.validation_cases
    entries = data.validation_entries
    if wanted is None or wanted >= len(entries):
        return entries
    return [entries[i * len(entries) // wanted] for i in range(wanted)]


def _parts(experiment: Experiment, data: Prepared, network: torch.nn.Module) -> Parts:
    settings = experiment.train
    transform = augmentation(experiment.data, settings, experiment.augmentation)
    patches = PatchSet(
        data.training_entries, transform, patches_per_case=settings.patches_per_case, seed=experiment.seed
    )
    world, rank = idist.get_world_size(), idist.get_rank()
    if settings.batch_size % world:
        raise ConfigError(
            "the batch does not divide by the processes",
            where=f"train.batch_size={settings.batch_size}, {world} processes",
            fix="make it a multiple; it counts patches over all processes",
        )
    classes = list(data.manifest.labels.values())

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        return iter(
            patch_loader(
                patches, batch_size=settings.batch_size, start=start, workers=experiment.data.workers,
                rank=rank, world=world,
            )
        )  # fmt: skip

    monitored = _monitored(experiment, data)
    validate = None
    if monitored:
        validate = validator(
            monitored,
            _windows(experiment),
            targets=_targets(data),
            classes=classes,
            regions=data.regions,
            threshold=experiment.inference.threshold,
        )  # fmt: skip
    per_step = settings.batch_size * settings.accumulate
    described = experiment.model_dump(exclude={"output": True, "train": {"epochs", "max_minutes"}})
    identity = [described, [entry.folder.name for entry in data.training_entries]]
    return Parts(
        network=network,
        loss=segmentation_loss(
            classes, [values for _, values, _ in data.regions] if data.regions is not None else None
        ),
        batches=batches,
        validate=validate,
        steps_per_epoch=max(1, -(-len(patches) // per_step)),
        case_names=[case.name for case in data.training],
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )


def _windows(experiment: Experiment) -> Windows:
    settings = experiment.inference
    size = settings.window or experiment.train.patch_size
    return Windows(tuple(size), settings.overlap, settings.batch_size, experiment.data.slice_axis)


def _mirrored_axes(experiment: Experiment) -> list[int]:
    """The axes of the volume that training mirrors: those that test-time augmentation may mirror, too."""
    seen = [axis for axis in range(3) if axis != experiment.data.slice_axis]
    axes = experiment.augmentation.flip_axes
    return [] if experiment.augmentation.flip == 0 else [seen[i] for i in (range(len(seen)) if axes is None else axes)]


def _targets(data: Prepared) -> dict[str, list[int]]:
    if data.regions is not None:
        return {name: values for name, values, _ in data.regions}
    return {name: [value] for name, value in data.manifest.labels.items() if value != 0}


# ---- what comes out


def _card(experiment: Experiment, data: Prepared, outcome: Any, network: torch.nn.Module) -> ModelCard:
    regions = None
    if data.regions is not None:
        regions = [RegionCard(name=name, values=values, write=write) for name, values, write in data.regions]
    return ModelCard(
        name=experiment.name,
        network=_network_arguments(experiment, data),
        channels=data.channels,
        labels=data.manifest.labels,
        regions=regions,
        preprocessing=preprocessing_settings(experiment.data),
        slice_axis=experiment.data.slice_axis,
        mirrored_axes=_mirrored_axes(experiment),
        window=experiment.inference.window or experiment.train.patch_size,
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
    baseline = ThresholdBaseline(data.channels, _targets(data))
    for entry in data.validation_entries:
        image = entry.image()
        baseline.add(image, entry.label()[0], (image != 0).any(axis=0))
    return baseline.best()


def _dry_run(experiment: Experiment, data: Prepared, parts: Parts, folder: Path) -> int:
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
            _windows(experiment),
            targets=_targets(data), classes=list(data.manifest.labels.values()), regions=data.regions,
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
    for name in ("checkpoints", "tensorboard", "report", "validation", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "plan.json", "config.yaml", "environment.json", "held_out.json"):
        (folder / name).unlink(missing_ok=True)


def main() -> int:
    """Run the command."""
    return run_command(train)


if __name__ == "__main__":
    sys.exit(main())
