"""The number of steps of a run: from epochs, or from minutes and a probe of the machine."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from cmt_med.base.files import write_json
from cmt_med.config.schema import Train
from cmt_med.training.schedule import LONGER_MARGIN, REPLAN_MARGIN, StepPlan, affordable_steps

PROBE_STEPS = 20
PROBE_SECONDS = 60.0  # from the start of the run; slow steps are probed by fewer of them
PROBE_SHARE = 0.25  # of train.max_minutes: a short run is not used up by its probe
PROBE_SKIP = 3  # the first steps choose kernels and fill caches
REPLAN_EVERY = 20  # steps, or a fiftieth of a short plan: what a slow probe promised must not last
REPLAN_FROM = 0.15  # of the plan: the pace is steady by then
RECENT_STEPS = 100  # tell the pace
RECENT_PAUSES = 8  # validations and checkpoints that tell how long the next ones take

log = logging.getLogger(__name__)


class Pace:
    """Recent durations of steps, validations and checkpoints, each accounted on its own; part of a checkpoint.

    Attributes:
        seen: steps of the whole run.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.seen = int(saved.get("seen", 0))
        self.steps: deque[float] = deque(saved.get("steps", ()), maxlen=RECENT_STEPS)
        self.validations: deque[float] = deque(saved.get("validations", ()), maxlen=RECENT_PAUSES)
        self.checkpoints: deque[float] = deque(saved.get("checkpoints", ()), maxlen=RECENT_PAUSES)

    def as_dict(self) -> dict[str, Any]:
        """The record, for checkpoints."""
        lists = {name: list(getattr(self, name)) for name in ("steps", "validations", "checkpoints")}
        return {"seen": self.seen} | lists

    @property
    def mean_step(self) -> float | None:
        """Mean seconds from the end of a recent step to the end of the next, waiting for data included."""
        return sum(self.steps) / len(self.steps) if self.steps else None

    @property
    def step(self) -> float:
        """Seconds of a step to plan with: see :func:`usual`."""
        return usual(self.steps)

    @property
    def pause(self) -> float:
        """Seconds of a validation and the checkpoint after it, to plan with."""
        return usual(self.validations) + usual(self.checkpoints)


def usual(seconds: Sequence[float]) -> float:
    """The lower quartile, since other work on the machine only ever makes things slower; 0 of nothing.

    The mean would take a slow spell of the machine for the pace of all that is left, and a plan that is shortened on that
    account anneals the learning rate long before the time is over.
    """
    return sorted(seconds)[len(seconds) // 4] if seconds else 0.0


class Budget:
    """Makes the plan, and bends it when the machine turns out slower or faster than it was.

    With ``train.epochs`` the plan is known from the first step on, and ``train.max_minutes`` can only shorten it. With
    minutes alone it is made after a probe of the first steps, which an interrupted run goes on with where it stood.

    Args:
        train: bounds of the run.
        steps_per_epoch: optimizer steps in an epoch.
        seconds_before: time spent by earlier parts of this run.
        started: ``time.monotonic()`` at the start of the command.
        reserve: from the seconds of a validation to those kept for what comes after training.
        path: ``plan.json``; None on ranks that write nothing.
        plan: of an earlier part of this run; None if it has made none, or was finished and is given more.
        notes: what was changed for device and data, and why; kept in ``plan.json``.
        step: steps done by earlier parts of this run.
        pace: of an earlier part of this run.
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
        step: int = 0,
        pace: Pace | None = None,
        finished: bool = False,
    ) -> None:
        self.notes = list(notes)
        self.train, self.steps_per_epoch, self.path = train, steps_per_epoch, path
        self.seconds_before, self.started, self.reserve = seconds_before, started, reserve
        self.plan, self.pace = plan, pace or Pace()
        self._steps_here = 0
        self._last_end = time.monotonic()
        self.bound = "epochs" if train.max_minutes is None else "max_minutes"
        by_epochs = None if train.epochs is None else train.epochs * steps_per_epoch
        self._probing = train.max_minutes is not None and (plan is None or self.pace.seen < PROBE_SKIP + PROBE_STEPS)
        if plan is not None:
            self.bound = "epochs" if plan.total_steps == by_epochs else "max_minutes"
        elif by_epochs is not None:
            self._decide(by_epochs, "epochs")
        elif finished and train.max_minutes is not None:  # so many steps took so long: in more minutes, more of them
            self._decide(max(step + 1, int(step * train.max_minutes * 60.0 / seconds_before)), "max_minutes")

    def seconds(self) -> float:
        """Time spent on the run so far, earlier parts included."""
        return self.seconds_before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """The share of the schedule done before ``step``; during the probe, the first part of the warm-up."""
        return self.plan.progress(step) if self.plan is not None else min(1.0, (step + 1) / 1000)

    def is_over(self, step: int) -> bool:
        """Tell whether ``step`` has reached the planned number of steps."""
        return self.plan is not None and step >= self.plan.total_steps

    def seconds_left(self, step: int) -> float | None:
        """Estimate the seconds after ``step``, validations and checkpoints included; None while nothing is known."""
        if self.plan is None or self.pace.mean_step is None:
            return None
        steps = self.plan.total_steps - step
        every = self.train.validate_every * self.steps_per_epoch
        pauses = self.plan.total_steps // every - step // every
        return steps * self.pace.mean_step + pauses * self.pace.pause

    def _reserve(self) -> float:
        return self.reserve(usual(self.pace.validations))

    def skip_pause(self) -> None:
        """Leave out of the step time what just happened (a validation, a checkpoint)."""
        self._last_end = time.monotonic()

    def after_step(self, step: int, measure_validation: Callable[[], None]) -> None:
        """Note the end of a step; make the plan when the probe is complete, or fit it to the time left."""
        now = time.monotonic()
        self._steps_here += 1
        self.pace.seen += 1
        if self._steps_here > PROBE_SKIP:
            self.pace.steps.append(now - self._last_end)
        self._last_end = now
        if self._probing:
            self._probe(step, measure_validation)
        elif (
            self.train.max_minutes is not None
            and self.plan is not None
            and step % max(1, min(REPLAN_EVERY, self.plan.total_steps // 50)) == 0
            and self.pace.seen >= REPLAN_FROM * self.plan.total_steps
        ):
            self._fit_into_time(step)

    def _probe(self, step: int, measure_validation: Callable[[], None]) -> None:
        """End the probe when enough steps are seen, or too much time has gone."""
        assert self.train.max_minutes is not None  # by the caller
        whole = self.train.max_minutes * 60.0
        if self._agreed(self.seconds() + self._reserve() >= whole):
            log.warning(
                "train.max_minutes=%g is used up after %d steps: start, validation and report take most of it",
                self.train.max_minutes, step,
            )  # fmt: skip
            self._probing = False
            self._end(step)
            return
        late = self.seconds() > min(PROBE_SECONDS, PROBE_SHARE * whole)
        if self._agreed(bool(self.pace.steps) and (late or self.pace.seen >= PROBE_SKIP + PROBE_STEPS)):
            self._probing = False
            if not self.pace.validations:
                measure_validation()
            if self.plan is None:
                self._decide(step + self._affordable(), "max_minutes")
            else:
                self._fit_into_time(step)
            self.skip_pause()

    def _end(self, step: int) -> None:
        """Make ``step`` the last one."""
        if self.plan is None:
            self._decide(step, "max_minutes")
        elif step < self.plan.total_steps:
            self.plan.bend(step, step)
            self.bound = "max_minutes"
            self._write("max_minutes, replanned")

    def _affordable(self) -> int:
        assert self.train.max_minutes is not None  # by the callers
        left = self.train.max_minutes * 60.0 - self.seconds() - self._reserve()
        steps = affordable_steps(
            seconds_left=max(0.0, left),
            step_seconds=self.pace.step,
            validation_seconds=self.pace.pause,
            validate_every=self.train.validate_every * self.steps_per_epoch,
        )
        return int(idist.broadcast(steps)) if idist.get_world_size() > 1 else steps

    @staticmethod
    def _agreed(here: bool) -> bool:
        """The value of the first process: clocks differ, and what follows is done by all processes together."""
        return bool(idist.broadcast(int(here))) if idist.get_world_size() > 1 else here

    def _fit_into_time(self, step: int) -> None:
        assert self.plan is not None  # by the callers
        planned = self.plan.total_steps - step
        possible = self._most_steps(step + self._affordable()) - step
        too_long = planned > possible * REPLAN_MARGIN
        if too_long or possible > max(planned * LONGER_MARGIN, planned + REPLAN_EVERY):
            log.info(
                "at this pace, %g minutes are enough for %d steps, not the %d planned", self.train.max_minutes, step + possible,
                step + planned,
            )  # fmt: skip
            self.plan.bend(step, step + possible)
            all_epochs = self.train.epochs is not None and step + possible == self.train.epochs * self.steps_per_epoch
            self.bound = "epochs" if all_epochs else "max_minutes"
            self._write(f"{self.bound}, replanned")

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
            "step_seconds": self.pace.mean_step,
            "validation_seconds": usual(self.pace.validations),
            "reserve_seconds": self._reserve(),
            "max_minutes": self.train.max_minutes,
            "epochs": self.train.epochs,
            "changes": self.notes,
        }
        write_json(self.path, content)
