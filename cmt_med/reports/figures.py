"""Figures as PNG bytes, transparent: dark on a light page, which a dark page inverts; and the numbers that they draw."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cmt_med.base.text import visible
from cmt_med.evaluation.summary import is_scored
from cmt_med.reports.calibration import Reliability
from cmt_med.reports.planes import PALETTE
from cmt_med.tasks.sections import Chart

MAX_TARGETS = 24  # in one figure
_NAME = 26  # letters of a target's name in a figure
_COLOURS = tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE)
_INK = "#444444"  # contrast of more than 9 with white, and inverted with the dark page
_STYLE: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)

Cases = Mapping[str, Mapping[str, Mapping[str, Any]]]  # case -> target -> score -> value or None


def curve_points(rows: Sequence[Mapping[str, Any]], score: str) -> dict[str, NDArray[np.float64]]:
    """Minutes and values (2, N) of ``score`` in the rows of ``log.jsonl``, for each training by its name.

    Rows with a number under ``"fold"`` are of several trainings; else the name is empty.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("loss") is not None and row.get(score) is not None:
            name = f"fold {row['fold']}" if "fold" in row else ""
            found.setdefault(name, []).append((row["seconds"] / 60, row[score]))
    return {name: np.array(points, dtype=float).T for name, points in found.items()}


def training_curves(rows: Sequence[Mapping[str, Any]], score: str = "dice", title: str = "Dice") -> bytes | None:
    """Loss and a validation score over minutes, from the rows of ``log.jsonl``; None if there are none."""
    losses, scores = curve_points(rows, "loss"), curve_points(rows, score)
    if not losses:
        return None
    several = len(losses) > 1
    colours = {name: _COLOURS[i % len(_COLOURS) if several else 1] for i, name in enumerate(losses)}
    with _drawing() as figure:
        figure.set_size_inches(8, 3)
        left, right = figure.subplots(1, 2)
        for name, points in losses.items():
            left.plot(*points, color=colours[name], lw=1.0 if several else 1.5, label=name)
        for name, points in scores.items():
            right.plot(*points, "o-", color=colours[name], ms=3)
        left.set(xlabel="minutes", ylabel="training loss")
        right.set(xlabel="minutes", ylabel=f"validation {title}")
        if several:
            left.legend(fontsize=8, frameon=False)
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
            _points_and_boxes(axes, [drawn_scores(cases, target, name) for target in targets])
            axes.set_xlabel(title)
            if name == "dice" or name.startswith("nsd_"):
                axes.set_xlim(-0.03, 1.03)
        panels[0].set_yticks(range(len(targets)), [visible(t, _NAME) for t in targets], parse_math=False)
        panels[0].set_ylim(len(targets) - 0.4, -0.6)
        return _png(figure)


@dataclass(frozen=True)
class Agreement:
    """Volumes of one target, a point per case (Bland and Altman 1986).

    Attributes:
        means, differences: (N,) mL; a difference is prediction minus reference.
        bias: mean difference.
        limits: 1.96 standard deviations below and above it; None below three cases.
    """

    means: NDArray[np.float64]
    differences: NDArray[np.float64]
    bias: float
    limits: tuple[float, float] | None


def agreement(cases: Cases, target: str) -> Agreement:
    """The numbers of the Bland-Altman plot of one target, of the cases that annotate it; without any, the bias is NaN."""
    rows = [row[target] for row in cases.values() if is_scored(row[target])]
    pairs = np.array([(row["reference_ml"], row["predicted_ml"]) for row in rows]).reshape(-1, 2)
    differences = pairs[:, 1] - pairs[:, 0]
    bias = float(differences.mean()) if rows else float("nan")
    limits = None
    if len(differences) > 2:
        half = 1.96 * float(differences.std(ddof=1))
        limits = (bias - half, bias + half)
    return Agreement(pairs.mean(axis=1), differences, bias, limits)


def bland_altman(cases: Cases, targets: Sequence[str], unit: str = "mL") -> bytes | None:
    """Difference of the volumes (prediction minus reference) over their mean: a panel per target.

    Lines: the mean difference, and 1.96 standard deviations around it (from three cases on).
    """

    def draw(axes: Axes, target: str, colour: str) -> None:
        found = agreement(cases, target)
        axes.scatter(found.means, found.differences, s=14, alpha=0.75, color=colour)
        axes.axhline(0, color=_INK, lw=0.6)
        axes.axhline(found.bias, color=colour, lw=1.2)
        for line in found.limits or ():
            axes.axhline(line, color=colour, lw=1, ls="--")
        axes.set(xlabel=f"mean volume ({unit})", ylabel=f"prediction - reference ({unit})")

    return _panels(targets, draw) if cases else None


def chart(content: Chart) -> bytes:
    """Lines between 0 and 1."""
    with _drawing() as figure:
        figure.set_size_inches(4.4, 4)
        axes = figure.subplots()
        if content.diagonal:
            axes.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls=":")
        for i, (name, points) in enumerate(content.lines.items()):
            axes.plot(*points, color=_COLOURS[i % len(_COLOURS)], lw=1.4, marker="o", ms=2, label=visible(name, _NAME))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel=content.across, ylabel=content.up)
        if len(content.lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        return _png(figure)


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


def drawn_scores(cases: Cases, target: str, metric: str) -> list[float]:
    """The points of one row of the distributions: a score of every case that has it."""
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
