"""What a person sees while training: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 30.0
log = logging.getLogger(__name__)


class Progress:
    """Rate, loss and time left on standard error."""

    def __init__(self, *, enabled: bool, banner: str = "") -> None:
        self.banner, self.enabled = banner, enabled
        self.bar: Bar | None = None
        if enabled and sys.stderr.isatty():
            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self.task = self.bar.add_task(f"{banner} training".strip(), total=None, note="")
        self.last_line = self.last_step_time = time.monotonic()
        self.rate = 0.0
        self.loss: float | None = None

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, step: int, total: int | None, loss: float | None) -> None:
        """Note one optimizer step; ``loss`` is None where it was not finite."""
        now = time.monotonic()
        seconds, self.last_step_time = now - self.last_step_time, now
        self.rate = seconds if self.rate == 0.0 else 0.95 * self.rate + 0.05 * seconds
        if loss is not None:
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        shown = "not finite" if self.loss is None else f"{self.loss:.4f}"
        note = f"loss {shown}, {self.rate:.2f} s/step"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, total=total, note=note)
        elif self.enabled and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            left = f", {(total - step) * self.rate / 60:.1f} min left" if total is not None else ""
            log.info("%sstep %d%s: %s%s", f"{self.banner} " if self.banner else "", step,
                     f"/{total}" if total is not None else "", note, left)  # fmt: skip

    def epoch(self, row: dict[str, Any]) -> None:
        """Note the end of an epoch, if it was validated."""
        if "dice" in row:
            log.info("epoch %d, step %d: loss %.4f, validation Dice %.4f, %.1f min",
                     row["epoch"], row["step"], row["loss"], row["dice"], row["seconds"] / 60)  # fmt: skip
