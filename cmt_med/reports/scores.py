"""Scores of a folder of predictions: ``metrics.json`` and ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_med.data.gate import load_labels
from cmt_med.errors import CmtError, DataError
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule, Overlap, case_overlaps, summarise
from cmt_med.files import write_json, write_text

log = logging.getLogger(__name__)


def score_folder(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    targets: Mapping[str, Sequence[int]],
    *,
    reference_targets: Mapping[str, Sequence[int]] | None = None,
    reference_values: Sequence[int] | None = None,
    rule: EmptyRule,
) -> tuple[dict[str, dict[str, Overlap]], list[dict[str, str]]]:
    """Score every reference against the prediction of its name.

    Args:
        predictions, references: case name -> label volume.
        targets: name -> label values that it consists of, in the predictions.
        reference_targets: the same in the references, where they number their labels differently.
        reference_values: label values that references may have; None for any.
        rule: what an empty reference means.

    Returns:
        case -> target -> overlap, and the failures. A reference without a prediction is a failure, never left out
        silently.
    """
    scored: dict[str, dict[str, Overlap]] = {}
    failures: list[dict[str, str]] = []
    for case, reference_path in sorted(references.items()):
        try:
            if case not in predictions:
                raise DataError("there is no prediction", where=f"case {case}", fix="run infer on it", code="E_MISSING")
            reference, grid = load_labels(reference_path, case, reference_values)
            predicted, found = load_labels(predictions[case], case)
            if not grid.equals(found):
                raise DataError(
                    "prediction and reference lie on different grids",
                    where=f"case {case}: {predictions[case]}",
                    why=f"shapes {found.shape} and {grid.shape}, or other positions in space",
                    fix="predict on the reference's image",
                    code="E_GRID",
                )
            voxel_ml = grid.spacing[0] * grid.spacing[1] * grid.spacing[2] / 1000.0
            scored[case] = case_overlaps(
                predicted, reference, targets, reference_targets=reference_targets, voxel_ml=voxel_ml, rule=rule
            )
        except CmtError as error:
            failures.append({"case": case} | error.as_dict())
            log.error("%s not scored\n%s", case, error.message())
    return scored, failures


def write_metrics(
    folder: Path,
    scored: Mapping[str, Mapping[str, Overlap]],
    targets: Mapping[str, Sequence[int]],
    *,
    rule: EmptyRule,
    failures: Sequence[Mapping[str, str]],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``metrics.csv`` into ``folder`` and return the former's content."""
    metrics: dict[str, Any] = {
        "schema_version": 1,
        "summary": summarise(scored, list(targets)),
        "empty_rule": rule,
        "empty_rule_text": EMPTY_RULES[rule],
        "targets": {name: list(values) for name, values in targets.items()},
        "cases": {
            case: {target: vars(overlap) for target, overlap in overlaps.items()} for case, overlaps in scored.items()
        },
        "failures": list(failures),
    } | dict(extra)
    write_json(folder / "metrics.json", metrics)
    table = io.StringIO()
    writer = csv.writer(table)
    notice = [str(extra["notice"])] if extra.get("notice") else []
    columns = ["case", "target", "dice", "reference_voxels", "predicted_voxels", "reference_ml", "predicted_ml"]
    writer.writerow(columns + ["notice"] * len(notice))
    for case, overlaps in scored.items():
        for target, o in overlaps.items():
            writer.writerow(
                [case, target, o.dice, o.reference_voxels, o.predicted_voxels, o.reference_ml, o.predicted_ml, *notice]
            )
    write_text(folder / "metrics.csv", table.getvalue())
    return metrics
