"""Progress for people: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from cmt_med.tasks.task import Metric

LINE_SECONDS = 30.0
log = logging.getLogger(__name__)


class OutsideShare:
    """The share of the time of an epoch's steps outside forward, loss and backward: data, augmentation, optimizer.

    Attributes:
        value: from 0 to 1; 0 before the first step.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """An epoch begins."""
        self._inside = self._whole = 0.0
        self._begun: float | None = None

    def begin(self) -> None:
        """A batch is asked for."""
        self._begun = time.perf_counter()

    def end(self, inside: float) -> None:
        """A step is done, of which forward, loss and backward took ``inside`` seconds."""
        if self._begun is not None:
            self._inside += inside
            self._whole += time.perf_counter() - self._begun
            self._begun = None

    @property
    def value(self) -> float:
        return 1.0 - self._inside / self._whole if self._whole else 0.0


class Progress:
    """Rate, loss and time left on standard error."""

    def __init__(self, monitor: Metric, *, enabled: bool, banner: str = "") -> None:
        self.monitor, self.banner, self.enabled = monitor, banner, enabled
        self.bar: Bar | None = None
        if enabled and sys.stderr.isatty():
            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self.task = self.bar.add_task(f"{banner} training".strip(), total=None, note="")
        self.last_line = time.monotonic()
        self.loss: float | None = None

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(
        self, step: int, total: int | None, loss: float | None, outside: float, *,
        step_seconds: float | None, seconds_left: float | None,
    ) -> None:  # fmt: skip
        """Note one optimizer step.

        Args:
            step, total: done, and planned if that is known.
            loss: None where it was not finite.
            outside: see :class:`OutsideShare`.
            step_seconds: of a recent step alone, without validations and checkpoints; None before one was timed.
            seconds_left: of training, with validations and checkpoints; None while that is not known.
        """
        now = time.monotonic()
        if loss is not None:
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        shown = "not finite" if self.loss is None else f"{self.loss:.4f}"
        rate = "" if step_seconds is None else f", {step_seconds:.2f} s/step"
        left = "" if seconds_left is None else f", {seconds_left / 60:.1f} min left"
        note = f"loss {shown}{rate}, {100 * outside:.0f}% of it outside the network{left}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, total=total, note=note)
        elif self.enabled and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            log.info("%sstep %d%s: %s", f"{self.banner} " if self.banner else "", step,
                     f"/{total}" if total is not None else "", note)  # fmt: skip

    def epoch(self, row: dict[str, Any]) -> None:
        """Note the end of an epoch, if it was validated."""
        if self.monitor.name in row:
            log.info("epoch %d, step %d: loss %.4f, validation %s %.4f, %.1f min, %.0f%% of the steps outside the network",
                     row["epoch"], row["step"], row["loss"], self.monitor.title, row[self.monitor.name], row["seconds"] / 60,
                     100 * row["outside_share"])  # fmt: skip
