"""The number of steps, and the learning rate at each: pure functions and one small record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

REPLAN_MARGIN = 1.03
"""A plan is shortened when it would take this much longer than the time left; before, noise would shorten it, too."""
LONGER_MARGIN = 1.08
"""It is made longer only when this many more steps fit: wasting some seconds is better than a restless schedule."""


def learning_rate(progress: float, *, peak: float, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of the run, then a half cosine to zero.

    Args:
        progress: share of the run done, 0 to 1.
        peak: the highest rate.
        warmup: share of the run over which it rises.
    """
    if progress < warmup:
        return peak * max(progress, 1e-3) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1e-9, 1.0 - warmup))))


def late_share(progress: float, *, first: float, warmup: float) -> float:
    """The factor of a rate that begins late: 0 over the first share of the run, then a linear rise over ``warmup`` of it."""
    return 0.0 if progress < first else min(1.0, (progress - first) / max(warmup, 1e-9))


@dataclass
class StepPlan:
    """The number of optimizer steps and the way through the schedule.

    If a bound in minutes allows fewer or more steps than planned, the rest of the schedule is run through faster or
    slower from there: ``anchor_step`` is where that last happened and ``anchor_progress`` how far the schedule was.
    """

    total_steps: int
    anchor_step: int = 0
    anchor_progress: float = 0.0

    def progress(self, step: int) -> float:
        """The share of the schedule done before ``step`` (0-based)."""
        left = self.total_steps - self.anchor_step
        if left <= 0:
            return 1.0
        return self.anchor_progress + (1.0 - self.anchor_progress) * (step - self.anchor_step) / left

    def bend(self, step: int, total_steps: int) -> None:
        """End after ``total_steps`` instead, bending the schedule from ``step`` on."""
        self.anchor_progress = self.progress(step)
        self.anchor_step = step
        self.total_steps = max(step, total_steps)

    def as_dict(self) -> dict[str, Any]:
        """The record, for ``plan.json`` and checkpoints."""
        return asdict(self)


def affordable_steps(
    *, seconds_left: float, step_seconds: float, validation_seconds: float, validate_every: int
) -> int:
    """Steps that fit into ``seconds_left`` with a validation after each ``validate_every`` of them; at least one."""
    per_step = step_seconds + validation_seconds / max(1, validate_every)
    return max(1, int(seconds_left / per_step))
