"""The training loop: an Ignite engine with its handlers, bounded by epochs, minutes or both."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cmt_med.config import Optimizer, Train
from cmt_med.errors import ConfigError, DataError, Interrupted
from cmt_med.files import append_line, read_lines, write_bytes, write_text
from cmt_med.training.budget import Budget
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from cmt_med.training.losses import Loss
from cmt_med.training.progress import Progress
from cmt_med.training.schedule import StepPlan, learning_rate
from cmt_med.training.steps import AveragedWeights, batch_groups, decay_groups, training_step

MAX_BAD_STEPS = 3
CHECKPOINT_SECONDS = 300.0
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


@dataclass(frozen=True)
class Outcome:
    """What training came to: the weights chosen, and how they were reached."""

    weights: dict[str, Tensor]
    steps: int
    epochs: float
    seconds: float
    stopped_by: str


@dataclass
class Position:
    """Where a run stands; with weights, optimizer and plan, all that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    stopped_by: str = ""


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
    run = _Run(parts, train, optimizer_settings, folder)
    plan = run.resume()
    budget = Budget(
        train,
        steps_per_epoch=parts.steps_per_epoch,
        seconds_before=run.position.seconds,
        started=started,
        reserve=reserve,
        path=folder / "plan.json" if run.main else None,
        plan=plan,
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


def require_same_run(folder: Path, parts: Parts, train: Train) -> None:
    """Refuse a folder whose checkpoints belong to another experiment or were planned with another bound.

    Raises:
        DataError: E_CHECKPOINT, for another experiment.
        ConfigError: for another number of epochs or minutes.
    """
    saved = load_newest(folder / "checkpoints")
    if saved is None:
        return
    if saved["fingerprint"] != parts.fingerprint:
        raise DataError(
            "the run folder belongs to another experiment",
            where=str(folder),
            why="its checkpoint was made with another config or other cases",
            fix="use another --output, or --fresh to start over",
            code="E_CHECKPOINT",
        )
    epochs, minutes = saved.get("bounds", (None, None))
    if [epochs, minutes] != [train.epochs, train.max_minutes]:
        raise ConfigError(
            "the run was planned with another bound",
            where=str(folder),
            why=f"its learning rate was scheduled for train.epochs={epochs}, train.max_minutes={minutes}",
            fix="the same bound resumes it; another needs another --output, or --fresh to start over",
        )


class _Run:
    """The state of a run: weights, optimizer, average and position, and how they are kept."""

    def __init__(self, parts: Parts, train: Train, settings: Optimizer, folder: Path) -> None:
        self.parts, self.train, self.settings, self.folder = parts, train, settings, folder
        self.main = idist.get_rank() == 0
        self.optimizer = torch.optim.AdamW(
            decay_groups(parts.network, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.99), fused=True
        )
        self.average = AveragedWeights(parts.network, train.ema)
        self.position = Position()

    @property
    def best_path(self) -> Path:
        return self.folder / "checkpoints" / "best.safetensors"

    def averaged_weights(self) -> dict[str, Tensor]:
        """The average, or the network's own where there is none."""
        return self.average.weights if self.train.ema else self.parts.network.state_dict()

    def chosen_weights(self) -> dict[str, Tensor]:
        """Last or best, as the experiment says."""
        if self.train.select == "best" and self.best_path.exists():
            try:
                return load_file(self.best_path)
            except SafetensorError as error:
                raise DataError(
                    "the best weights cannot be read",
                    where=str(self.best_path),
                    why=str(error),
                    fix="--fresh starts over; train.select: last needs the checkpoints alone",
                    code="E_CHECKPOINT",
                ) from error
        return self.averaged_weights()

    def evaluated(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, the network has the weights that are validated."""
        return self.average.swapped_into(self.parts.network) if self.train.ema else contextlib.nullcontext()

    def note_scores(self, scores: dict[str, float]) -> None:
        """Keep the best so far."""
        if scores["dice"] <= self.position.best.get("dice", -1.0):
            self.position.without_gain += 1
            return
        self.position.best = scores | {"step": self.position.step}
        self.position.without_gain = 0
        if self.main:
            weights = {name: t.detach().cpu().contiguous() for name, t in self.averaged_weights().items()}
            write_bytes(self.best_path, save(weights))

    def save(self, seconds: float, plan: StepPlan | None) -> None:
        """Write a checkpoint."""
        self.position.seconds = seconds
        if self.main:
            state = {
                "fingerprint": self.parts.fingerprint,
                "bounds": [self.train.epochs, self.train.max_minutes],
                "position": asdict(self.position),
                "plan": plan.as_dict() if plan is not None else None,
                "network": self.parts.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.weights,
                "average_updates": self.average.updates,
            }
            save_checkpoint(self.folder / "checkpoints", self.position.step, state)

    def resume(self) -> StepPlan | None:
        """Go back to the newest checkpoint, if there is one; returns its plan."""
        require_same_run(self.folder, self.parts, self.train)
        saved = load_newest(self.folder / "checkpoints")
        if saved is None:
            if self.main:
                (self.folder / "log.jsonl").unlink(missing_ok=True)  # of a run that left no checkpoint
            return None
        device = next(self.parts.network.parameters()).device
        self.parts.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.weights = {name: t.to(device) for name, t in saved["average"].items()}
        self.average.updates = saved["average_updates"]
        self.position = Position(**saved["position"])
        if self.main:
            log.info("resuming after step %d", self.position.step)
            path = self.folder / "log.jsonl"
            kept = [row for row in read_lines(path) if row.get("step", 0) <= self.position.step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))  # the rest will be made again
        return StepPlan(**saved["plan"]) if saved["plan"] is not None else None


class _Loop:
    """The engine and its handlers."""

    def __init__(
        self, run: _Run, budget: Budget, *, seed: int, stop_requested: Callable[[], bool], banner: str
    ) -> None:
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
