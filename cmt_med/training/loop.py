"""The training loop: an Ignite engine and its handlers, one concern each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum, Events
from torch import nn

from cmt_med.base.errors import DataError, Interrupted
from cmt_med.base.files import append_line
from cmt_med.compute.heartbeat import Heartbeat
from cmt_med.data.patches.loader import WorkerGoneError
from cmt_med.training.board import Board
from cmt_med.training.budget import Budget
from cmt_med.training.progress import OutsideShare, Progress
from cmt_med.training.schedule import late_share, learning_rate
from cmt_med.training.state import Run
from cmt_med.training.steps import batch_groups, training_step

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 3
"""Steps without a finite loss that a run forgives."""
CHECKPOINT_SECONDS = 300.0
"""Between two checkpoints, whatever the epochs take."""
MANY_EPOCHS = 10**7
"""For Ignite, which asks for a number: the budget ends the run."""


class TrainingEvents(EventEnum):
    """Beside Ignite's: its epochs begin anew when a run is resumed, ours are counted in steps."""

    EPOCH_ENDED = "epoch_ended"


class Loop:
    """The engine and its handlers, one concern each, called in the order in which they are listed."""

    def __init__(
        self,
        run: Run,
        budget: Budget,
        *,
        seed: int,
        stop_requested: Callable[[], bool],
        heartbeat: Heartbeat,
        banner: str,
    ) -> None:
        self.state, self.budget, self.stop_requested, self.heartbeat = run, budget, stop_requested, heartbeat
        self.setup, self.train = run.setup, run.train
        network = self.setup.network
        if idist.get_world_size() > 1:
            device = next(network.parameters()).device
            ids = [device.index] if device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(network, device_ids=ids)
        step = training_step(
            network,
            run.optimizer,
            self.setup.task.loss,
            rate_at=self._rate,
            average=run.average,
            seed=seed,
            clip=run.settings.clip,
            amp=self.train.amp,
            augment=self.setup.augment,
            compiled=self.train.compile,
            frozen=self.setup.frozen,
            hints=self.setup.task.hints,
            prepared=self.setup.task.prepared,
            late_at=self._late if run.settings.decoder_first > 0 else None,
        )
        self.banner = banner
        self.engine = Engine(step)
        self.share = OutsideShare()
        self.row: dict[str, Any] = {}
        self.engine.register_events(*TrainingEvents)
        handlers: dict[Any, tuple[Callable[..., None], ...]] = {
            Events.GET_BATCH_STARTED: (self.share.begin, lambda: heartbeat.at("waiting for data")),
            Events.GET_BATCH_COMPLETED: (lambda: heartbeat.at("in a step"),),
            Events.ITERATION_COMPLETED: (
                self._count, self._check_finite, self._spend, self._show, self._write_scalars, self._stop_if_asked,
                self._end_epoch, self._checkpoint_now_and_then,
            ),
            TrainingEvents.EPOCH_ENDED: (
                self._begin_row, self._validate_if_due, self._append_row, self._clear_sums, self._checkpoint_if_due,
            ),
        }  # fmt: skip
        for event, called in handlers.items():
            for handler in called:
                self.engine.add_event_handler(event, handler)
        self.progress = Progress(self.setup.task.monitor, enabled=run.main, banner=banner)
        self.last_checkpoint = time.monotonic()
        self.board: Board | None = None

    def run(self) -> None:
        """Train until the budget is spent; first, do what an interrupted run has left undone."""
        position = self.state.position
        done = self.budget.is_over(position.step) or bool(position.stopped_by)
        unclosed = position.step > 0 and self._ends_epoch(position.step) and position.closed != position.step
        if done and not unclosed:
            return
        if self.state.main:
            self.board = Board(self.state.folder / "tensorboard", step=position.step, notice=self.banner)
        if unclosed:
            self.engine.fire_event(TrainingEvents.EPOCH_ENDED)
        if not done and not self._lost_patience():
            self._run_engine()
        if self.board is not None:
            self.board.flush()

    def _run_engine(self) -> None:
        position = self.state.position
        stream = self.setup.batches(position.step * self.train.accumulate)
        self.engine.load_state_dict(
            {
                "iteration": position.step,
                "epoch_length": self.setup.steps_per_epoch,
                "max_epochs": MANY_EPOCHS,  # the budget ends the run
            }
        )
        with self.progress:
            try:
                self.engine.run(batch_groups(stream, self.train.accumulate))
            except RuntimeError as error:
                # A signal for the whole process group (a job that is cancelled, Ctrl-C) ends the data workers, too, and a
                # training that waits for their batch must save all the same.
                if isinstance(error, WorkerGoneError) and idist.get_world_size() == 1 and self.stop_requested():
                    self._leave()
                raise

    def _ends_epoch(self, step: int) -> bool:
        return step % self.setup.steps_per_epoch == 0 or self.budget.is_over(step)

    def _rate(self, step: int) -> float:
        settings = self.state.settings
        return learning_rate(self.budget.progress(step), peak=settings.lr, warmup=settings.warmup)

    def _late(self, step: int) -> float:
        """Factor of the encoder's rate: 0 while the decoder learns alone, then rising to 1."""
        settings = self.state.settings
        return late_share(self.budget.progress(step), first=settings.decoder_first, warmup=settings.warmup)

    # ---- after each step

    @property
    def _values(self) -> dict[str, float]:
        """The output of the last step."""
        values: dict[str, float] = self.engine.state.output
        return values

    def _count(self) -> None:
        position, values = self.state.position, self._values
        position.step = self.engine.state.iteration
        self.share.end(values["seconds"])
        if values["finite"]:
            position.loss_sum += values["loss"]
            position.loss_count += 1

    def _spend(self) -> None:
        self.budget.after_step(self.state.position.step, self._measure_validation)

    def _show(self) -> None:
        step, values, plan = self.state.position.step, self._values, self.budget.plan
        self.progress.step(
            step, plan.total_steps if plan else None, values["loss"] if values["finite"] else None, self.share.value,
            step_seconds=self.budget.pace.mean_step, seconds_left=self.budget.seconds_left(step),
        )  # fmt: skip

    def _write_scalars(self) -> None:
        if self.board is not None:
            for key in ("loss", "lr", "grad_norm"):
                self.board.scalar(f"train/{key}", self._values[key], self.state.position.step)

    def _stop_if_asked(self) -> None:
        """Leave if any rank was asked to stop; all ranks agree."""
        wanted = self.stop_requested()
        if bool(idist.all_reduce(int(wanted))) if idist.get_world_size() > 1 else wanted:
            self._leave()

    def _end_epoch(self) -> None:
        step = self.state.position.step
        if self._ends_epoch(step):
            self.engine.fire_event(TrainingEvents.EPOCH_ENDED)
            if self.budget.is_over(step) or self._lost_patience():
                self.engine.terminate()

    def _checkpoint_now_and_then(self) -> None:
        if time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS:
            self._checkpoint()

    def _leave(self) -> None:
        """Save and stop; what ends an epoch and was not done is done by the run that goes on."""
        self._checkpoint()
        if self.board is not None:
            self.board.flush()
        raise Interrupted(
            "training was asked to stop",
            where=f"after step {self.state.position.step}",
            why="a signal arrived",
            fix="the same command resumes it",
        )

    def _lost_patience(self) -> bool:
        position, patience = self.state.position, self.train.patience
        if patience is None or position.without_gain < patience:
            return False
        if not position.stopped_by:
            position.stopped_by = f"no gain in {patience} validations"
            log.info("stopping early: %s", position.stopped_by)
            self._checkpoint()
        return True

    # ---- at the end of an epoch

    def _begin_row(self) -> None:
        position = self.state.position
        self.row = {
            "step": position.step,
            "epoch": math.ceil(position.step / self.setup.steps_per_epoch),
            "loss": position.loss_sum / max(1, position.loss_count),
            "lr": self._rate(position.step - 1),
            "seconds": round(self.budget.seconds(), 1),
            "step_seconds": self.budget.pace.mean_step,
            "outside_share": round(self.share.value, 3),
        }

    def _validate_if_due(self) -> None:
        # The last average is scored on all held-out cases right after training, so only a choice needs it here.
        last = self.budget.is_over(self.state.position.step)
        wanted = self.train.select == "best" if last else self.row["epoch"] % self.train.validate_every == 0
        if self.setup.validate is None or not wanted:
            return
        scores = self._validate()
        self.state.note_scores(scores)
        self.row |= scores
        if self.board is not None:
            for key, value in scores.items():
                self.board.scalar(f"validation/{key}", value, self.state.position.step)

    def _append_row(self) -> None:
        self.heartbeat.at("writing the log")
        if self.state.main:
            row = {"notice": self.banner} | self.row if self.banner else self.row
            append_line(self.state.folder / "log.jsonl", row)
        self.progress.epoch(self.row)

    def _clear_sums(self) -> None:
        position = self.state.position
        position.loss_sum, position.loss_count, position.closed = 0.0, 0, position.step
        self.share.clear()

    def _checkpoint_if_due(self) -> None:
        if self.budget.is_over(self.state.position.step) or self.setup.task.monitor.name in self.row:
            self._checkpoint()
        self.budget.skip_pause()

    # ---- what handlers do

    def _validate(self) -> dict[str, float]:
        assert self.setup.validate is not None  # by the callers
        begun = time.monotonic()

        def stop() -> bool:  # asked before each batch of windows
            self.heartbeat.at("validating")
            return self.stop_requested()

        self.heartbeat.at("validating")
        with self.state.evaluated():
            self.setup.network.eval()
            scores = self.setup.validate(self.setup.network, stop)
        if scores is None:
            self._leave()
        assert scores is not None  # else we have left
        self.budget.pace.validations.append(time.monotonic() - begun)
        return scores

    def _measure_validation(self) -> None:
        if self.setup.validate is not None:
            self._validate()

    def _checkpoint(self) -> None:
        self.heartbeat.at("writing a checkpoint")
        begun = time.monotonic()
        self.state.save(self.budget.seconds(), self.budget.plan, self.budget.pace)
        self.last_checkpoint = time.monotonic()
        self.budget.pace.checkpoints.append(self.last_checkpoint - begun)
        self.budget.skip_pause()

    def _check_finite(self) -> None:
        """Count a step that was skipped because its loss was not finite; a few are forgiven."""
        if self._values["finite"]:
            return
        position = self.state.position
        cases = torch.cat([batch["case"] for batch in self.engine.state.batch])
        if idist.get_world_size() > 1:
            cases = torch.as_tensor(idist.all_gather(cases))
        names = ", ".join(sorted({self.setup.case_names[int(i)] for i in cases}))
        if position.skipped >= MAX_BAD_STEPS:
            raise DataError(
                f"the loss was not finite once more, after {MAX_BAD_STEPS} batches that were skipped",
                where=f"step {position.step}, batch of {names}",
                why="the learning rate is too high, or these cases have extreme values",
                fix="lower optimizer.lr, or look at the cases; the last finite state is in checkpoints/",
                code="E_NAN",
            )
        position.skipped += 1
        log.warning("step %d: the loss is not finite; skipped; cases: %s", position.step, names)
