"""The training loop: an Ignite engine with its handlers, bounded by epochs, minutes or both."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from cmt_med.config import Optimizer, Train
from cmt_med.errors import DataError, Interrupted
from cmt_med.files import append_line, read_lines, write_json, write_text
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from cmt_med.training.losses import Loss
from cmt_med.training.progress import Progress
from cmt_med.training.schedule import SLOWDOWN_MARGIN, StepPlan, affordable_steps, learning_rate
from cmt_med.training.steps import AveragedWeights, batch_groups, decay_groups, training_step

PROBE_STEPS = 8
PROBE_SKIP = 3  # the first steps choose kernels and fill caches
MAX_BAD_STEPS = 3
CHECKPOINT_SECONDS = 300.0
REPLAN_EVERY = 20  # steps
MANY_EPOCHS = 10**7

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What :func:`fit` is given.

    Attributes:
        network: on its device, not yet wrapped for several processes.
        loss: from output and labels to a number.
        batches: (first batch) -> endless stream of this rank's batches from there on.
        validate: network -> scores with the key ``"dice"``; None without validation.
        steps_per_epoch: optimizer steps in an epoch.
        case_names: of the training cases, for naming the culprits of a loss that is not finite.
        fingerprint: hash of config and split; a checkpoint of another one is refused.
    """

    network: nn.Module
    loss: Loss
    batches: Callable[[int], Iterator[dict[str, Tensor]]]
    validate: Callable[[nn.Module], dict[str, float]] | None
    steps_per_epoch: int
    case_names: list[str]
    fingerprint: str


@dataclass
class Outcome:
    """What training came to: the weights chosen, and how they were reached."""

    weights: dict[str, Tensor]
    steps: int
    epochs: float
    seconds: float
    best: dict[str, Any] = field(default_factory=dict)
    stopped_by: str = "epochs"


@dataclass
class _Run:
    """What changes while training, besides network, optimizer and average; all of it is in a checkpoint."""

    step: int = 0
    seconds_before: float = 0.0
    plan: StepPlan | None = None
    best: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    bad_steps: int = 0
    stopped_by: str = ""
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def fit(
    parts: Parts,
    train: Train,
    optimizer_settings: Optimizer,
    *,
    seed: int,
    folder: Path,
    started: float,
    reserve: Callable[[float], float] = lambda validation_seconds: 0.0,
    stop_requested: Callable[[], bool] = lambda: False,
    banner: str = "",
) -> Outcome:
    """Train, or go on with the run in ``folder``.

    Args:
        parts: see :class:`Parts`.
        train, optimizer_settings: sections of the experiment.
        seed: of everything random.
        folder: run folder; gets ``checkpoints/``, ``log.jsonl``, ``plan.json`` and ``tensorboard/``.
        started: ``time.monotonic()`` at the start of the command, from which ``max_minutes`` counts.
        reserve: from the seconds of a validation while training to those kept for what comes after training, which
            counts against ``max_minutes``.
        stop_requested: asked after each step; True saves a checkpoint and raises ``Interrupted``.
        banner: printed with the progress, for phantom data.

    Raises:
        DataError: E_NAN after three steps in a row without a finite loss; E_CHECKPOINT if the folder's checkpoints
            belong to another experiment or are damaged.
    """
    loop = _Loop(parts, train, optimizer_settings, seed=seed, folder=folder, started=started,
                 reserve=reserve, stop_requested=stop_requested, banner=banner)  # fmt: skip
    return loop.run()


class _Loop:
    """Holds what the handlers share; every method is one handler or one decision."""

    def __init__(
        self,
        parts: Parts,
        train: Train,
        settings: Optimizer,
        *,
        seed: int,
        folder: Path,
        started: float,
        reserve: Callable[[float], float],
        stop_requested: Callable[[], bool],
        banner: str,
    ) -> None:
        self.parts, self.train, self.settings, self.folder = parts, train, settings, folder
        self.started, self.reserve, self.stop_requested = started, reserve, stop_requested
        self.main = idist.get_rank() == 0
        self.device = next(parts.network.parameters()).device
        self.optimizer = torch.optim.AdamW(
            decay_groups(parts.network, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.99), fused=True
        )
        self.average = AveragedWeights(parts.network, train.ema)
        self.state = _Run()
        self._resume()
        network = parts.network
        if idist.get_world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(parts.network, device_ids=ids)
        self.engine = Engine(
            training_step(
                network, self.optimizer, parts.loss, rate_at=self._rate, average=self.average, seed=seed,
                clip=settings.clip, amp=train.amp,
            )
        )  # fmt: skip
        self.progress = Progress(enabled=self.main, banner=banner)
        self.probe: list[float] = []
        self.validation_seconds = 0.0
        self.last_checkpoint = time.monotonic()
        self.recent: list[float] = []
        self.first_step = self.state.step
        self.last_end = time.monotonic()
        self.epoch_losses: list[float] = []
        self.board: Any = None

    # ---- what happens when

    def run(self) -> Outcome:
        on = self.engine.add_event_handler
        on(Events.ITERATION_COMPLETED, self._after_step)
        on(Events.EPOCH_COMPLETED, self._after_epoch)
        if self.state.plan is None and self.train.epochs is not None and self.train.max_minutes is None:
            self.state.plan = StepPlan(self.train.epochs * self.parts.steps_per_epoch)
            self._write_plan("epochs")
        if self.main:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.state.step)
        finished = self.state.plan is not None and self.state.step >= self.state.plan.total_steps
        if not finished and not self.state.stopped_by:
            stream = self.parts.batches(self.state.step * self.train.accumulate)
            self.engine.load_state_dict(
                {
                    "iteration": self.state.step,
                    "epoch_length": self.parts.steps_per_epoch,
                    "max_epochs": MANY_EPOCHS,  # the plan ends the run
                }
            )
            with self.progress:
                self.engine.run(batch_groups(stream, self.train.accumulate))
        if self.board is not None:
            self.board.close()
        return self._outcome()

    def _after_step(self, engine: Engine) -> None:
        self.state.step = engine.state.iteration
        values: dict[str, float] = engine.state.output
        self._check_finite(values, engine)
        now = time.monotonic()
        elapsed, self.last_end = now - self.last_end, now  # from end to end: waiting for data counts
        if self.state.step > self.first_step + PROBE_SKIP:
            self.recent = [*self.recent[-49:], elapsed]
        if self.state.plan is None:
            self._probe_step(elapsed)
        elif self.train.max_minutes is not None and self.state.step % REPLAN_EVERY == 0 and self.recent:
            self._fit_into_time()
        self.progress.step(self.state.step, self.state.plan.total_steps if self.state.plan else None, values["loss"])
        if self.board is not None:
            for key in ("loss", "lr", "grad_norm"):
                self.board.add_scalar(f"train/{key}", values[key], self.state.step)
        self.epoch_losses.append(values["loss"])
        if self.stop_together():
            self._checkpoint()
            raise Interrupted(
                "training was asked to stop",
                where=f"after step {self.state.step}",
                why="a signal arrived",
                fix="the same command resumes it",
            )
        if self.state.plan is not None and self.state.step >= self.state.plan.total_steps:
            self._end_of_epoch()
            engine.terminate()
        elif now - self.last_checkpoint > CHECKPOINT_SECONDS:
            self._checkpoint()

    def _after_epoch(self, engine: Engine) -> None:
        if self.state.plan is None or self.state.step < self.state.plan.total_steps:
            self._end_of_epoch()
            if self.train.patience is not None and self.state.without_gain >= self.train.patience:
                self.state.stopped_by = f"no gain in {self.train.patience} validations"
                log.info("stopping early: %s", self.state.stopped_by)
                engine.terminate()

    def _end_of_epoch(self) -> None:
        epoch = math.ceil(self.state.step / self.parts.steps_per_epoch)
        losses = self.epoch_losses
        row: dict[str, Any] = {
            "step": self.state.step,
            "epoch": epoch,
            "loss": sum(losses) / max(1, len(losses)),
            "lr": self._rate(self.state.step - 1),
            "seconds": round(self._seconds(), 1),
            "step_seconds": sorted(self.recent)[len(self.recent) // 2] if self.recent else None,
        }
        self.epoch_losses = []
        done = self.state.plan is not None and self.state.step >= self.state.plan.total_steps
        last_is_scored_later = done and self.train.select == "last"
        if self.parts.validate is not None and epoch % self.train.validate_every == 0 and not last_is_scored_later:
            row |= self._validate()
        if self.main:
            append_line(self.folder / "log.jsonl", row)
            self.progress.epoch(row)
        if not done or self.train.select == "last":
            due = time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS or "dice" in row or done
        else:
            due = True
        if due:
            self._checkpoint()
        self.last_end = time.monotonic()

    # ---- decisions

    def _rate(self, step: int) -> float:
        settings = self.settings
        progress = self.state.plan.progress(step) if self.state.plan is not None else self._probe_progress(step)
        return learning_rate(progress, peak=settings.lr, warmup=settings.warmup)

    def _probe_progress(self, step: int) -> float:
        return self.settings.warmup * min(1.0, (step + 1) / 100)  # the plan is not made yet: the warm-up has begun

    def _seconds(self) -> float:
        return self.state.seconds_before + time.monotonic() - self.started

    def _probe_step(self, elapsed: float) -> None:
        self.probe.append(elapsed)
        if len(self.probe) < PROBE_SKIP + PROBE_STEPS:
            return
        assert self.train.max_minutes is not None  # plans by epochs alone are made before the first step
        if self.parts.validate is not None and self.validation_seconds == 0.0:
            self._validate(probe=True)
        step_seconds = idist.all_reduce(sum(self.probe[PROBE_SKIP:]) / PROBE_STEPS) / idist.get_world_size()
        affordable = self.state.step + affordable_steps(
            seconds_left=self.train.max_minutes * 60.0 - self._seconds() - self.reserve(self.validation_seconds),
            step_seconds=float(step_seconds),
            validation_seconds=self.validation_seconds,
            validate_every=self.train.validate_every * self.parts.steps_per_epoch,
        )
        affordable = int(idist.broadcast(affordable))
        by_epochs = self.train.epochs * self.parts.steps_per_epoch if self.train.epochs is not None else affordable
        self.state.plan = StepPlan(min(affordable, by_epochs))
        self._write_plan("max_minutes" if affordable <= by_epochs else "epochs", float(step_seconds))

    def _fit_into_time(self) -> None:
        plan = self.state.plan
        assert plan is not None  # by the caller
        assert self.train.max_minutes is not None  # by the caller
        left = self.train.max_minutes * 60.0 - self._seconds() - self.reserve(self.validation_seconds)
        per_step = sum(self.recent) / len(self.recent)
        steps = affordable_steps(
            seconds_left=max(0.0, left),
            step_seconds=per_step,
            validation_seconds=self.validation_seconds,
            validate_every=self.train.validate_every * self.parts.steps_per_epoch,
        )
        end = int(idist.broadcast(self.state.step + steps))
        if (plan.total_steps - self.state.step) * 1.0 > steps * SLOWDOWN_MARGIN and end < plan.total_steps:
            if self.main:
                log.info("the machine is slower than planned: %d instead of %d steps", end, plan.total_steps)
            plan.shorten(self.state.step, end)
            self._write_plan("max_minutes, shortened", per_step)

    def stop_together(self) -> bool:
        """Whether any rank was asked to stop; all ranks agree."""
        wanted = self.stop_requested()
        if idist.get_world_size() == 1:
            return wanted
        return bool(idist.all_reduce(int(wanted)))

    def _check_finite(self, values: dict[str, float], engine: Engine) -> None:
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self.state.bad_steps = 0
            return
        self.state.bad_steps += 1
        names = sorted({self.parts.case_names[int(i)] for batch in engine.state.batch for i in batch["case"]})
        log.warning("step %d: the loss is not finite; skipped; cases: %s", self.state.step, ", ".join(names))
        if self.state.bad_steps >= MAX_BAD_STEPS:
            raise DataError(
                f"the loss was not finite in {MAX_BAD_STEPS} steps in a row",
                where=f"step {self.state.step}, last batch: {', '.join(names)}",
                why="the learning rate is too high, or these cases have extreme values",
                fix="lower optimizer.lr, or look at the cases; the last finite state is in checkpoints/",
                code="E_NAN",
            )

    # ---- validation, checkpoints, plan

    def _validate(self, *, probe: bool = False) -> dict[str, Any]:
        assert self.parts.validate is not None  # by the callers
        begun = time.monotonic()
        with self.average.swapped_into(self.parts.network) if self.train.ema else contextlib.nullcontext():
            self.parts.network.eval()
            scores = self.parts.validate(self.parts.network)
        self.validation_seconds = time.monotonic() - begun
        if probe:
            return {}
        if scores["dice"] > self.state.best.get("dice", -1.0):
            self.state.best = scores | {"step": self.state.step}
            self.state.without_gain = 0
            if self.train.select == "best":
                self.state.best_weights = {name: t.clone() for name, t in self._weights().items()}
        else:
            self.state.without_gain += 1
        if self.board is not None:
            for key, value in scores.items():
                self.board.add_scalar(f"validation/{key}", value, self.state.step)
        return scores

    def _weights(self) -> dict[str, Tensor]:
        return self.average.weights if self.train.ema else self.parts.network.state_dict()

    def _checkpoint(self) -> None:
        self.last_checkpoint = time.monotonic()
        if not self.main:
            return
        state = self.state
        save_checkpoint(
            self.folder / "checkpoints",
            state.step,
            {
                "fingerprint": self.parts.fingerprint,
                "step": state.step,
                "seconds": self._seconds(),
                "plan": state.plan.as_dict() if state.plan is not None else None,
                "best": state.best,
                "without_gain": state.without_gain,
                "stopped_by": state.stopped_by,
                "best_weights": state.best_weights,
                "network": self.parts.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.weights,
                "average_updates": self.average.updates,
            },
        )

    def _resume(self) -> None:
        saved = load_newest(self.folder / "checkpoints")
        if saved is None:
            return
        if saved["fingerprint"] != self.parts.fingerprint:
            raise DataError(
                "the run folder belongs to another experiment",
                where=str(self.folder),
                why="its checkpoint was made with another config or other cases",
                fix="use another --output, or --fresh to start over",
                code="E_CHECKPOINT",
            )
        self.parts.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.weights = {name: t.to(self.device) for name, t in saved["average"].items()}
        self.average.updates = saved["average_updates"]
        self.state = _Run(
            step=saved["step"],
            seconds_before=saved["seconds"],
            plan=StepPlan(**saved["plan"]) if saved["plan"] is not None else None,
            best=saved["best"],
            without_gain=saved["without_gain"],
            stopped_by=saved["stopped_by"],
            best_weights=saved["best_weights"],
        )
        if self.main:  # rows of steps that will be made again
            rows = [row for row in read_lines(self.folder / "log.jsonl") if row.get("step", 0) <= self.state.step]
            write_text(self.folder / "log.jsonl", "")
            for row in rows:
                append_line(self.folder / "log.jsonl", row)
            log.info("resuming after step %d", self.state.step)

    def _write_plan(self, bound: str, step_seconds: float | None = None) -> None:
        assert self.state.plan is not None  # by the callers
        plan = self.state.plan
        if self.main:
            log.info(
                "plan: %d steps (%.1f epochs), bound by %s",
                plan.total_steps, plan.total_steps / self.parts.steps_per_epoch, bound,
            )  # fmt: skip
            write_json(
                self.folder / "plan.json",
                plan.as_dict()
                | {
                    "steps_per_epoch": self.parts.steps_per_epoch,
                    "bound": bound,
                    "step_seconds": step_seconds,
                    "validation_seconds": self.validation_seconds,
                    "reserve_seconds": self.reserve(self.validation_seconds),
                    "max_minutes": self.train.max_minutes,
                    "epochs": self.train.epochs,
                },
            )

    def _outcome(self) -> Outcome:
        weights = self._weights()
        if self.train.select == "best" and self.state.best_weights:
            weights = self.state.best_weights
        stopped_by = self.state.stopped_by or ("max_minutes" if self.train.max_minutes is not None else "epochs")
        return Outcome(
            weights=weights,
            steps=self.state.step,
            epochs=self.state.step / self.parts.steps_per_epoch,
            seconds=self._seconds(),
            best=self.state.best,
            stopped_by=stopped_by,
        )
