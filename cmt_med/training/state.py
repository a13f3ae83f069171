"""The state of a training run: what it is made of, where it stands, and how that is kept."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from torch import Tensor, nn

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.base.files import read_lines, write_text
from cmt_med.base.text import counted
from cmt_med.config.schema import Optimizer, Train
from cmt_med.data.patches.augment import Augment
from cmt_med.tasks.task import Task
from cmt_med.training.averaging import AveragedWeights
from cmt_med.training.budget import Pace
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from cmt_med.training.optimiser import optimiser
from cmt_med.training.schedule import StepPlan
from cmt_med.training.validation import Validate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """The arguments of :func:`cmt_med.training.fit.fit`.

    Attributes:
        network: on its device, not yet wrapped for several processes.
        task: whose loss is minimised and whose metric is watched.
        batches: (first batch) -> endless stream of this rank's batches from there on.
        validate: (network, whether to stop) -> scores with the monitored key, None if stopped; None without validation.
        steps_per_epoch: optimizer steps in an epoch.
        case_names: of the training cases, for naming the culprits of a loss that is not finite.
        fingerprint: hash of config and split; a checkpoint of another one is refused.
        notes: what the plan changed, and why.
        augment: changes batches on the device, as drawn; None where they come changed.
        frozen: parts of the network that training leaves as they are.
        levels: for each parameter how many levels it lies above the decoder, for rates of their own; None for one rate.
    """

    network: nn.Module
    task: Task
    batches: Callable[[int], Iterator[dict[str, Any]]]
    validate: Validate | None
    steps_per_epoch: int
    case_names: list[str]
    fingerprint: str
    notes: tuple[str, ...] = ()
    augment: Augment | None = None
    frozen: tuple[nn.Module, ...] = ()
    levels: Mapping[str, int] | None = None


@dataclass
class Position:
    """The position of a run; with weights, optimizer and plan, all that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    stopped_by: str = ""
    closed: int = 0
    """The last step after which an epoch was closed: validated and logged."""
    skipped: int = 0
    """Steps without a finite loss."""
    loss_sum: float = 0.0
    """Of the steps since then, for the log."""
    loss_count: int = 0


_KEYS = ("fingerprint", "bounds", "position", "plan", "network", "optimizer", "average", "average_updates", "best")


def require_same_run(folder: Path, setup: TrainingSetup, train: Train, changed: Sequence[str] = ()) -> None:
    """Refuse a folder whose checkpoints belong to another experiment or were planned with another bound.

    A finished run may be given more epochs or minutes.

    Args:
        folder: the run's.
        setup, train: of the training that would go on there.
        changed: settings that differ from the run's own config, for the message.

    Raises:
        ConfigError: for another experiment, or another number of epochs or minutes.
        DataError: E_CHECKPOINT if all checkpoints are damaged.
    """
    saved = load_newest(folder / "checkpoints", _KEYS)
    if saved is None:
        return
    if saved["fingerprint"] != setup.fingerprint:
        others = "its cases, their files, or the networks of its version, were others"
        raise ConfigError(
            "the run folder belongs to another experiment",
            where=str(folder),
            why=f"these settings differ: {', '.join(changed)}" if changed else others,
            fix="use another --output, or --fresh to start over",
        )
    epochs, minutes = saved["bounds"]
    if [epochs, minutes] != [train.epochs, train.max_minutes] and not _goes_on(saved, train):
        raise ConfigError(
            "the run was planned with another bound",
            where=str(folder),
            why=f"its learning rate was scheduled for {said_bounds(epochs, minutes)}",
            fix="the same bound resumes it; once finished, more of the same bound goes on; else another --output, or --fresh",
        )


def _goes_on(saved: dict[str, Any], train: Train) -> bool:
    """Tell whether a finished run is given more epochs or minutes, and less of neither."""
    plan, position, before, now = saved["plan"], saved["position"], saved["bounds"], [train.epochs, train.max_minutes]
    finished = plan is not None and position["step"] >= plan["total_steps"] and not position["stopped_by"]
    pairs = list(zip(before, now, strict=True))
    same_kind = all((one is None) == (other is None) for one, other in pairs)
    return finished and same_kind and before != now and all(one is None or other >= one for one, other in pairs)


def said_bounds(epochs: int | None, minutes: float | None) -> str:
    """The bounds of a run in words."""
    words = [
        counted(epochs, "epoch") if epochs is not None else "",
        f"{minutes:g} minutes" if minutes is not None else "",
    ]
    return " and ".join(filter(None, words))


class Run:
    """The state of a run: weights, optimizer, average and position, and how they are kept."""

    def __init__(self, setup: TrainingSetup, train: Train, settings: Optimizer, folder: Path) -> None:
        self.setup, self.train, self.settings, self.folder = setup, train, settings, folder
        self.main = idist.get_rank() == 0
        self.optimizer = optimiser(setup.network, settings, setup.levels)
        self.average = AveragedWeights(setup.network, train.ema)
        self.position = Position()
        self.pace = Pace()
        self.finished_before = False
        """True if an earlier run came to its end here, and this one was given more epochs or minutes."""
        self.best: dict[str, Tensor] = {}
        """Weights of the best scores so far, where they are to be chosen; in the checkpoint, so that both go back together."""

    def averaged_weights(self) -> dict[str, Tensor]:
        """The average, or the network's own where there is none."""
        return self.average.weights if self.train.ema else self.setup.network.state_dict()

    def chosen_weights(self) -> dict[str, Tensor]:
        """The last or the best averaged weights, as ``train.select`` says."""
        return self.best or self.averaged_weights()

    def evaluated(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, the network has the weights that are validated."""
        return self.average.swapped_into(self.setup.network) if self.train.ema else contextlib.nullcontext()

    def note_scores(self, scores: dict[str, float]) -> None:
        """Keep the best so far."""
        monitor = self.setup.task.monitor
        if not monitor.is_better(scores[monitor.name], self.position.best.get(monitor.name)):
            self.position.without_gain += 1
            return
        self.position.best = scores | {"step": self.position.step}
        self.position.without_gain = 0
        if self.train.select == "best":
            self.best = {name: t.detach().to("cpu", copy=True) for name, t in self.averaged_weights().items()}

    def save(self, seconds: float, plan: StepPlan | None, pace: Pace) -> None:
        """Write a checkpoint.

        Raises:
            DataError: E_NAN for weights that are not finite: the checkpoints before are.
        """
        self.position.seconds = seconds
        kept = [*self.setup.network.state_dict().items(), *self.average.weights.items()]
        broken = [name for name, tensor in kept if not tensor.isfinite().all()]
        if broken:
            raise DataError(
                "the weights are not finite", where=f"{broken[0]} and {len(broken) - 1} more, step {self.position.step}",
                why="the learning rate is too high, or cases have extreme values", code="E_NAN",
                fix="lower optimizer.lr; the last finite state is in checkpoints/",
            )  # fmt: skip
        if self.main:
            state = {
                "fingerprint": self.setup.fingerprint,
                "bounds": [self.train.epochs, self.train.max_minutes],
                "position": asdict(self.position),
                "plan": plan.as_dict() if plan is not None else None,
                "pace": pace.as_dict(),
                "network": self.setup.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.weights,
                "average_updates": self.average.updates,
                "best": self.best,
            }
            save_checkpoint(self.folder / "checkpoints", self.position.step, state)

    def resume(self) -> StepPlan | None:
        """Go back to the newest checkpoint, if there is one; returns its plan, or None for a new one."""
        require_same_run(self.folder, self.setup, self.train)
        saved = load_newest(self.folder / "checkpoints", _KEYS)
        if saved is None:
            if self.main:
                (self.folder / "log.jsonl").unlink(missing_ok=True)  # of a run that left no checkpoint
            return None
        device = next(self.setup.network.parameters()).device
        self.setup.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.weights = {name: t.to(device) for name, t in saved["average"].items()}
        self.average.updates = saved["average_updates"]
        self.best = saved["best"]
        self.position = Position(**saved["position"])
        self.pace = Pace(saved.get("pace"))  # checkpoints from before it was kept have none
        if self.main:
            log.info("resuming after step %d", self.position.step)
            path = self.folder / "log.jsonl"
            kept = [row for row in read_lines(path) if row.get("step", 0) <= self.position.closed]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))  # the rest will be made again
        self.finished_before = _goes_on(saved, self.train)
        if self.finished_before:
            log.info(
                "finished before with %s; going on to %s",
                said_bounds(*saved["bounds"]),
                said_bounds(self.train.epochs, self.train.max_minutes),
            )
            return None
        return StepPlan(**saved["plan"]) if saved["plan"] is not None else None
