"""Scores of a folder of predictions: ``metrics.json`` and ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_med.base.errors import CmtError, DataError
from cmt_med.base.files import write_json, write_text
from cmt_med.base.text import as_text
from cmt_med.data.case import Codes
from cmt_med.data.conventions.brats import CONVENTIONS
from cmt_med.data.volumes.gate import load_labels
from cmt_med.evaluation.lesions import LesionRule, lesion_rule_named
from cmt_med.evaluation.metrics import (
    DEFAULT_TOLERANCES,
    FACTS,
    Scores,
    case_metrics,
    check_tolerances,
    metric_of,
    of_pixels,
)
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule, missed_text
from cmt_med.evaluation.summary import is_scored, score_names, summarise

SCHEMA_VERSION = 2  # 1 had Dice and volumes alone, under the names that they still have

log = logging.getLogger(__name__)


def empty_rule_of(convention: str) -> EmptyRule:
    """The rule for empty references: the challenge's for BraTS data, the diagonal's for all others."""
    return "challenge" if convention in CONVENTIONS else "diagonal"


def score_folder(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    targets: Mapping[str, Sequence[int]],
    *,
    reference_targets: Mapping[str, Sequence[int]] | None = None,
    reference_values: Sequence[int] | None = None,
    predicted_values: Sequence[int] | None = None,
    rule: EmptyRule,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    lesions: str | None = None,
    sums: Mapping[Path, str] | None = None,
    colours: Codes | None = None,
    ignored: Mapping[str, int] | None = None,
    unscored: Mapping[str, Collection[str]] | None = None,
) -> tuple[dict[str, dict[str, Scores]], list[dict[str, str]]]:
    """Score every reference against the prediction of its name.

    Args:
        predictions, references: case name -> label volume.
        targets: name -> label values that it consists of, in the predictions.
        reference_targets: the same in the references, where they number their labels differently.
        reference_values, predicted_values: label values that references and predictions may have; None for any.
        rule: what an empty reference means.
        tolerances: of the normalised surface Dice, in mm.
        lesions: a name in ``LESION_RULES``, for lesion-wise scores; None for none.
        sums: SHA-256 that references must have, where the case list says so.
        colours: label values of references in colour.
        ignored: case name -> value of voxels in its reference that nobody has annotated; they count nowhere.
        unscored: case name -> targets that its reference does not annotate: their scores are NaN, all of them.

    Returns:
        case -> target -> scores, and the failures. A reference without a prediction is a failure, never left out
        silently.
    """
    check_tolerances(tolerances)
    lesion_rule = None if lesions is None else lesion_rule_named(lesions)
    scored: dict[str, dict[str, Scores]] = {}
    failures: list[dict[str, str]] = []
    for case, reference_path in sorted(references.items()):
        try:
            if case not in predictions:
                raise DataError("there is no prediction", where=f"case {case}", fix="run infer on it", code="E_MISSING")
            reference, grid = load_labels(reference_path, case, reference_values, sums=sums, colours=colours)
            predicted, found = load_labels(predictions[case], case, predicted_values, like=grid)
            if not grid.equals(found):
                raise DataError(
                    "prediction and reference lie on different grids",
                    where=f"case {case}: {predictions[case]}",
                    why=f"shapes {found.shape} and {grid.shape}, or other positions in space",
                    fix="predict on the reference's image",
                    code="E_GRID",
                )
            scored[case] = case_metrics(
                predicted,
                reference,
                {name: values for name, values in targets.items() if name not in (unscored or {}).get(case, ())},
                reference_targets=reference_targets,
                spacing=grid.spacing,
                rule=rule,
                tolerances=tolerances,
                lesion_rule=lesion_rule,
                ignore=(ignored or {}).get(case),
            )
        except CmtError as error:
            failures.append({"case": case} | error.as_dict())
            log.error("%s not scored\n%s", case, error.message())
    names = score_names(scored) or ["dice", *FACTS]
    for case, rows in scored.items():
        scored[case] = {name: rows.get(name) or dict.fromkeys(names, float("nan")) for name in targets}
    return scored, failures


def write_metrics(
    folder: Path,
    scored: Mapping[str, Mapping[str, Scores]],
    targets: Mapping[str, Sequence[int]],
    *,
    rule: EmptyRule,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    lesions: str | None = None,
    failures: Sequence[Mapping[str, str]],
    extra: Mapping[str, Any],
    pixels: bool = False,
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``metrics.csv`` into ``folder`` and return the former's content.

    ``rule``, ``tolerances`` and ``lesions`` are those that :func:`score_folder` was given; ``pixels`` tells whether all cases are
    2D images whose pixels have no size.
    """
    names = score_names(scored) or ["dice", *FACTS]
    known = {name: metric for name in names if (metric := metric_of(name)) is not None}
    unscored = {failure["case"] for failure in failures} - set(scored)
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "summary": summarise(scored, list(targets), failed=len(unscored)),
        "empty_rule": rule,
        "empty_rule_text": EMPTY_RULES[rule],
        "missed_text": missed_text(rule, lesions=lesions is not None),
        "tolerances_mm": list(tolerances),
        "lesion_rule": _lesion_rule_content(lesions),
        "metrics": {name: vars(of_pixels(metric) if pixels else metric) for name, metric in known.items()},
        **({"pixels": True} if pixels else {}),
        "targets": {name: list(values) for name, values in targets.items()},
        "cases": {case: {target: dict(row) for target, row in rows.items()} for case, rows in scored.items()},
        "failures": list(failures),
    } | dict(extra)
    write_json(folder / "metrics.json", metrics)
    write_table(folder, scored, names, str(extra.get("notice") or ""))
    return metrics


def write_table(
    folder: Path, scored: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str], notice: str
) -> None:
    """Write ``metrics.csv``: a row for each case and target, with the scores of these names, or empty cells."""
    table = io.StringIO()
    writer = csv.writer(table)
    said = [as_text(notice)] if notice else []
    writer.writerow(["case", "target", *names] + ["notice"] * len(said))
    for case, rows in scored.items():
        for target, row in rows.items():
            values = [row[name] for name in names] if is_scored(row) else [""] * len(names)
            writer.writerow([as_text(case), as_text(target), *values, *said])
    write_text(folder / "metrics.csv", table.getvalue())


def with_failures_of_inference(
    own: Sequence[dict[str, str]], failures: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Failures of inference before those of scoring; a case that has failed there is not named twice."""
    known = {failure["case"] for failure in failures}
    return [*failures, *(failure for failure in own if failure["case"] not in known)]


def _lesion_rule_content(lesions: str | None) -> dict[str, Any] | None:
    if lesions is None:
        return None
    rule: LesionRule = lesion_rule_named(lesions)
    return {"name": lesions, "dilation": rule.dilation, "min_voxels": rule.min_voxels}
