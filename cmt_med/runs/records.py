"""Scores of predictions that are no label maps: answers for whole images, and numbered objects."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, CmtError, ConfigError, DataError
from cmt_med.base.files import require_writable_folder, write_json
from cmt_med.base.text import counted
from cmt_med.config.detection import Detection
from cmt_med.data.case import Case
from cmt_med.data.sources import cases_for_network
from cmt_med.data.sources.predicted import RunRecord, label_maps_in
from cmt_med.data.volumes.gate import content_of
from cmt_med.data.volumes.sums import sum_of_sums
from cmt_med.inference.results import predictions_in, read_record
from cmt_med.reports.answers import AnswerEvaluation, RecordEvaluation
from cmt_med.reports.boxes import BoxEvaluation
from cmt_med.reports.objects import ObjectEvaluation
from cmt_med.reports.provenance import describe_evaluation
from cmt_med.tasks import TASKS
from cmt_med.tasks.task import Task, box_task, object_task, whole_image_task

log = logging.getLogger(__name__)

_LACKING = {
    "detection": ("boxes", 'give a case list with "boxes" for each case, or the data set that init takes'),
    "instances": (
        "numbered objects",
        'give a case list with "instances" for each case, or a folder with images/ and instances/',
    ),
    "classification": (
        "a class",
        'give a case list with "class" for each case, a table with a column class, or a folder for each class',
    ),
}
"""What references lack, by task, and what can be done."""


def score_records(predictions: Path, references: Path, output: Path, run: RunRecord) -> int:
    """Score what ``infer`` has left in a folder, write the report, and return the exit code.

    Args:
        predictions: folder of records, and of label images of objects.
        references: a case list or a data set as ``init`` takes it, with classes or with numbered objects; of the latter, a folder
            of label images, too.
        output: folder of the report.
        run: what ``run.json`` says.

    Raises:
        DataError: E_LABEL, if no reference has a target; E_MISSING, if none has a prediction.
    """
    task = TASKS[run.task].from_card(run.labels or {}, None)
    cases = _cases(references, task, run)
    require_apart(output, predictions)
    _warn_of_other_images(predictions, cases)
    scored = _evaluation(task, predictions, cases, run).score()
    require_writable_folder(output)
    write_failures(output, scored.failures)
    options = {"predictions": predictions, "references": references, "output": output}
    files = {name: case.boxes or case.instances or next(iter(case.images.values()))[0] for name, case in cases.items()}
    described = describe_evaluation(options, references, files)
    scored.write_metrics(output, {"evaluation": described} | of_run(run, predictions, scored.scores))
    print(f"report: {scored.write_page(output, f'Evaluation of {run.model or predictions.name}')}")
    return EXIT_SOME_FAILED if scored.failures else EXIT_DONE


def _evaluation(task: Task, predictions: Path, cases: Mapping[str, Case], run: RunRecord) -> RecordEvaluation:
    folders = dict.fromkeys(cases, predictions)
    if task.boxes:
        return BoxEvaluation(box_task(task), folders, cases, run.notice, _detection(run))
    if task.objects:
        return ObjectEvaluation(object_task(task), folders, cases, run.notice, predictions_in(predictions))
    return AnswerEvaluation(whole_image_task(task), folders, cases, run.notice)


def _detection(run: RunRecord) -> Detection:
    """The settings of the model that found boxes, as the run keeps them."""
    kept = (run.model_extra or {}).get("detection")
    try:
        return Detection.model_validate(kept) if isinstance(kept, dict) else Detection()
    except ValueError:
        return Detection()


def _cases(references: Path, task: Task, run: RunRecord) -> dict[str, Case]:
    """The references that were to be predicted, by name."""
    found = cases_for_network(references, run.channels or ["image"])
    for problem in found.problems:
        log.warning("not a reference: %s", problem.message())
    cases = {case.name: case for case in found.cases if task.has_target(case)}
    if not cases and task.objects and references.is_dir():  # label images alone
        cases = {name: Case(name, {}, instances=path) for name, path in label_maps_in(references).items()}
    if run.cases is not None and set(run.cases) & set(cases):
        unknown = sorted(set(run.cases) - set(cases))
        if unknown:
            log.warning("%s without a reference, not scored: %s", counted(len(unknown), "prediction"), some(unknown))
        cases = {name: case for name, case in cases.items() if name in set(run.cases)}
    if not cases:
        lacking, fix = _LACKING[task.name]
        raise DataError(
            f"no reference has {lacking}", where=str(references), why="nothing says what the images show", fix=fix,
            code="E_LABEL",
        )  # fmt: skip
    return cases


def _warn_of_other_images(predictions: Path, cases: Mapping[str, Case]) -> None:
    """Say which references are not the images that were predicted: names alone match what has nothing in common."""
    other = []
    for name, case in cases.items():
        seen = read_record(predictions / f"{name}.json").get("input_sha256")
        with contextlib.suppress(CmtError, OSError):
            now = {channel: content_of(path, case) for channel, (path, _) in case.images.items()}
            if isinstance(seen, dict) and any(now.get(channel, value) != value for channel, value in seen.items()):
                other.append(name)
    if other:
        log.warning(
            "%s: not the image that was predicted, but another of its name: %s",
            counted(len(other), "reference"),
            some(other),
        )


def of_run(run: RunRecord, predictions: Path, names: Collection[str]) -> dict[str, Any]:
    """What ``metrics.json`` says of the predictions' run: its record, and which of the cases its model was trained on."""
    known = set(run.trained_on)
    seen = {name: read_record(predictions / f"{name}.json").get("input_sha256") for name in sorted(names) if known}
    trained = [
        name for name, sums in seen.items() if isinstance(sums, dict) and sum_of_sums(map(str, sums.values())) in known
    ]
    said: dict[str, Any] = {"run": run.model_dump(exclude_unset=True, exclude={"trained_on"})}
    if trained:
        note = f"The model was trained on {len(trained)} of these {counted(len(names), 'case')}: their scores are optimistic."
        log.warning("%s (%s)", note, some(trained))
        said |= {"trained_on": trained, "notes": [note]}
    return said


def require_apart(output: Path, predictions: Path) -> None:
    """Raise where the report would lie among the predictions."""
    if output.resolve() == predictions.resolve():
        raise ConfigError(
            "the report would lie among the predictions", where=f"--output {output}",
            why="both have a failures.json", fix="give another folder",
        )  # fmt: skip


def write_failures(output: Path, failures: Sequence[Mapping[str, str]]) -> None:
    """Write ``failures.json``, or remove an older one."""
    if failures:
        write_json(output / "failures.json", list(failures))
    else:
        (output / "failures.json").unlink(missing_ok=True)


def some(names: Collection[str]) -> str:
    """The first names."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "none"
