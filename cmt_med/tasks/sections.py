"""The content of a task's report, as data: reports draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes from 0 to 1.

    Attributes:
        title, across, up: of the chart and its axes.
        lines: name -> values across and up.
        diagonal: whether the line of chance, or of perfect calibration, is drawn.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    diagonal: bool = True


@dataclass(frozen=True)
class Matrix:
    """Counts by true class (rows) and decision (columns), of the same names."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name: heading.
        text: a paragraph.
        tables, charts, matrices: what is shown.
        pictures: cases whose images are shown, with what is said about each.
    """

    name: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    """The scores of a task's answers.

    Attributes:
        metrics: content of ``metrics.json``, with ``summary``, ``targets`` and ``cases``.
        lines: said on standard output.
        sections: of the report.
    """

    metrics: dict[str, Any]
    lines: tuple[str, ...]
    sections: tuple[Section, ...]


def interval_text(row: Mapping[str, float]) -> str:
    """The interval of a score, ``low`` and ``high``, for people."""
    return "–" if math.isnan(row["low"]) else f"{row['low']:.4f} – {row['high']:.4f}"


def number_text(value: float) -> str:
    """A score for people."""
    return "–" if math.isnan(value) else f"{value:.4f}"
