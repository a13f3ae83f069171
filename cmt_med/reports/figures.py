"""Figures as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_COLOURS = ("#e6550d", "#3182bd", "#31a354", "#756bb1", "#d4b106", "#c51b8a")


def training_curves(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Loss and validation Dice over minutes, from the rows of ``log.jsonl``; None if there are none."""
    rows = [row for row in rows if row.get("loss") is not None]
    if not rows:
        return None
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    minutes = [row["seconds"] / 60 for row in rows]
    left.plot(minutes, [row["loss"] for row in rows], color=_COLOURS[1])
    left.set(xlabel="minutes", ylabel="training loss")
    scored = [row for row in rows if row.get("dice") is not None]
    right.plot([row["seconds"] / 60 for row in scored], [row["dice"] for row in scored], "o-", color=_COLOURS[2], ms=3)
    right.set(xlabel="minutes", ylabel="validation Dice")
    return _png(figure)


def score_points(cases: Mapping[str, Mapping[str, Any]], targets: Sequence[str]) -> bytes:
    """The Dice of every case as a point, a column per target."""
    figure = Figure(figsize=(1.6 + 1.4 * len(targets), 3), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for i, target in enumerate(targets):
        values = [d for case in cases.values() if (d := case[target]["dice"]) is not None and np.isfinite(d)]
        axes.scatter(i + jitter.uniform(-0.15, 0.15, len(values)), values, s=12, alpha=0.7, color=_COLOURS[i % 6])
        if values:
            axes.hlines(float(np.mean(values)), i - 0.3, i + 0.3, color="black")
    axes.set_xticks(range(len(targets)), [_plain(target) for target in targets])
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
    return _png(figure)


def overlay(
    image: NDArray[np.float32],
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    spacing: Sequence[float],
    values: Sequence[int],
) -> bytes:
    """Three planes through the largest error, prediction (dashed) and reference (solid) as outlines."""
    wrong = predicted != reference
    shown = wrong if wrong.any() else reference > 0
    centre = [
        int(np.argmax(shown.sum(axis=tuple(a for a in range(3) if a != axis)))) if shown.any() else n // 2
        for axis, n in enumerate(shown.shape)
    ]
    low, high = np.percentile(image, [1, 99.5])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, axes in enumerate(figure.subplots(1, 3)):
        rest = [a for a in range(3) if a != axis]
        planes = [np.take(a, centre[axis], axis).T for a in (image, predicted, reference)]
        axes.imshow(
            planes[0], cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6),
            aspect=spacing[rest[1]] / spacing[rest[0]],
        )  # fmt: skip
        for i, value in enumerate(values):
            for plane, style in ((planes[1], "dashed"), (planes[2], "solid")):
                mask = plane == value
                if mask.any() and not mask.all():
                    axes.contour(mask, [0.5], colors=_COLOURS[i % 6], linestyles=style, linewidths=1.2)
        axes.set_axis_off()
    return _png(figure)


def _plain(text: str) -> str:
    return text.replace("$", "\\$")  # matplotlib would read it as a formula


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()
