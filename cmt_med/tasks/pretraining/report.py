"""The report on hidden blocks: errors by case, and pictures of what was hidden and what the network made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmt_med.base.text import counted
from cmt_med.evaluation.metrics import PRETRAINING_METRICS
from cmt_med.tasks.sections import Assessment, Section, Table, number_text

TARGET = "hidden blocks"
SHOWN = 6
"""Cases that are shown: the worst and the best half."""


def assess(records: Mapping[str, Mapping[str, Any]], groups: Mapping[str, str], *, failed: int) -> Assessment:
    """Score reconstructions.

    Args:
        records: case -> ``error`` and ``variance`` in its hidden blocks, and ``hidden_voxels``.
        groups: case -> patient.
        failed: cases that could not be scored.
    """
    rows = {
        name: {
            "explained": 1.0 - record["error"] / max(record["variance"], 1e-12),
            "masked_error": float(record["error"]), "hidden_voxels": float(record["hidden_voxels"]),
        } for name, record in records.items()
    }  # fmt: skip
    error, variance = (float(np.mean([record[key] for record in records.values()])) for key in ("error", "variance"))
    explained = 1.0 - error / max(variance, 1e-12)
    metrics: dict[str, Any] = {
        "schema_version": 2,
        "task": "pretraining",
        "summary": {"explained": explained, "masked_error": error, "n": len(rows), "n_failed": failed},
        "patients": len(set(groups.values())),
        "empty_rule": "none",
        "empty_rule_text": "none",
        "metrics": {name: vars(metric) for name, metric in PRETRAINING_METRICS.items()},
        "targets": {TARGET: [1]},
        "cases": {name: {TARGET: row} for name, row in rows.items()},
    }
    ranked = sorted(rows, key=lambda name: rows[name]["explained"])
    chosen = ranked if len(ranked) <= SHOWN else [*ranked[: SHOWN // 2], *ranked[-SHOWN // 2 :]]
    said = {name: f"{rows[name]['explained']:.3f} of the variance in hidden blocks explained" for name in chosen}
    table = Table(("score", "value"), [
        ("variance explained in hidden blocks", number_text(explained)), ("squared error there", number_text(error)),
    ])  # fmt: skip
    text = (
        f"{counted(len(rows), 'case')}, {failed} not scored; of each, blocks of some patches were hidden, the same each "
        "time. What a network makes of hidden blocks says little about what it is good for: fine-tune it (network.pretrained)."
    )
    sections = (
        Section("Scores", text, (table,)),
        Section(
            "Images", "The worst first, then the best. Left the image, in the middle what the network was shown, right what it "
            "made of the hidden blocks.", pictures=said,
        ),
    )  # fmt: skip
    lines = (
        f"variance explained in hidden blocks  {number_text(explained)}",
        f"{counted(len(rows), 'case')}; {failed} not scored",
    )
    return Assessment(metrics, lines, sections)
