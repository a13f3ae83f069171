"""The targets of ``cmt-med view``: a run, its folds, an inference folder or a report, and the volumes in it.

File names are matched with the names of cases that a folder lists; no path is ever made of a name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources import cases_for_network
from cmt_med.data.sources.predicted import RunRecord, read_run, targets_in
from cmt_med.evaluation.summary import case_mean
from cmt_med.inference.results import predictions_in
from cmt_med.reports.listing import FILE, CaseFiles, Listing, read_listing
from cmt_med.reports.saved import SavedReport, load_report
from cmt_med.tasks import TASKS
from cmt_med.tasks.task import draws_labels

_MAX_JSON = 50_000_000  # bytes; a case's record of more is none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Cases to look at, the worst first where they are scored.

    Attributes:
        title: the folder's name.
        listing: files and targets.
        report: the scores; None where there are none.
        notice: such as that the data are phantoms.
    """

    title: str
    listing: Listing
    report: SavedReport | None
    notice: str


def find_source(folder: Path, images: Path | None = None) -> Source:
    """Find what is in ``folder``.

    Args:
        folder: a run, a run with folds, an inference folder or a report folder.
        images: case list or folder that an inference folder was made of; it has label maps alone.

    Raises:
        DataError: E_IO or E_REPORT, if it is none of these, or nothing can be shown.
    """
    _require_label_maps(folder)
    report = load_report(folder) if _has_report(folder) else None
    notice = " ".join(report.notices) if report else ""
    if (folder / "metrics.json").is_file():
        inside_run = not (folder / FILE).is_file() and _run_parts(folder.parent)
        listing = _listing_of_runs(_run_parts(folder.parent)) if inside_run else read_listing(folder)
    elif parts := _run_parts(folder):
        listing = _listing_of_runs(parts)
    elif (run := read_run(folder)) is not None:
        listing, notice = _listing_of_inference(folder, run, images), run.notice
    else:
        raise DataError(
            "there is nothing to view here", where=str(folder),
            why="no held_out.json with validation/, no fold_0/, no run.json and no metrics.json",
            fix="give a run folder, the --output of infer, or the --output of evaluate", code="E_IO",
        )  # fmt: skip
    cases = tuple(case for case in listing.cases if case.prediction or case.reference)
    if not cases:
        raise DataError("no volume of any case is there", where=str(folder), why="files were moved or removed",
                        fix="run infer again, or give the run folder", code="E_IO")  # fmt: skip
    return Source(folder.resolve().name, replace(listing, cases=_ranked(cases, report)), report, notice)


def _require_label_maps(folder: Path) -> None:
    """Raise where predictions are answers for whole images, or numbered objects."""
    for place in (folder, folder / "validation", folder / "fold_0/validation", folder.parent / "validation"):
        run = read_run(place)
        if run is not None and run.task in TASKS and not draws_labels(TASKS[run.task]):
            task = TASKS[run.task]
            table = "boxes" if task.boxes else "objects" if task.objects else "predictions"
            raise DataError(
                f"there are no label maps to view: these are results of {run.task}", where=str(folder),
                why="a viewer of labels has no colours for so many objects" if task.objects or task.boxes else
                "an answer for a whole image has no place in it", code="E_REPORT",
                fix=f"open report.html, which shows the worst errors, or {table}.csv",
            )  # fmt: skip


def _has_report(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.json", "report/metrics.json"))


def _run_parts(folder: Path) -> list[Path]:
    """The folders that have held-out cases and predictions of them: the run itself, or its folds."""
    # by the models that were gathered: with other folds before, folders of theirs may lie here still
    gathered = {path.name for path in folder.glob("model/fold_*")}
    folds = [path for path in sorted(folder.glob("fold_*")) if not gathered or path.name in gathered]
    parts = [folder, *folds]
    return [part for part in parts if (part / "held_out.json").is_file() and (part / "validation").is_dir()]


def _listing_of_runs(parts: Sequence[Path]) -> Listing:
    cases: list[CaseFiles] = []
    targets: dict[str, list[int]] = {}
    for part in parts:
        targets = targets or _targets(read_run(part / "validation"), part)
        predicted = predictions_in(part / "validation")
        for case in load_manifest(part / "held_out.json").cases:
            cases.append(
                CaseFiles(
                    case.name, predicted.get(case.name), case.label, case.images, case.sha256, case.colours, case.ignore,
                    _unscored(case, targets),
                )
            )  # fmt: skip
    return Listing(tuple(cases), targets, targets)


def _listing_of_inference(folder: Path, run: RunRecord, images: Path | None) -> Listing:
    predicted = predictions_in(folder)
    known: dict[str, Case] = {}
    if images is not None:
        known = {case.name: case for case in cases_for_network(images, _channels(folder, predicted)).cases}
    targets = _targets(run, folder)
    theirs = targets if images is None else _targets_in_list(images, run, folder)
    cases = []
    for name, path in predicted.items():
        case = known.get(name, Case(name, {}))
        lacking = _unscored(case, theirs)
        cases.append(CaseFiles(name, path, case.label, case.images, case.sha256, case.colours, case.ignore, lacking))
    return Listing(tuple(cases), {name: targets[name] for name in theirs}, theirs)


def _unscored(case: Case, targets: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The targets that a case does not annotate."""
    return tuple(name for name, values in targets.items() if not case.annotates(values))


def _targets_in_list(images: Path, run: RunRecord, folder: Path) -> dict[str, list[int]]:
    """The targets in the numbers of the references, which a case list alone brings."""
    targets = _targets(run, folder)
    path = images / "dataset.json" if images.is_dir() else images
    if path.suffix.lower() != ".json" or not path.is_file():
        return targets
    manifest = load_manifest(path)
    if not any(case.label for case in manifest.cases):
        return targets
    theirs = targets_in(manifest, run, folder)
    for target in [target for target in targets if target not in theirs]:
        log.warning("%s is not shown: %s has no label of it", target, path.name)
    return theirs


def _channels(folder: Path, predicted: Mapping[str, Path]) -> list[str]:
    """The channels that a result's record names."""
    for name in predicted:
        content = _read_json(folder / f"{name}.json")
        if isinstance(content.get("input_sha256"), dict):
            return [str(channel) for channel in content["input_sha256"]]
    raise DataError("the channels of the images are not known", where=str(folder),
                    why="no case has its JSON record", fix="view it without --images, or run infer again",
                    code="E_IO")  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"larger than {_MAX_JSON} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read", where=str(path), why=str(error), fix="run infer again",
                        code="E_IO") from error  # fmt: skip
    return content


def _targets(run: RunRecord | None, folder: Path) -> dict[str, list[int]]:
    if run is None or run.targets is None:
        raise DataError("run.json does not say what the label values mean", where=str(folder),
                        why="there is none" if run is None else "it has no targets", fix="run infer again",
                        code="E_RUN")  # fmt: skip
    return run.targets


def _ranked(cases: Sequence[CaseFiles], report: SavedReport | None) -> tuple[CaseFiles, ...]:
    """Worst mean Dice first; cases without a score after those that have one."""
    if report is None:
        return tuple(cases)
    scores = {name: case_mean(rows, report.targets, "dice") for name, rows in report.cases.items()}

    def key(case: CaseFiles) -> tuple[bool, float]:
        score = scores.get(case.name, float("nan"))
        return score != score, 0.0 if score != score else score

    return tuple(sorted(cases, key=key))
