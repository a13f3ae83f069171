"""One call that trains, or goes on training: the run, its budget, and the loop over both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cmt_med.base.errors import DataError
from cmt_med.compute.heartbeat import Heartbeat
from cmt_med.config.schema import Optimizer, Train
from cmt_med.training.budget import Budget
from cmt_med.training.faults import explained
from cmt_med.training.loop import Loop
from cmt_med.training.state import Run, TrainingSetup


@dataclass(frozen=True)
class Outcome:
    """The result of a training: the weights chosen, and how they were reached."""

    weights: dict[str, Tensor]
    steps: int
    epochs: float
    seconds: float
    stopped_by: str


def fit(
    setup: TrainingSetup,
    train: Train,
    optimizer_settings: Optimizer,
    *,
    seed: int,
    folder: Path,
    started: float,
    reserve: Callable[[float], float] = lambda validation_seconds: 0.0,
    stop_requested: Callable[[], bool] = lambda: False,
    heartbeat: Heartbeat | None = None,
    banner: str = "",
) -> Outcome:
    """Train, or go on with the run in ``folder``.

    Args:
        setup: see :class:`TrainingSetup`.
        train, optimizer_settings: sections of the experiment.
        seed: of everything random.
        folder: run folder; gets ``checkpoints/``, ``log.jsonl``, ``plan.json`` and ``tensorboard/``.
        started: ``time.monotonic()`` at the start of the command, from which ``max_minutes`` counts.
        reserve: from the seconds of a validation while training to those kept for what comes after training, which
            counts against ``max_minutes``.
        stop_requested: asked after each step; True saves a checkpoint and raises.
        heartbeat: told what the main thread does, for those who wait for it.
        banner: printed with the progress, for phantom data.

    Raises:
        Interrupted: after ``stop_requested``; E_WORKER, E_RANK if a data worker or another process of the job is gone.
        DataError: E_NAN at the fourth step without a finite loss, or if none has one; E_CHECKPOINT if checkpoints are damaged.
        ConfigError: if they belong to another experiment; E_MEMORY.
        OutputError: if a checkpoint or a log cannot be written.
    """
    run = Run(setup, train, optimizer_settings, folder)
    plan = run.resume()
    budget = Budget(
        train,
        steps_per_epoch=setup.steps_per_epoch,
        seconds_before=run.position.seconds,
        started=started,
        reserve=reserve,
        path=folder / "plan.json" if run.main else None,
        plan=plan,
        notes=setup.notes,
        step=run.position.step,
        pace=run.pace,
        finished=run.finished_before,
    )
    heartbeat = heartbeat or Heartbeat()
    with explained(train):
        Loop(run, budget, seed=seed, stop_requested=stop_requested, heartbeat=heartbeat, banner=banner).run()
    heartbeat.at("")
    if run.position.skipped and run.position.skipped >= run.position.step:
        raise DataError(
            "no step had a finite loss", where=str(folder), why="each batch was skipped, and nothing has been learned",
            fix="look at the cases, or lower optimizer.lr", code="E_NAN",
        )  # fmt: skip
    return Outcome(
        weights=run.chosen_weights(),
        steps=run.position.step,
        epochs=run.position.step / setup.steps_per_epoch,
        seconds=budget.seconds(),
        stopped_by=run.position.stopped_by or budget.bound,
    )
