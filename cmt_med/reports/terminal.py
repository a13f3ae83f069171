"""The summary that commands print of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cmt_med.base.text import visible
from cmt_med.evaluation.metrics import LESION_COUNTS

_COUNTS = {"n_empty": "empty", "n_missed": "missed", "n_false_positive": "false positive", "n_failed": "not scored"}


def print_summary(metrics: Mapping[str, Any]) -> None:
    """The table of means on standard output: Dice, then the other scores that a report usually names."""
    if metrics.get("notice"):
        print(visible(metrics["notice"]))
    shown = ["dice", "hd95", *(n for n in metrics["metrics"] if n.startswith("nsd_")), "lesion_dice", "lesion_hd95"]
    counts = "  ".join(_COUNTS.values())
    print(f"{'target':20s} {'score':22s} {'mean':>8s}  {'95% interval':19s} {'n':>4s}  {counts}")
    for name in shown:
        if name not in metrics["metrics"]:
            continue
        legend = metrics["metrics"][name]
        title = f"{legend['title']} {legend['unit']}".strip()
        for target, rows in metrics["summary"].items():
            row = rows["metrics"][name]
            counts = "  ".join(f"{row.get(key, ''):>{len(head)}}" for key, head in _COUNTS.items())
            interval = (
                "–" if math.isnan(row["low"]) else f"{row['low']:.4f} – {row['high']:.4f}"
            )  # of one case there is none
            print(
                f"{visible(target, 20):20s} {title[:22]:22s} {row['mean']:8.4f}  {interval:19s} {row['n']:4d}  {counts}"
            )
    for target, rows in metrics["summary"].items():
        if "lesions" in rows:
            total, detected, missed, false = (rows["lesions"][name] for name in LESION_COUNTS)
            print(
                f"{visible(target, 80)}: {total} lesions, {detected} detected, {missed} missed, {false} false positives"
            )
    used = [row.get(key, 0) for row in metrics["summary"].values() for key in ("n_empty", "n_missed")]
    if any(used):  # else the rule has not been used
        print(f"rule {metrics['empty_rule']}: {metrics['empty_rule_text']}; {metrics['missed_text']}")
