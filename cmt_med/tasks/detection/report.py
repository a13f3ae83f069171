"""The report on boxes: average precision, FROC and sensitivities, with intervals over patients, and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.text import counted
from cmt_med.evaluation.boxes import (
    COCO,
    FALSE_POSITIVES,
    LOOSE,
    THRESHOLDS,
    Matches,
    Ranking,
    average_precision,
    froc,
    froc_curve,
    intervals,
    ranking,
)
from cmt_med.evaluation.metrics import DETECTION_METRICS
from cmt_med.tasks.sections import Assessment, Chart, Section, Table, interval_text, number_text

WORST, BEST = 9, 3
"""Images that are shown, by what was missed and invented."""
SHOWN = tuple(THRESHOLDS.index(value) for value in (*LOOSE, 0.5))
CURVE = 8.0
"""False positives per image at the right end of the FROC curves."""
_RATES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def assess(
    records: Mapping[str, Mapping[str, Any]], groups: Mapping[str, str], targets: Mapping[str, list[int]], *, failed: int
) -> Assessment:  # fmt: skip
    """Score boxes.

    Args:
        records: case -> ``matches`` by class.
        groups: case -> patient.
        targets: classes, and their values.
        failed: cases that could not be scored.
    """
    by_class = {name: ranking([[record["matches"][name]] for record in records.values()]) for name in targets}
    every = ranking([list(record["matches"].values()) for record in records.values()])
    patients = [groups[name] for name in records]

    coco = [THRESHOLDS.index(value) for value in COCO]

    def precisions(weights: NDArray[np.float64] | None) -> list[float]:
        table = np.array([
            [average_precision(ranked, t, weights) for t in range(len(THRESHOLDS))] for ranked in by_class.values()
        ])  # fmt: skip
        known = table[~np.isnan(table[:, 0])]  # a class has a reference, or none
        if not len(known):
            return [math.nan] * (len(SHOWN) + 1)
        return [*known[:, list(SHOWN)].mean(axis=0).tolist(), float(known[:, coco].mean())]

    def sensitivities(weights: NDArray[np.float64] | None) -> list[float]:
        found = [froc(every, t, weights) for t in SHOWN]
        return [value for row in found for value in (*row, float(np.mean(row)))]

    names = [f"ap{round(100 * THRESHOLDS[t]):02d}" for t in SHOWN] + ["map"]
    precision = dict(zip(names, _with_intervals(patients, precisions), strict=True))
    rates = iter(_with_intervals(patients, sensitivities))
    sensitivity = {f"{THRESHOLDS[t]:g}": {rate: next(rates) for rate in (*_RATES, "mean")} for t in SHOWN}
    classes = {name: _class_row(ranked, coco) for name, ranked in by_class.items()}
    rows = {name: {n: case_row(m) for n, m in record["matches"].items()} for name, record in records.items()}
    metrics: dict[str, Any] = {
        "schema_version": 2,
        "task": "detection",
        "summary": {
            "all_classes": precision, "sensitivity": sensitivity, "classes": classes,
            "references": int(every.references.sum()), "found": len(every.scores), "n": len(records), "n_failed": failed,
        },
        "false_positives_per_image": list(FALSE_POSITIVES),
        "patients": len(set(patients)),
        "empty_rule": "none",
        "empty_rule_text": "a class without a reference in any image has no AP",
        "metrics": {name: vars(metric) for name, metric in DETECTION_METRICS.items()},
        "targets": dict(targets),
        "cases": rows,
    }  # fmt: skip
    lines = [f"{'score':36s} {'value':>8s}  95% interval"]
    lines += [_line(_title(name), row) for name, row in precision.items()]
    lines += [_line(f"mean sensitivity of FROC, IoU {t}", rows["mean"]) for t, rows in sensitivity.items()]
    lines += [
        _line(f"AP50 of {name}", {"value": row["ap50"], "low": math.nan, "high": math.nan})
        for name, row in classes.items()
    ]
    lines.append(f"{counted(len(records), 'case')}, {_counts(metrics)}; {failed} not scored")
    return Assessment(metrics, tuple(lines), _sections(metrics, every, records))


def _with_intervals(
    patients: Sequence[str], scores: Callable[[NDArray[np.float64] | None], list[float]]
) -> list[dict[str, float]]:
    values = scores(None)
    bounds = intervals(patients, scores, len(values))
    return [{"value": value, "low": low, "high": high} for value, (low, high) in zip(values, bounds, strict=True)]


def case_row(matches: Matches) -> dict[str, float]:
    """What is known of one image and class: numbers, and the largest F1 over all bounds on the scores at IoU 0.5."""
    at = THRESHOLDS.index(0.5)
    counts = ~matches.ignored[at]
    hits = np.cumsum(matches.hits[at] & counts)
    every = np.cumsum(counts)
    f1 = 2 * hits / np.maximum(every + matches.references, 1)
    nothing = 1.0 if not matches.references and not counts.any() else 0.0
    return {
        "best_f1": float(f1.max(initial=nothing)), "reference_boxes": float(matches.references),
        "found_boxes": float(counts.sum()), "matched_boxes": float(hits[-1]) if len(hits) else 0.0,
    }  # fmt: skip


def _class_row(ranked: Ranking, coco: Sequence[int]) -> dict[str, float]:
    row = {f"ap{round(100 * THRESHOLDS[t]):02d}": average_precision(ranked, t) for t in SHOWN}
    row["map"] = float(np.mean([average_precision(ranked, t) for t in coco]))
    return row | {"references": int(ranked.references.sum()), "found": len(ranked.scores)}


def _title(name: str) -> str:
    return "mAP of COCO, IoU 0.50 to 0.95" if name == "map" else f"AP at IoU {int(name[2:]) / 100:g}, mean of classes"


def _counts(metrics: Mapping[str, Any]) -> str:
    summary = metrics["summary"]
    found = f"{summary['found']} boxes scored (at most 100 of an image and class)"
    return f"{summary['references']} objects in the references, {found}"


def _sections(
    metrics: Mapping[str, Any], every: Ranking, records: Mapping[str, Mapping[str, Any]]
) -> tuple[Section, ...]:
    summary = metrics["summary"]
    text = (
        f"{counted(summary['n'], 'case')}, {_counts(metrics)}; {summary['n_failed']} not scored. A match has the class of the "
        "reference and at least the intersection over union (IoU) that is named; each reference has one match at most. AP is the "
        "mean precision at 101 recalls, of at most 100 boxes of each image and class. Intervals are 95% bootstrap percentiles "
        f"over {counted(metrics['patients'], 'patient')}."
    )
    head = ("score", "value", "95% interval")
    precision = Table(head, [
        (_title(name), number_text(row["value"]), interval_text(row)) for name, row in summary["all_classes"].items()
    ])  # fmt: skip
    classes = Table(("class", "objects", "AP at 0.1", "AP at 0.3", "AP at 0.5", "mAP of COCO"), [
        (name, row["references"], *(number_text(row[key]) for key in ("ap10", "ap30", "ap50", "map")))
        for name, row in summary["classes"].items()
    ])  # fmt: skip
    rates = Table(("false positives per image", *(f"sensitivity, IoU {t}" for t in summary["sensitivity"])), [
        (rate, *(f"{number_text(rows[rate]['value'])} ({interval_text(rows[rate])})" for rows in summary["sensitivity"].values()))
        for rate in (*_RATES, "mean")
    ])  # fmt: skip
    lines = {}
    for t in SHOWN:
        across, up = froc_curve(every, t)
        shown = across <= CURVE
        reached = float(up[shown][-1]) if shown.any() else 0.0
        lines[f"IoU {THRESHOLDS[t]:g}"] = ([*(across[shown] / CURVE), 1.0], [*up[shown], reached])
    curve = Chart("FROC, all classes", f"false positives per image, of {CURVE:g}", "sensitivity", lines, diagonal=False)
    return (
        Section("Scores", text, (precision, classes)),
        Section("Sensitivity by false positives", "All classes together.", (rates,), (curve,)),
        Section(
            "Images", "The worst first, then the best. Boxes of references are solid and light, those found dashed; of these, as "
            "many as there are references, with the largest scores. A volume is shown where most is wrong.",
            pictures=_shown(records),
        ),
    )  # fmt: skip


def _shown(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    rows = {name: [case_row(matches) for matches in record["matches"].values()] for name, record in records.items()}
    means = {
        name: float(
            np.mean([row["best_f1"] for row in several if row["reference_boxes"] or row["found_boxes"]] or [1.0])
        )
        for name, several in rows.items()
    }
    ranked = sorted(rows, key=lambda name: means[name])
    chosen = ranked if len(ranked) <= WORST + BEST else [*ranked[:WORST], *ranked[-BEST:]]
    return {
        name: f"largest F1 {means[name]:.3f}; {sum(row['reference_boxes'] for row in rows[name]):.0f} objects in the reference, "
        f"{sum(row['matched_boxes'] for row in rows[name]):.0f} found"
        for name in chosen
    }


def _line(title: str, row: Mapping[str, float]) -> str:
    return f"{title[:36]:36s} {number_text(row['value']):>8s}  {interval_text(row)}"
