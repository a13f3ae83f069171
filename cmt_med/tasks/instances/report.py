"""The report on numbered objects: scores of images and of all objects together, with intervals over patients, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cmt_med.base.text import counted
from cmt_med.evaluation.instances import THRESHOLDS, bootstrap, coco_ap, detections, mean_of, object_scores, pooled
from cmt_med.evaluation.metrics import INSTANCE_METRICS
from cmt_med.tasks.sections import Assessment, Chart, Section, Table, interval_text, number_text

TARGET = "object"
"""The one target of the rows in ``metrics.json``."""
WORST, BEST = 9, 3
"""Images that are shown, by their PQ."""
_EMPTY = "an image without objects in which none is found scores 1, with one of the two 0"
_POOLED = {"pq": "PQ", "f1": "F1 at IoU 0.5", "precision": "precision at IoU 0.5", "recall": "recall at IoU 0.5"}

Row = Mapping[str, float]


def assess(records: Mapping[str, Mapping[str, Any]], groups: Mapping[str, str], *, failed: int) -> Assessment:
    """Score objects.

    Args:
        records: case -> ``overlaps`` of its objects with the reference's, and ``probabilities`` of the former.
        groups: case -> patient.
        failed: cases that could not be scored.
    """
    rows = {name: object_scores(record["overlaps"]) for name, record in records.items()}
    patients = [groups[name] for name in rows]
    scored = list(rows.values())
    images = {name: _with_interval(scored, patients, partial(mean_of, name=name)) for name in INSTANCE_METRICS}
    together = {name: _with_interval(scored, patients, partial(_of_all, name=name)) for name in _POOLED}
    ranked = coco_ap([r["overlaps"] for r in records.values()], [r["probabilities"] for r in records.values()])
    totals = pooled(scored)
    metrics: dict[str, Any] = {
        "schema_version": 2,
        "task": "instances",
        "summary": {
            "images": images, "all_objects": together | {"ap_coco": ranked}, "matched": totals.tp, "invented": totals.fp,
            "missed": totals.fn, "n": len(rows), "n_failed": failed,
        },
        "patients": len(set(patients)),
        "f1_by_iou": {f"{t:.2f}": sum((detections(r["overlaps"], t) for r in records.values()), NOTHING).f1 for t in THRESHOLDS},
        "empty_rule": "none",
        "empty_rule_text": _EMPTY,
        "metrics": {name: vars(metric) for name, metric in INSTANCE_METRICS.items()},
        "targets": {TARGET: [1]},
        "cases": {name: {TARGET: row} for name, row in rows.items()},
    }  # fmt: skip
    lines = [f"{'score':36s} {'value':>8s}  95% interval"]
    lines += [_line(f"{INSTANCE_METRICS[name].title}, mean of images", row) for name, row in images.items()]
    lines += [_line(f"{title}, all objects", together[name]) for name, title in _POOLED.items()]
    lines.append(f"{'AP of COCO, all objects':36s} {number_text(ranked):>8s}")
    lines.append(f"{counted(len(rows), 'case')}, {_counts(metrics)}; {failed} not scored")
    return Assessment(metrics, tuple(lines), _sections(metrics, rows))


NOTHING = pooled([])


def _of_all(rows: Sequence[Row], name: str) -> float:
    found = pooled(rows)
    if name in ("pq", "f1"):
        return found.pq if name == "pq" else found.f1
    count = found.tp + (found.fp if name == "precision" else found.fn)
    return found.tp / count if count else math.nan


def _with_interval(rows: Sequence[Row], groups: Sequence[str], score: Any) -> dict[str, float]:
    low, high = bootstrap(rows, groups, score)
    return {"value": score(rows), "low": low, "high": high}


def _counts(metrics: Mapping[str, Any]) -> str:
    summary = metrics["summary"]
    return (
        f"{counted(summary['matched'], 'object')} matched, {summary['missed']} missed, {summary['invented']} invented"
    )


def _sections(metrics: Mapping[str, Any], rows: Mapping[str, Row]) -> tuple[Section, ...]:
    summary = metrics["summary"]
    text = (
        f"{counted(summary['n'], 'case')}, {_counts(metrics)}; {summary['n_failed']} not scored. A match has an intersection "
        "over union (IoU) of more than 0.5 where no other threshold is named. Intervals are 95% bootstrap percentiles over "
        "patients. PQ is SQ × RQ; AP of the Data Science Bowl is the mean over IoU 0.50, 0.55, ..., 0.95 of TP / (TP + FP + FN) "
        "in an image; AP of COCO ranks the objects of all images by their probability. Of images, " + _EMPTY + "."
    )
    head = ("score", "value", "95% interval")
    images = Table(head, [
        (f"{INSTANCE_METRICS[name].title}, mean of images", number_text(row["value"]), interval_text(row))
        for name, row in summary["images"].items()
    ])  # fmt: skip
    together = Table(head, [
        *((f"{title}, all objects", number_text(row["value"]), interval_text(row))
          for row, title in ((summary["all_objects"][name], title) for name, title in _POOLED.items())),
        ("AP of COCO, all objects", number_text(summary["all_objects"]["ap_coco"]), "–"),
    ])  # fmt: skip
    curve = Chart(
        "F1 of all objects by IoU", "IoU that a match needs more than", "F1",
        {"F1": ([*map(float, metrics["f1_by_iou"])], [*metrics["f1_by_iou"].values()])}, diagonal=False,
    )  # fmt: skip
    ranked = sorted(rows, key=lambda name: rows[name]["pq"])
    shown = ranked if len(ranked) <= WORST + BEST else [*ranked[:WORST], *ranked[-BEST:]]
    said = {
        name: f"PQ {rows[name]['pq']:.3f}; {rows[name]['reference_objects']:.0f} objects in the reference, "
        f"{rows[name]['predicted_objects']:.0f} found, {rows[name]['matched_objects']:.0f} matched"
        for name in shown
    }
    return (
        Section("Scores", text, (images, together)),
        Section("Matches by IoU", charts=(curve,)),
        Section(
            "Images", "The worst first, then the best. Outlines of the reference are solid and light, those of the prediction "
            "dashed; neighbours differ in colour.", pictures=said,
        ),
    )  # fmt: skip


def _line(title: str, row: Mapping[str, float]) -> str:
    return f"{title[:36]:36s} {number_text(row['value']):>8s}  {interval_text(row)}"
