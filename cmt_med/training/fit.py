"""The training loop: an Ignite engine with its handlers, bounded by epochs, minutes or both."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from cmt_med.config import Optimizer, Train
from cmt_med.errors import DataError, Interrupted
from cmt_med.files import append_line
from cmt_med.training.budget import Budget
from cmt_med.training.progress import Progress
from cmt_med.training.schedule import learning_rate
from cmt_med.training.state import Parts, Run
from cmt_med.training.steps import batch_groups, training_step

MAX_BAD_STEPS = 3
CHECKPOINT_SECONDS = 300.0
MANY_EPOCHS = 10**7

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What training came to: the weights chosen, and how they were reached."""

    weights: dict[str, Tensor]
    steps: int
    epochs: float
    seconds: float
    stopped_by: str


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
        stop_requested: asked after each step; True saves a checkpoint and raises.
        banner: printed with the progress, for phantom data.

    Raises:
        Interrupted: after ``stop_requested``.
        DataError: E_NAN after three steps in a row without a finite loss; E_CHECKPOINT if the folder's checkpoints
            belong to another experiment or are damaged.
    """
    run = Run(parts, train, optimizer_settings, folder)
    plan = run.resume()
    budget = Budget(
        train,
        steps_per_epoch=parts.steps_per_epoch,
        seconds_before=run.position.seconds,
        started=started,
        reserve=reserve,
        path=folder / "plan.json" if run.main else None,
        plan=plan,
        notes=parts.notes,
    )
    if not budget.is_over(run.position.step) and not run.position.stopped_by:
        _Loop(run, budget, seed=seed, stop_requested=stop_requested, banner=banner).run()
    return Outcome(
        weights=run.chosen_weights(),
        steps=run.position.step,
        epochs=run.position.step / parts.steps_per_epoch,
        seconds=budget.seconds(),
        stopped_by=run.position.stopped_by or budget.bound,
    )


class _Loop:
    """The engine and its handlers."""

    def __init__(self, run: Run, budget: Budget, *, seed: int, stop_requested: Callable[[], bool], banner: str) -> None:
        self.state, self.budget, self.stop_requested = run, budget, stop_requested
        self.parts, self.train = run.parts, run.train
        network = self.parts.network
        if idist.get_world_size() > 1:
            device = next(network.parameters()).device
            ids = [device.index] if device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(network, device_ids=ids)
        step = training_step(
            network,
            run.optimizer,
            self.parts.loss,
            rate_at=self._rate,
            average=run.average,
            seed=seed,
            clip=run.settings.clip,
            amp=self.train.amp,
        )
        self.banner = banner
        self.engine = Engine(step)
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        self.progress = Progress(enabled=run.main, banner=banner)
        self.last_checkpoint = time.monotonic()
        self.losses: list[float] = []
        self.bad_steps = 0
        self.board: Any = None

    def run(self) -> None:
        """Train until the budget is spent."""
        if self.state.main:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.board = SummaryWriter(str(self.state.folder / "tensorboard"), purge_step=self.state.position.step)
            if self.banner:
                self.board.add_text("notice", self.banner)
        stream = self.parts.batches(self.state.position.step * self.train.accumulate)
        self.engine.load_state_dict(
            {
                "iteration": self.state.position.step,
                "epoch_length": self.parts.steps_per_epoch,
                "max_epochs": MANY_EPOCHS,  # the budget ends the run
            }
        )
        try:
            with self.progress:
                self.engine.run(batch_groups(stream, self.train.accumulate))
        finally:
            if self.board is not None:
                self.board.close()

    def _rate(self, step: int) -> float:
        settings = self.state.settings
        return learning_rate(self.budget.progress(step), peak=settings.lr, warmup=settings.warmup)

    def _after_step(self, engine: Engine) -> None:
        position, values = self.state.position, engine.state.output
        position.step = engine.state.iteration
        finite = self._check_finite(values, engine)
        self.budget.after_step(position.step, self._measure_validation)
        plan = self.budget.plan
        self.progress.step(position.step, plan.total_steps if plan else None, values["loss"] if finite else None)
        if finite:
            self.losses.append(values["loss"])
        if self.board is not None:
            for key in ("loss", "lr", "grad_norm"):
                self.board.add_scalar(f"train/{key}", values[key], position.step)
        if self._stop_together():
            if position.step % self.parts.steps_per_epoch == 0 and not self.budget.is_over(position.step):
                self._close_epoch(last=False)  # a resumed run starts with the next epoch
            self._checkpoint()
            raise Interrupted(
                "training was asked to stop",
                where=f"after step {position.step}",
                why="a signal arrived",
                fix="the same command resumes it",
            )
        if self.budget.is_over(position.step):
            self._close_epoch(last=True)
            engine.terminate()
        elif time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS:
            self._checkpoint()

    def _after_epoch(self, engine: Engine) -> None:
        if self.budget.is_over(self.state.position.step):
            return  # closed by the last step
        self._close_epoch(last=False)
        patience = self.train.patience
        if patience is not None and self.state.position.without_gain >= patience:
            self.state.position.stopped_by = f"no gain in {patience} validations"
            log.info("stopping early: %s", self.state.position.stopped_by)
            self._checkpoint()
            engine.terminate()

    def _close_epoch(self, *, last: bool) -> None:
        position = self.state.position
        epoch = math.ceil(position.step / self.parts.steps_per_epoch)
        row: dict[str, Any] = {
            "step": position.step,
            "epoch": epoch,
            "loss": sum(self.losses) / max(1, len(self.losses)),
            "lr": self._rate(position.step - 1),
            "seconds": round(self.budget.seconds(), 1),
            "step_seconds": self.budget.step_seconds(),
        }
        self.losses = []
        # The last average is scored on all held-out cases right after training, so only a choice needs it here.
        wanted = self.train.select == "best" if last else epoch % self.train.validate_every == 0
        if self.parts.validate is not None and wanted:
            scores = self._validate()
            self.state.note_scores(scores)
            row |= scores
            if self.board is not None:
                for key, value in scores.items():
                    self.board.add_scalar(f"validation/{key}", value, position.step)
        if self.state.main:
            append_line(self.state.folder / "log.jsonl", {"notice": self.banner} | row if self.banner else row)
        self.progress.epoch(row)
        if last or "dice" in row:
            self._checkpoint()
        self.budget.skip_pause()

    def _validate(self) -> dict[str, float]:
        assert self.parts.validate is not None  # by the callers
        begun = time.monotonic()
        with self.state.evaluated():
            self.parts.network.eval()
            scores = self.parts.validate(self.parts.network)
        self.budget.validation_seconds = time.monotonic() - begun
        return scores

    def _measure_validation(self) -> None:
        if self.parts.validate is not None:
            self._validate()

    def _checkpoint(self) -> None:
        self.state.save(self.budget.seconds(), self.budget.plan)
        self.last_checkpoint = time.monotonic()
        self.budget.skip_pause()

    def _stop_together(self) -> bool:
        """Whether any rank was asked to stop; all ranks agree."""
        wanted = self.stop_requested()
        return bool(idist.all_reduce(int(wanted))) if idist.get_world_size() > 1 else wanted

    def _check_finite(self, values: dict[str, float], engine: Engine) -> bool:
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        names = sorted({self.parts.case_names[int(i)] for batch in engine.state.batch for i in batch["case"]})
        step = self.state.position.step
        log.warning("step %d: the loss is not finite; skipped; cases: %s", step, ", ".join(names))
        if self.bad_steps >= MAX_BAD_STEPS:
            raise DataError(
                f"the loss was not finite in {MAX_BAD_STEPS} steps in a row",
                where=f"step {step}, last batch: {', '.join(names)}",
                why="the learning rate is too high, or these cases have extreme values",
                fix="lower optimizer.lr, or look at the cases; the last finite state is in checkpoints/",
                code="E_NAN",
            )
        return False
