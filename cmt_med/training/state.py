"""The state of a training run: what it is made of, where it stands, and how that is kept."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cmt_med.config import Optimizer, Train
from cmt_med.errors import ConfigError, DataError
from cmt_med.files import read_lines, write_bytes, write_text
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from cmt_med.training.losses import Loss
from cmt_med.training.schedule import StepPlan
from cmt_med.training.steps import AveragedWeights, decay_groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What :func:`cmt_med.training.fit.fit` is given.

    Attributes:
        network: on its device, not yet wrapped for several processes.
        loss: from output and labels to a number.
        batches: (first batch) -> endless stream of this rank's batches from there on.
        validate: network -> scores with the key ``"dice"``; None without validation.
        steps_per_epoch: optimizer steps in an epoch.
        case_names: of the training cases, for naming the culprits of a loss that is not finite.
        fingerprint: hash of config and split; a checkpoint of another one is refused.
        notes: what the plan changed, and why.
    """

    network: nn.Module
    loss: Loss
    batches: Callable[[int], Iterator[dict[str, Tensor]]]
    validate: Callable[[nn.Module], dict[str, float]] | None
    steps_per_epoch: int
    case_names: list[str]
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass
class Position:
    """Where a run stands; with weights, optimizer and plan, all that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    without_gain: int = 0
    stopped_by: str = ""


def require_same_run(folder: Path, parts: Parts, train: Train, changed: Sequence[str] = ()) -> None:
    """Refuse a folder whose checkpoints belong to another experiment or were planned with another bound.

    Args:
        folder: the run's.
        parts, train: of the training that would go on there.
        changed: settings that differ from the run's own config, for the message.

    Raises:
        ConfigError: for another experiment, or another number of epochs or minutes.
        DataError: E_CHECKPOINT if all checkpoints are damaged.
    """
    saved = load_newest(folder / "checkpoints")
    if saved is None:
        return
    if saved["fingerprint"] != parts.fingerprint:
        raise ConfigError(
            "the run folder belongs to another experiment",
            where=str(folder),
            why=f"these settings differ: {', '.join(changed)}" if changed else "its cases, or their files, were others",
            fix="use another --output, or --fresh to start over",
        )
    epochs, minutes = saved.get("bounds", (None, None))
    if [epochs, minutes] != [train.epochs, train.max_minutes]:
        raise ConfigError(
            "the run was planned with another bound",
            where=str(folder),
            why=f"its learning rate was scheduled for train.epochs={epochs}, train.max_minutes={minutes}",
            fix="the same bound resumes it; another needs another --output, or --fresh to start over",
        )


class Run:
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
