"""Scores of a folder of predictions against references: the report of ``cmt-med evaluate``."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, CmtError, ConfigError, DataError
from cmt_med.base.files import require_writable_folder
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import lesions_of
from cmt_med.data.conventions.names import MEAN
from cmt_med.data.manifest import Manifest, colours_of, load_manifest, sums_of
from cmt_med.data.sources import find_dataset
from cmt_med.data.sources.predicted import RUN_FILE, RunRecord, label_maps_in, read_run, targets_in
from cmt_med.data.volumes.gate import load_labels
from cmt_med.data.volumes.streams import readable_name
from cmt_med.evaluation.lesions import lesion_rule_named
from cmt_med.evaluation.metrics import DEFAULT_TOLERANCES, Scores, check_tolerances
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule
from cmt_med.reports.provenance import describe_evaluation
from cmt_med.reports.publish import Evaluation
from cmt_med.reports.scores import empty_rule_of
from cmt_med.runs.records import of_run, require_apart, score_records, some, write_failures
from cmt_med.tasks import TASKS
from cmt_med.tasks.task import draws_labels

log = logging.getLogger(__name__)


def score_predictions(
    predictions: Path, references: Path, output: Path, *, labels: list[str] | None = None, empty: str | None = None,
    tolerance: list[float] | None = None, lesion_wise: str | None = None,
) -> int:  # fmt: skip
    """Score a folder of predictions, write the report, and return the exit code; arguments as of ``cmt-med evaluate``.

    Raises:
        ConfigError: for arguments that do not fit together; DataError: E_MISSING, E_LABEL, E_IO, E_RUN.
    """
    asked = None if empty is None else _rule(empty)
    tolerances = tolerance or list(DEFAULT_TOLERANCES)
    check_tolerances(tolerances)
    lesions = None if lesion_wise == "none" else lesion_wise
    if lesions is not None:
        lesion_rule_named(lesions)
    run = _run_of(predictions)
    if run.task in TASKS and not draws_labels(TASKS[run.task]):
        asked_for = {"--labels": labels, "--empty": empty, "--tolerance": tolerance, "--lesion-wise": lesion_wise}
        for option, value in asked_for.items():
            if value:
                raise ConfigError(
                    f"{option} is for label maps",
                    where=option,
                    why=f"these are predictions of {run.task}",
                    fix="leave it out",
                )
        return score_records(predictions, references, output, run)
    targets = _targets(labels, run)
    expected = _references(references, targets, run, predictions, by_name=not labels)
    targets = {name: values for name, values in targets.items() if name in expected.targets}
    if lesion_wise is None:
        lesions = lesions_of(expected.convention)
    rule = asked or empty_rule_of(expected.convention or run.convention)
    predicted = {name: path for name, path in label_maps_in(predictions).items() if name not in run.failed}
    if not set(predicted) & set(expected.files):
        raise DataError(
            "no prediction has the name of a reference",
            where=str(predictions),
            why=f"predictions: {some(predicted)}; references: {some(expected.files)}",
            fix="check --predictions and --references; names must be the same but for the ending. Where references are named "
            "otherwise, as in a data set as downloaded, give its case list (cmt-med init writes one)",
            code="E_MISSING",
        )
    require_apart(output, predictions)
    require_writable_folder(output)
    unnamed = bool(labels) and run.labels is None
    known = _named_or_seen(targets, expected) if unnamed else _values_of(run)
    scored = Evaluation(
        predicted, expected.files, targets, expected.cases, rule, lesions, tolerances, expected.targets, expected.values, known,
        run.notice,
    ).score()  # fmt: skip
    if unnamed and not scored.scores and {failure["code"] for failure in scored.failures} == {"E_LABEL"}:
        raise _misnumbered(scored.failures, predictions)
    for name in _nowhere(scored.scores, targets):
        log.warning("%s is in no reference and no prediction (label %s)", name, ", ".join(map(str, targets[name])))
    write_failures(output, scored.failures)
    options = {
        "predictions": predictions, "references": references, "output": output, "labels": labels, "empty": empty,
        "tolerance": tolerance, "lesion_wise": lesion_wise,
    }  # fmt: skip
    described = describe_evaluation(options, expected.path, expected.files)
    scored.write_metrics(output, {"evaluation": described} | of_run(run, predictions, scored.scores))
    report = scored.write_page(output, f"Evaluation of {run.model or predictions.name}")
    print(f"report: {report}")
    return EXIT_SOME_FAILED if scored.failures else EXIT_DONE


@dataclass(frozen=True)
class _References:
    """The references of predictions: files by case, targets in their numbers, and what a case list adds."""

    path: Path
    files: dict[str, Path]
    targets: Mapping[str, Sequence[int]]
    values: list[int] | None = None
    cases: dict[str, Case] = field(default_factory=dict)
    convention: str = ""


def _references(
    path: Path, targets: Mapping[str, list[int]], run: RunRecord, predictions: Path, *, by_name: bool
) -> _References:
    """The references under a path; with ``by_name``, the run's targets are put into a case list's numbers.

    A folder has no names: with ``by_name``, its label maps are held to the run's numbers, and another numbering is an
    error.
    """
    if path.is_dir() and (path / "dataset.json").is_file():
        path = path / "dataset.json"
    if path.suffix.lower() == ".json":
        found = _listed(load_manifest(path, strict=False), targets, run, predictions, by_name=by_name)
    elif path.is_file():
        raise DataError(
            "neither a folder of label maps nor a case list", where=str(path), why="nothing else says what labels mean",
            fix="give the folder, or a case list (.json); cmt-med init TABLE.csv --output my.yaml makes a table one: my.json",
            code="E_IO",
        )  # fmt: skip
    elif maps := label_maps_in(path):
        found = _References(path, maps, targets, _values_of(run) if by_name else None)
    else:
        found = _of_data_set(path, targets, run, predictions, by_name=by_name)
    if not found.files:
        raise DataError(
            "there are no references", where=str(path), why="no label map lies in it" if path.is_dir() else
            "none of its cases that were predicted has a label",
            fix="give a folder of label maps named like the predictions, or a case list (cmt-med init writes one for a data "
            "set as downloaded)", code="E_IO",
        )  # fmt: skip
    return found


def _listed(
    manifest: Manifest, targets: Mapping[str, list[int]], run: RunRecord, predictions: Path, *, by_name: bool
) -> _References:
    """The references that a case list names."""
    cases = _asked_for([*manifest.cases, *manifest.test], run)
    theirs = targets_in(manifest, run, predictions) if by_name else targets
    for target in [target for target in targets if target not in theirs]:
        log.warning("%s is not scored: %s has no label of it", target, manifest.path.name)
    if by_name and "RC" in manifest.labels and "RC" not in (run.labels or {}):
        log.warning("RC is not scored: the model does not know it")
    return _References(
        manifest.path,
        {name: case.label for name, case in cases.items() if case.label is not None},
        theirs,
        [*manifest.labels.values(), *([] if manifest.ignore is None else [manifest.ignore])]
        if manifest.labels
        else None,
        cases,
        manifest.convention,
    )


def _of_data_set(
    path: Path, targets: Mapping[str, list[int]], run: RunRecord, predictions: Path, *, by_name: bool
) -> _References:
    """The references of a data set as downloaded, such as DICOM studies with their segmentations."""
    found = find_dataset(path)
    for problem in found.problems:
        log.warning("not a reference: %s", problem.message())
    for note in found.notes:
        log.info("%s: %s", readable_name(path), note)
    if found.labels:
        manifest = Manifest(
            path, found.name, tuple(found.cases), tuple(found.channels), dict(found.labels), test=tuple(found.test),
            convention=found.convention, ignore=found.ignore, colours=dict(found.colours),
        )  # fmt: skip
        return _listed(manifest, targets, run, predictions, by_name=by_name)
    cases = _asked_for([*found.cases, *found.test], run)
    files = {name: case.label for name, case in cases.items() if case.label is not None}
    return _References(path, files, targets, _values_of(run) if by_name else None, cases)


def _asked_for(cases: Sequence[Case], run: RunRecord) -> dict[str, Case]:
    """The cases with a label map, of those that were to be predicted."""
    wanted = None if run.cases is None else set(run.cases)
    return {case.name: case for case in cases if case.label is not None and (wanted is None or case.name in wanted)}


def _named_or_seen(targets: Mapping[str, Sequence[int]], expected: _References) -> list[int]:
    """Values that predictions without a run.json may have: those that --labels or the case list name, or any reference has.

    Scoring a part of the labels on purpose is possible: the references have the others, too, if not in the same case. A value
    that is in predictions alone is a label under another number more often than a structure that nobody has drawn, and would
    be scored as background.
    """
    seen = {0, *(expected.values or ())}.union(*targets.values(), *expected.targets.values())
    sums, colours = sums_of(expected.cases.values()), colours_of(expected.cases.values())
    for case, path in expected.files.items():
        with contextlib.suppress(CmtError):  # the scoring says what is wrong with it
            label, _ = load_labels(path, case, sums=sums, colours=colours)
            seen |= set(np.flatnonzero(np.bincount(label.ravel(order="K"))).tolist())
    return sorted(seen)


def _misnumbered(failures: Sequence[Mapping[str, str]], predictions: Path) -> DataError:
    return DataError(
        "no case can be scored: label values do not fit", where=str(predictions),
        why=f"{failures[0]['where']}: {failures[0]['what']}; {failures[0]['why']}",
        fix="give the numbers that the files have with --labels, name what else they hold, too, or renumber the files",
        code="E_LABEL",
    )  # fmt: skip


def _nowhere(scored: Mapping[str, Mapping[str, Scores]], targets: Mapping[str, Sequence[int]]) -> list[str]:
    """Targets that no volume has: their perfect scores are more often a slip of the pen than a finding."""
    voxels = ("reference_voxels", "predicted_voxels")
    return [
        name
        for name in targets
        if scored and not any(case[name][key] > 0 for case in scored.values() for key in voxels)
    ]


def _rule(name: str) -> EmptyRule:
    for rule in EMPTY_RULES:
        if name == rule:
            return rule
    raise ConfigError(
        f"rule {name!r} is unknown",
        where="--empty",
        why="it says what an empty reference means",
        fix=f"use {' or '.join(EMPTY_RULES)}",
    )


def _run_of(predictions: Path) -> RunRecord:
    """Read the predictions' run.json; nothing where there is none."""
    if predictions.is_dir() and not (predictions / RUN_FILE).is_file() and (predictions / "model").is_dir():
        raise ConfigError(
            "this is a run of training", where=f"--predictions {predictions}",
            why="its held-out cases have been scored already, in report/", fix="give the --output folder of infer",
        )  # fmt: skip
    if predictions.is_file():
        raise DataError(
            "predictions are a folder", where=str(predictions), why="run.json and a file for each case lie in it",
            fix=f"give {predictions.parent}", code="E_IO",
        )  # fmt: skip
    if not predictions.is_dir():
        raise DataError("there are no predictions", where=str(predictions), fix="check --predictions", code="E_IO")
    return read_run(predictions) or RunRecord()


def _values_of(run: RunRecord) -> list[int] | None:
    return None if run.labels is None else sorted({0, *run.labels.values()})


def _targets(labels: list[str] | None, run: RunRecord) -> dict[str, list[int]]:
    if not labels:
        if run.targets is None:
            raise ConfigError(
                "what to score is not known", where="--labels",
                why="the predictions have no run.json that says it", fix="name the labels: --labels tumour=1 --labels edema=2",
            )  # fmt: skip
        return run.targets
    targets: dict[str, list[int]] = {}
    for item in labels:
        name, _, values = item.partition("=")
        if not name or not re.fullmatch(r"\s*[0-9]{1,5}\s*(,\s*[0-9]{1,5}\s*)*", values):
            raise ConfigError(
                "--labels needs NAME=VALUE[,VALUE]",
                where=repr(item),
                why="a name without numbers says nothing of the files",
                fix="for example --labels core=1,4",
            )
        if name == MEAN:
            raise ConfigError(
                f"nothing that is scored can be called {MEAN}", where=repr(item), why="reports call the average so",
                fix="give it another name",
            )  # fmt: skip
        if name in targets:
            raise ConfigError(
                f"--labels names {name} twice",
                where=repr(item),
                why="one would replace the other",
                fix=f"give all of its values at once: {name}=1,4",
            )
        targets[name] = [int(part) for part in values.split(",")]
    return targets
