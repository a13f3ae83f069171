"""The outcome of a training: the model card, the held-out cases segmented and scored, the report."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cmt_med
from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED
from cmt_med.base.files import (
    read_lines,
    sha256,
)
from cmt_med.compute.machine import (
    dense_convolution_rate,
)
from cmt_med.config.reading import dump_config
from cmt_med.config.schema import Experiment
from cmt_med.data.patches.cut import slice_axes
from cmt_med.data.phantom import BANNER
from cmt_med.data.preprocessing.fingerprint import fingerprint_of
from cmt_med.evaluation.baseline import ThresholdBaseline
from cmt_med.evaluation.overlap import known_voxels
from cmt_med.inference.folder import engine_of, infer_cases
from cmt_med.inference.model import ModelCard, RegionCard, load_model, save_model
from cmt_med.inference.predict import Predictor
from cmt_med.inference.reconstruction import reconstructed
from cmt_med.inference.results import Probabilities
from cmt_med.reports.reconstructions import ReconstructionEvaluation
from cmt_med.runs.assemble import mirrored_axes
from cmt_med.runs.network import network_arguments
from cmt_med.runs.prepare import Prepared, settings_of
from cmt_med.runs.scoring import scored_cases
from cmt_med.runs.trained import trained_network
from cmt_med.tasks.pretraining.task import Pretraining
from cmt_med.training.fit import Outcome

log = logging.getLogger(__name__)


def card_of(experiment: Experiment, data: Prepared, outcome: Outcome, network: torch.nn.Module) -> ModelCard:
    """Make the card of a model: all that inference needs beside its weights, and where it comes from."""
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
        instances=experiment.instances if data.task.objects else None,
        detection=experiment.detection if data.task.boxes else None,
        convention=data.manifest.convention,
        training_data=fingerprint_of(
            [entry.statistics() for entry in data.training_entries], {} if data.task.boxes else data.task.scored
        ),
        trained_on=sorted({entry.content for entry in data.training_entries}),
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


def report_run(
    experiment: Experiment, data: Prepared, card: ModelCard, folder: Path, device: torch.device, banner: str
) -> int:
    """Segment the held-out cases with the model as saved, score them on their own grids, and write the report."""
    if not data.validation:
        log.info("no cases are held out, so there is no report; the model is in %s", folder / "model")
        return EXIT_DONE
    if data.task.unlabelled:
        return _report_reconstructions(experiment, data, card, folder, device, banner)
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


def _report_reconstructions(
    experiment: Experiment, data: Prepared, card: ModelCard, folder: Path, device: torch.device, banner: str
) -> int:
    """Hide blocks of the held-out cases, score what the model makes of them, and write the report."""
    card, weights = load_model(folder / "model")
    network = trained_network(card, weights).to(device).eval()
    found = {}
    for entry in data.validation_entries:
        image = torch.from_numpy(np.array(entry.image())).to(device)
        found[entry.name] = reconstructed(network, image, card.patch, card.slice_axes, data.task, entry.name)
    cases = {case.name: case for case in data.validation}
    assert isinstance(data.task, Pretraining)  # the only one without labels
    scored = ReconstructionEvaluation(data.task, dict.fromkeys(cases, folder), cases, banner, found).score()
    metrics = scored.write_metrics(folder / "report", {"provenance": card.provenance})
    save_model(folder / "model", card.model_copy(update={"validation": metrics["summary"]}), weights)
    page = scored.write_page(
        folder / "report", experiment.name, log_rows=read_lines(folder / "log.jsonl"), settings=dump_config(experiment),
        details=report_details(card, folder),
    )  # fmt: skip
    print(f"model: {folder / 'model'}\nreport: {page}")
    return EXIT_SOME_FAILED if scored.failures else EXIT_DONE


def report_details(card: ModelCard, run: Path) -> dict[str, dict[str, Any]]:
    """Details of a report on the model and the machine: the card, but for its scores, and ``environment.json``."""
    facts = {"Model card": card.model_dump(exclude={"validation", "provenance", "trained_on"})}
    with contextlib.suppress(OSError, ValueError):  # a report without it is better than none
        facts["Environment"] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return facts


def _threshold_baseline(data: Prepared) -> dict[str, dict[str, Any]]:
    baseline = ThresholdBaseline(data.channels, data.task.scored)
    for entry in data.validation_entries:
        image, label = entry.image(), entry.label()[0]
        inside = (image != 0).any(axis=0)
        known = known_voxels(label, data.manifest.ignore)
        baseline.add(image, label, inside if known is None else inside & known, entry.annotated)
    return baseline.best()
