"""Figures as PNG bytes, transparent and in colours that can be read on light and dark pages."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmt_med.reports.calibration import Reliability
from cmt_med.reports.planes import PALETTE
from cmt_med.reports.text import visible

MAX_TARGETS = 24  # in one figure
_NAME = 26  # letters of a target's name in a figure
_COLOURS = tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE)
_INK = "#767676"  # contrast of more than 4 with white and with the dark page
_STYLE: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)

Cases = Mapping[str, Mapping[str, Mapping[str, Any]]]  # case -> target -> score -> value or None


def training_curves(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Loss and validation Dice over minutes, from the rows of ``log.jsonl``; None if there are none."""
    rows = [row for row in rows if row.get("loss") is not None]
    if not rows:
        return None
    with _drawing() as figure:
        figure.set_size_inches(8, 3)
        left, right = figure.subplots(1, 2)
        left.plot([row["seconds"] / 60 for row in rows], [row["loss"] for row in rows], color=_COLOURS[1])
        left.set(xlabel="minutes", ylabel="training loss")
        scored = [row for row in rows if row.get("dice") is not None]
        minutes = [row["seconds"] / 60 for row in scored]
        right.plot(minutes, [row["dice"] for row in scored], "o-", color=_COLOURS[2], ms=3)
        right.set(xlabel="minutes", ylabel="validation Dice")
        return _png(figure)


def distributions(cases: Cases, targets: Sequence[str], metrics: Mapping[str, str]) -> bytes | None:
    """Every case as a point, over a box of the quartiles: a row per target, a panel per metric.

    Args:
        cases: scores.
        targets: rows; the first ``MAX_TARGETS`` are drawn.
        metrics: name -> what its axis says.
    """
    targets = list(targets)[:MAX_TARGETS]
    if not cases or not targets or not metrics:
        return None
    with _drawing() as figure:
        figure.set_size_inches(2.2 + 2.6 * len(metrics), 1.0 + 0.55 * len(targets))
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (name, title) in zip(panels, metrics.items(), strict=True):
            _points_and_boxes(axes, [_values(cases, target, name) for target in targets])
            axes.set_xlabel(title)
            if name == "dice" or name.startswith("nsd_"):
                axes.set_xlim(-0.03, 1.03)
        panels[0].set_yticks(range(len(targets)), [visible(t, _NAME) for t in targets], parse_math=False)
        panels[0].set_ylim(len(targets) - 0.4, -0.6)
        return _png(figure)


def bland_altman(cases: Cases, targets: Sequence[str]) -> bytes | None:
    """Difference of the volumes (prediction minus reference, mL) over their mean: a panel per target.

    Lines: the mean difference, and 1.96 standard deviations around it (from three cases on).
    """

    def draw(axes: Axes, target: str, colour: str) -> None:
        pairs = np.array([(row[target]["reference_ml"], row[target]["predicted_ml"]) for row in cases.values()])
        differences = pairs[:, 1] - pairs[:, 0]
        axes.scatter(pairs.mean(axis=1), differences, s=14, alpha=0.75, color=colour)
        axes.axhline(0, color=_INK, lw=0.6)
        axes.axhline(differences.mean(), color=colour, lw=1.2)
        if len(differences) > 2:
            half = 1.96 * differences.std(ddof=1)
            for line in (differences.mean() - half, differences.mean() + half):
                axes.axhline(line, color=colour, lw=1, ls="--")
        axes.set(xlabel="mean volume (mL)", ylabel="prediction - reference (mL)")

    return _panels(targets, draw) if cases else None


def reliability(curves: Mapping[str, Reliability]) -> bytes | None:
    """Share of the voxels in the reference over their probability, with the diagonal: a panel per target."""

    def draw(axes: Axes, target: str, colour: str) -> None:
        curve = curves[target]
        filled = curve.voxels > 0
        axes.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls=":")
        axes.plot(curve.probability[filled], curve.observed[filled], "o-", color=colour, ms=4)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability", ylabel="share in the reference")

    return _panels(list(curves), draw) if curves else None


def _points_and_boxes(axes: Axes, columns: Sequence[Sequence[float]]) -> None:
    jitter = np.random.default_rng(0)
    for i, values in enumerate(columns):
        colour = _COLOURS[i % len(_COLOURS)]
        if not values:
            axes.text(0.5, i, "no value", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8)
            continue
        axes.scatter(values, i + jitter.uniform(-0.18, 0.18, len(values)), s=13, alpha=0.75, color=colour, zorder=3)
        low, middle, high = np.percentile(values, [25, 50, 75])
        axes.barh(i, high - low, left=low, height=0.56, color=colour, alpha=0.18)
        axes.plot([middle, middle], [i - 0.28, i + 0.28], color=colour, lw=1.6)
    axes.grid(axis="x", color=_INK, alpha=0.25, lw=0.5)


def _panels(targets: Sequence[str], draw: Callable[[Axes, str, str], None]) -> bytes | None:
    targets = list(targets)[:MAX_TARGETS]
    if not targets:
        return None
    columns = min(3, len(targets))
    rows = math.ceil(len(targets) / columns)
    with _drawing() as figure:
        figure.set_size_inches(3.1 * columns, 2.8 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for i, (axes, target) in enumerate(zip(panels, targets, strict=False)):
            draw(axes, target, _COLOURS[i % len(_COLOURS)])
            axes.set_title(visible(target, _NAME), fontsize=10, parse_math=False)
        for axes in panels[len(targets) :]:
            axes.set_axis_off()
        return _png(figure)


def _values(cases: Cases, target: str, metric: str) -> list[float]:
    found = (case[target].get(metric) for case in cases.values())
    return [float(value) for value in found if value is not None and np.isfinite(value)]


@contextmanager
def _drawing() -> Iterator[Figure]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that the font does not have
        yield Figure(layout="constrained")


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, transparent=True)
    return stream.getvalue()
