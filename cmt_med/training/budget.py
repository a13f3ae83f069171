"""How many steps a run gets: from epochs, or from minutes and a probe of the machine."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from cmt_med.config import Train
from cmt_med.files import write_json
from cmt_med.training.schedule import LONGER_MARGIN, REPLAN_MARGIN, StepPlan, affordable_steps

PROBE_STEPS = 20
PROBE_SECONDS = 60.0  # from the start of the command; slow steps are probed by fewer of them
PROBE_SKIP = 3  # the first steps choose kernels and fill caches
REPLAN_EVERY = 20  # steps, or a fiftieth of a short plan: what a slow probe promised must not last
REPLAN_FROM = 0.15  # of the plan: the pace is steady by then
RECENT_STEPS = 100  # tell the pace

log = logging.getLogger(__name__)


class Budget:
    """Makes the plan, and bends it when the machine turns out slower or faster than it was.

    Args:
        train: bounds of the run.
        steps_per_epoch: optimizer steps in an epoch.
        seconds_before: time spent by earlier parts of this run.
        started: ``time.monotonic()`` at the start of the command.
        reserve: from the seconds of a validation to those kept for what comes after training.
        path: ``plan.json``; None on ranks that write nothing.
        plan: of an earlier part of this run.
        notes: what was changed for device and data, and why; kept in ``plan.json``.
    """

    def __init__(
        self,
        train: Train,
        *,
        steps_per_epoch: int,
        seconds_before: float,
        started: float,
        reserve: Callable[[float], float],
        path: Path | None,
        plan: StepPlan | None,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = list(notes)
        self.train, self.steps_per_epoch, self.path = train, steps_per_epoch, path
        self.seconds_before, self.started, self.reserve = seconds_before, started, reserve
        self.plan = plan
        self.validation_seconds = 0.0
        self._steps_seen = 0
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._last_end = time.monotonic()
        self.bound = "epochs" if train.max_minutes is None else "max_minutes"
        steps = None if train.epochs is None else train.epochs * steps_per_epoch
        if plan is not None:
            self.bound = "epochs" if plan.total_steps == steps else "max_minutes"
        elif steps is not None and (train.max_minutes is None or steps <= PROBE_SKIP + PROBE_STEPS):
            self._decide(steps, "epochs")

    def seconds(self) -> float:
        """Time spent on the run so far, earlier parts included."""
        return self.seconds_before + time.monotonic() - self.started

    def step_seconds(self) -> float | None:
        """Mean time from the end of a recent step to the end of the next, waiting for data included."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def progress(self, step: int) -> float:
        """The share of the schedule done before ``step``; during the probe, the first part of the warm-up."""
        return self.plan.progress(step) if self.plan is not None else min(1.0, (step + 1) / 1000)

    def is_over(self, step: int) -> bool:
        """Whether ``step`` steps are all there is to do."""
        return self.plan is not None and step >= self.plan.total_steps

    def skip_pause(self) -> None:
        """Leave out of the step time what just happened (a validation, a checkpoint)."""
        self._last_end = time.monotonic()

    def after_step(self, step: int, measure_validation: Callable[[], None]) -> None:
        """Note the end of a step; make the plan when the probe is complete, or fit it to the time left."""
        now = time.monotonic()
        self._steps_seen += 1
        if self._steps_seen > PROBE_SKIP:
            self._recent.append(now - self._last_end)
        self._last_end = now
        if self.plan is None:
            enough = self._steps_seen >= PROBE_SKIP + PROBE_STEPS
            late = self._steps_seen > PROBE_SKIP and self.seconds() - self.seconds_before > PROBE_SECONDS
            if enough or late:
                measure_validation()
                self._plan_minutes(step)
                self.skip_pause()
        elif self.train.max_minutes is not None and step % max(1, min(REPLAN_EVERY, self.plan.total_steps // 50)) == 0:
            self._fit_into_time(step)

    def _affordable(self, step_seconds: float) -> int:
        assert self.train.max_minutes is not None  # by the callers
        left = self.train.max_minutes * 60.0 - self.seconds() - self.reserve(self.validation_seconds)
        steps = affordable_steps(
            seconds_left=max(0.0, left),
            step_seconds=step_seconds,
            validation_seconds=self.validation_seconds,
            validate_every=self.train.validate_every * self.steps_per_epoch,
        )
        return int(idist.broadcast(steps)) if idist.get_world_size() > 1 else steps

    def _pace(self) -> float:
        """Seconds of a step to plan with: the lower quartile, since other work only ever makes a step longer.

        The mean would take a slow spell of the machine for the pace of all that is left, and a plan that is shortened on
        that account anneals the learning rate long before the time is over.
        """
        return sorted(self._recent)[len(self._recent) // 4]

    def _plan_minutes(self, step: int) -> None:
        by_time = step + self._affordable(self._pace())
        steps = self._most_steps(by_time)
        self._decide(steps, "max_minutes" if steps == by_time else "epochs")

    def _fit_into_time(self, step: int) -> None:
        assert self.plan is not None  # by the caller
        if self._steps_seen < REPLAN_FROM * self.plan.total_steps:
            return
        planned = self.plan.total_steps - step
        possible = self._most_steps(step + self._affordable(self._pace())) - step
        too_long = planned > possible * REPLAN_MARGIN
        if too_long or possible > max(planned * LONGER_MARGIN, planned + REPLAN_EVERY):
            word = "slower" if too_long else "faster"
            log.info("the machine is %s than planned: %d instead of %d steps", word, step + possible, step + planned)
            self.plan.bend(step, step + possible)
            self.bound = "max_minutes"
            self._write("max_minutes, replanned")

    def _most_steps(self, by_time: int) -> int:
        """The steps of the run that both bounds allow."""
        return by_time if self.train.epochs is None else min(by_time, self.train.epochs * self.steps_per_epoch)

    def _decide(self, total_steps: int, bound: str) -> None:
        self.plan, self.bound = StepPlan(total_steps), bound
        log.info("plan: %d steps (%.1f epochs), bound by %s", total_steps, total_steps / self.steps_per_epoch, bound)
        self._write(bound)

    def _write(self, bound: str) -> None:
        if self.path is None or self.plan is None:
            return
        content: dict[str, Any] = self.plan.as_dict() | {
            "steps_per_epoch": self.steps_per_epoch,
            "bound": bound,
            "step_seconds": self.step_seconds(),
            "validation_seconds": self.validation_seconds,
            "reserve_seconds": self.reserve(self.validation_seconds),
            "max_minutes": self.train.max_minutes,
            "epochs": self.train.epochs,
            "changes": self.notes,
        }
        write_json(self.path, content)
