"""Cross-validation by one command: a network for each fold, and one report on what none of them has seen.

Folder of a run with folds::

    fold_0/ fold_1/ ...   a training's folder each
    model/fold_0/ ...     the networks with the settings chosen on the out-of-fold predictions: an ensemble for infer
    report/               every case, scored by the network that has not seen it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError
from cmt_med.base.files import locked, read_lines, require_writable_folder, write_folder, write_json, write_text
from cmt_med.base.text import counted
from cmt_med.config.reading import dump_config
from cmt_med.config.schema import Experiment, Inference, Split, without_later_keys
from cmt_med.data import nnunet
from cmt_med.data.case import Case
from cmt_med.data.manifest import Manifest, load_manifest
from cmt_med.data.phantom import BANNER
from cmt_med.data.volumes.boxes import boxes_key
from cmt_med.data.volumes.gate import content_of
from cmt_med.data.volumes.instances import objects_key
from cmt_med.inference.model import load_model, save_model
from cmt_med.networks import NETWORKS_VERSION
from cmt_med.reports.provenance import shared_and_own
from cmt_med.runs.folder import clear_run
from cmt_med.runs.outcome import report_details
from cmt_med.runs.parallel import train_in_parallel
from cmt_med.runs.prepare import bound_demo, ensure_phantom, prepare_data
from cmt_med.runs.recognition import data_set
from cmt_med.runs.scoring import scored_cases
from cmt_med.runs.single import Request, run_experiment
from cmt_med.tasks import TASKS
from cmt_med.tasks.segmentation.choose import Choice, OutOfFoldCase, choose_settings

MARKER = "finished.json"
log = logging.getLogger(__name__)


def fold_request(request: Request, fold: int) -> Request:
    """The training of one fold; an ordinary one, but for its folder and its split."""
    experiment = request.experiment
    assert experiment.folds is not None  # by the callers
    split = Split(by="fold", fold=fold, folds=experiment.folds)
    changed = experiment.model_copy(
        update={
            "output": str(fold_folder(experiment, fold)),
            "data": experiment.data.model_copy(update={"split": split}),
        }
    )
    return replace(request, experiment=changed)


def fold_folder(experiment: Experiment, fold: int) -> Path:
    """The folder of a fold's training."""
    return Path(experiment.output) / f"fold_{fold}"


def cross_validate(request: Request, *, only: int | None, devices: Sequence[str], arguments: Sequence[str]) -> int:
    """Train every fold that is not finished, then score all cases together.

    Args:
        request: of the command.
        only: train this fold alone, and score nothing together.
        devices: one, on which folds are trained in turn, or several, with one fold at a time on each.
        arguments: of the command, repeated for folds on several devices.

    Returns:
        The exit code. ``train.max_minutes`` bounds each fold.

    Raises:
        ConfigError: for a fold that does not exist, or folds of the case list that are not as many.
    """
    experiment = request.experiment
    folder = Path(experiment.output)
    assert experiment.folds is not None  # by the caller
    if only is not None and only >= experiment.folds:
        raise ConfigError(f"there is no fold {only}", where="--fold", why=f"folds={experiment.folds}, counted from 0",
                          fix=f"use 0 to {experiment.folds - 1}")  # fmt: skip
    if only is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "torchrun trains one fold at a time", where="folds", why="its processes share one training, and folds are several",
            fix="add --fold I, or leave torchrun out and name the devices: --device cuda:0,cuda:1",
        )  # fmt: skip
    require_writable_folder(folder)
    manifest = check_folds(experiment, request.overrides)
    requests = {i: fold_request(request, i) for i in range(experiment.folds) if only in (None, i)}
    if only is not None:  # jobs of an array may end at the same moment: none of them gathers
        _train_folds(requests, manifest, devices, arguments)
        log.info("fold %d is finished; when all are, the command without --fold scores them together", only)
        return EXIT_DONE
    with locked(folder):
        if request.fresh:
            requests = _start_over(requests, manifest)
            arguments = [item for item in arguments if item != "--fresh"]
        _train_folds(requests, manifest, devices, arguments)
        return _gather(request, manifest)


def _start_over(requests: Mapping[int, Request], manifest: Manifest) -> dict[int, Request]:
    """Clear all folds: all at once, so that what is interrupted later is not resumed with older folds.

    Nothing is touched while another process works in one of them, or if there is a faulty case.
    """
    with contextlib.ExitStack() as stack:
        folders = [Path(fold.experiment.output) for fold in requests.values()]
        begun = [folder for folder in folders if folder.exists()]
        for folder in begun:
            stack.enter_context(locked(folder))
        first = requests[0]
        prepare_data(first.experiment, manifest, first.limit)
        for folder in begun:
            clear_run(folder)
    return {i: replace(fold, fresh=False) for i, fold in requests.items()}


def _train_folds(
    requests: Mapping[int, Request], manifest: Manifest, devices: Sequence[str], arguments: Sequence[str]
) -> None:
    """Train those that are not finished."""
    contents = _contents(manifest)  # as they are now: what is changed while folds are trained is noticed the next time
    waiting = {i: fold for i, fold in requests.items() if fold.fresh or not _is_finished(fold, contents)}
    done = [i for i in requests if i not in waiting]
    if done:
        log.info("finished before: fold %s", ", ".join(map(str, done)))
    if len(devices) > 1:
        train_in_parallel(sorted(waiting), devices, arguments)
        return
    for i, fold in waiting.items():
        log.info("fold %d of %d", i, fold.experiment.folds)
        run_experiment(replace(fold, started=time.monotonic()))
        if os.environ.get("RANK", "0") == "0":  # the first process has segmented and scored; the others end before
            _note_finished(fold, contents)


def check_folds(experiment: Experiment, overrides: Sequence[str]) -> Manifest:
    """The case list, once each fold has cases to train on and cases to hold out: found now, not after days of training.

    Raises:
        ConfigError: if the patients, or the folds of the case list, are fewer or more than the folds asked for.
    """
    assert experiment.folds is not None  # by the callers
    ensure_phantom(experiment, overrides)
    manifest = data_set(Path(experiment.data.manifest), experiment.data.missing, experiment.task)
    labelled = [case for case in manifest.cases if TASKS[experiment.task].has_target(case)]
    named = {case.fold for case in labelled}
    if None not in named and named and named != set(range(experiment.folds)):
        raise ConfigError(
            f"the case list has the folds {', '.join(map(str, sorted(n for n in named if n is not None)))}",
            where=f"folds={experiment.folds}", why="a case in none of the folds would never be held out",
            fix=f"--set folds={len(named)} with folds counted from 0, or take 'fold' out of the case list",
        )  # fmt: skip
    patients = len({case.group for case in labelled})
    if patients < experiment.folds:
        raise ConfigError(
            "there are more folds than patients", where=f"folds={experiment.folds}",
            why=f"the {len(labelled)} cases with labels are of {counted(patients, 'patient')}; a fold without one holds "
            "nothing out",
            fix=f"--set folds={patients}, or less" if patients > 1 else "take folds out of the config",
        )  # fmt: skip
    return manifest


# ---- which folds are finished


def _contents(manifest: Manifest) -> list[list[str | None]]:
    """The content of every file of the cases that folds are made of, as hashes; and what no list says of them."""
    listed = manifest.path.is_file() and not (manifest.path.parent / nnunet.SPLITS).is_file()
    contents: list[list[str | None]] = []
    for case in manifest.cases:
        if case.label is None and case.instances is None and case.boxes is None and not case.class_name:
            continue
        files = [*sorted({path for path, _ in case.images.values()}), case.label, case.mask]
        hashes = [content_of(path, case) if path is not None else None for path in files]
        hashes += [objects_key(case)] if case.instances is not None else []
        hashes += [boxes_key(case)] if case.boxes is not None else []
        contents.append(hashes if listed else [case.name, case.group, case.class_name, str(case.fold), *hashes])
    return contents


def _key(request: Request, contents: Sequence[Sequence[str | None]]) -> str:
    """Key of a fold's result: the settings as asked for, the case list, and its files."""
    asked = without_later_keys(
        request.experiment.model_dump(
            exclude={"output": True, "data": {"workers", "manifest", "phantom"}, "inference": {"batch_size"}}
        )
    )
    path = Path(request.experiment.data.manifest)
    listed = path.read_bytes() if path.is_file() else b""
    content = json.dumps([NETWORKS_VERSION, asked, request.limit, contents], sort_keys=True).encode() + listed
    return hashlib.sha256(content).hexdigest()


def _note_finished(request: Request, contents: Sequence[Sequence[str | None]]) -> None:
    write_json(Path(request.experiment.output) / MARKER, {"key": _key(request, contents)})


def _is_finished(request: Request, contents: Sequence[Sequence[str | None]]) -> bool:
    try:
        content = json.loads((Path(request.experiment.output) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("key") == _key(request, contents)


# ---- all folds together


def _gather(request: Request, manifest: Manifest) -> int:
    experiment = bound_demo(request.experiment, manifest, list(request.overrides))
    folder = Path(experiment.output)
    assert experiment.folds is not None  # by the caller
    banner = BANNER if manifest.demo else ""
    cases: dict[str, Case] = {}
    fold_of: dict[str, int] = {}
    for i in range(experiment.folds):
        for case in load_manifest(fold_folder(experiment, i) / "held_out.json").cases:
            cases[case.name], fold_of[case.name] = case, i
    folds = {i: fold_folder(experiment, i) for i in range(experiment.folds)}
    cards = {i: load_model(fold)[0] for i, fold in folds.items()}
    first = cards[0]
    places = {name: folds[i] / "validation" for name, i in fold_of.items()}
    scored = scored_cases(first, places, cases, manifest.convention, banner)
    extra: dict[str, Any] = {
        "selection": "Out-of-fold: each case is scored by the network that has not seen it.",
        "folds": fold_of,
        "members": [{"fold": i, "weights_sha256": card.weights_sha256, **card.provenance} for i, card in cards.items()],
    }
    chosen = first.inference
    if experiment.inference.choose and first.outputs.overlapping and scored.scores:
        held = [
            OutOfFoldCase(
                n,
                fold_of[n],
                places[n] / f"{n}_prob.nii.gz",
                case.label,
                case.sha256,
                case.colours,
                case.ignore,
                case.annotated,
            )
            for n, case in cases.items()
            if n in scored.scores and case.label is not None
        ]
        begun = time.monotonic()
        choice = choose_settings(held, first.scheme.targets, first.inference)
        chosen = choice.settings
        extra["postprocessing"] = choice.as_dict() | {"seconds": round(time.monotonic() - begun, 1)}
        _print_choice(choice)
    metrics = scored.write_metrics(folder / "report", extra)
    collect_models(list(folds.values()), folder / "model", metrics["summary"], chosen)
    write_text(folder / "config.yaml", dump_config(experiment))
    details = {f"fold {i}": {**report_details(c, folds[i]), "Provenance": c.provenance} for i, c in cards.items()}
    page = scored.write_page(
        folder / "report", f"{experiment.name}, {experiment.folds} folds", settings=dump_config(experiment),
        log_rows=[row | {"fold": i} for i, fold in folds.items() for row in read_lines(fold / "log.jsonl")],
        details=shared_and_own(details),
    )  # fmt: skip
    print(f"models: {folder / 'model'} ({experiment.folds} networks, an ensemble for infer)\nreport: {page}")
    return EXIT_SOME_FAILED if scored.failures else EXIT_DONE


def collect_models(folds: Sequence[Path], target: Path, summary: dict[str, Any], chosen: Inference) -> None:
    """Each fold's network with the settings chosen together; ``validation`` is that of all folds."""

    def fill(folder: Path) -> None:
        for i, fold in enumerate(folds):
            card, weights = load_model(fold)
            save_model(
                folder / f"fold_{i}", card.model_copy(update={"inference": chosen, "validation": summary}), weights
            )

    write_folder(target, fill)


def _print_choice(choice: Choice) -> None:
    for name, before in choice.before.items():
        after = choice.after[name]
        parts = [f"threshold {choice.settings.thresholds[name]:g}"] if name in choice.settings.thresholds else []
        parts += (
            [f"at least {choice.settings.min_region_mm3[name]:g} mm³"] if name in choice.settings.min_region_mm3 else []
        )
        what = ", ".join(parts) or "nothing that is worth it"
        print(f"chosen for {name}: {what}; Dice {before:.4f} -> {after:.4f} (cross-fitted)")
