"""The one scheme of labels: exclusive classes or overlapping regions, and how probabilities become labels.

Nothing else in the package tells the two apart, but that thresholds are chosen, and compared with, where targets overlap.

Letters: K channels of the network's output, D1, D2, D3 a volume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Inference
from cmt_med.tasks.segmentation.losses import Kind, Known, class_loss, region_loss
from cmt_med.tasks.segmentation.postprocess import Removed, large_or_sure, write_small_as_surrounding
from cmt_med.tasks.segmentation.target import Target

BACKGROUND = Target("background", (0,), 0)
REGION_BITS = 8
"""Regions whose decisions fit into a byte."""

Decide = Callable[[Tensor], Tensor]
"""Probabilities (K, n) to codes (n,), uint8."""


class LabelScheme(ABC):
    """The targets, and the meaning of each channel of a network's output.

    Args:
        targets: in the order of the channels.

    Attributes:
        targets: what is predicted, post-processed and scored; never the background.
    """

    overlapping: ClassVar[bool]
    """True if targets are predicted independently, each with a threshold of its own."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)

    @property
    @abstractmethod
    def channels(self) -> tuple[Target, ...]:
        """The target of each channel of the network's output."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, kind: Kind = "dice_ce", *, known: Known | None = None) -> Tensor:
        """The loss of logits (B, K, *S) against the share of each channel in a position (B, K, *S), over what is ``known``."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (K, ...) to probabilities of the same shape."""

    @abstractmethod
    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        """Write into probabilities (K, *S), where ``outside`` (*S) is true, that nothing is there."""

    @abstractmethod
    def decide(self, settings: Inference) -> Decide | None:
        """A function that gives each voxel one byte, the code of the label that :meth:`labels` would choose there.

        If two neighbouring points of a grid share a code, every point interpolated between them has it, too. Where all
        probabilities are 0 the code is 0. None where a byte is too small.
        """

    @abstractmethod
    def _written(self, code: int) -> int:
        """The label value that is written for a code of :meth:`decide`."""

    @abstractmethod
    def _masks(self, probabilities: Tensor, settings: Inference) -> list[NDArray[np.bool_]]:
        """The mask of each target, (D1, D2, D3), before anything is removed."""

    @abstractmethod
    def _chances(self, probabilities: Tensor) -> list[NDArray[np.float32]]:
        """The probabilities of each target."""

    def nothing(self, shape: Sequence[int]) -> Tensor:
        """Probabilities (K, *shape) that say: nothing is there."""
        result = torch.zeros((len(self.channels), *shape))
        self.set_outside(result, torch.ones(tuple(shape), dtype=torch.bool))
        return result

    def check(self, settings: Inference) -> None:
        """Raise for settings of a target that does not exist.

        Raises:
            ConfigError: naming the key.
        """
        names = [target.name for target in self.targets]
        for key in ("thresholds", "min_region_mm3", "min_component_mm3"):
            strange = [name for name in getattr(settings, key) if name not in names]
            if strange:
                raise ConfigError(
                    f"there is no region {strange[0]!r}", where=f"inference.{key}", why=f"the model predicts {', '.join(names)}",
                    fix="correct the name",
                )  # fmt: skip

    def labels(
        self, probabilities: Tensor | NDArray[np.float32], settings: Inference, *, voxel_mm3: float = 1.0
    ) -> tuple[NDArray[np.uint8], Removed]:
        """A label map (D1, D2, D3) in the data set's own values, and what post-processing took away.

        Args:
            probabilities: (K, D1, D2, D3).
            settings: thresholds and what is removed.
            voxel_mm3: volume of a voxel.
        """
        values = torch.as_tensor(probabilities)
        decide = self.decide(settings)
        if decide is not None and not settings.min_component_mm3:
            codes = decide(values.flatten(1)).view(values.shape[1:])
            return self.painted(codes.cpu().numpy(), settings, voxel_mm3=voxel_mm3)
        removed, masks = Removed(), self._masks(values, settings)
        for i, (target, chance) in enumerate(zip(self.targets, self._chances(values), strict=True)):
            if target.name in settings.min_component_mm3:
                masks[i] = large_or_sure(masks[i], chance, target.name, settings, voxel_mm3, removed)
        label = np.zeros(masks[0].shape, dtype=np.uint8)
        for mask, target in zip(masks, self.targets, strict=True):
            label[mask] = target.write
        self._apply_minimum(label, settings, voxel_mm3, removed)
        return label, removed

    def painted(
        self, codes: NDArray[np.uint8], settings: Inference, *, voxel_mm3: float
    ) -> tuple[NDArray[np.uint8], Removed]:
        """The label map of codes that :meth:`decide` gave; ``settings.min_component_mm3`` must be empty."""
        label, removed = np.array([self._written(code) for code in range(256)], dtype=np.uint8)[codes], Removed()
        self._apply_minimum(label, settings, voxel_mm3, removed)
        return label, removed

    def _apply_minimum(self, label: NDArray[np.uint8], settings: Inference, voxel_mm3: float, removed: Removed) -> None:
        for target in self.targets:
            if target.name in settings.min_region_mm3:
                write_small_as_surrounding(
                    label, target, self.targets, settings.min_region_mm3[target.name], voxel_mm3, removed
                )

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, LabelScheme) and other.targets == self.targets

    def __hash__(self) -> int:
        return hash((type(self), self.targets))


class Classes(LabelScheme):
    """Exclusive classes: each voxel has the most probable one. The background is a class of its own, channel 0."""

    overlapping = False

    @property
    def channels(self) -> tuple[Target, ...]:
        return (BACKGROUND, *self.targets)

    def loss(self, logits: Tensor, targets: Tensor, kind: Kind = "dice_ce", *, known: Known | None = None) -> Tensor:
        return class_loss(logits, targets, kind, known=known)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(0)

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        probabilities[:, outside] = 0.0
        probabilities[0, outside] = 1.0

    def check(self, settings: Inference) -> None:
        super().check(settings)
        if settings.thresholds:
            raise ConfigError(
                "classes have no thresholds, the largest one wins", where="inference.thresholds",
                why=f"the model predicts {', '.join(target.name for target in self.targets)}",
                fix="leave inference.thresholds out",
            )  # fmt: skip

    def decide(self, settings: Inference) -> Decide | None:
        return (lambda p: p.argmax(0).to(torch.uint8)) if len(self.targets) < 256 else None

    def _written(self, code: int) -> int:
        return self.targets[code - 1].write if 0 < code <= len(self.targets) else 0

    def _masks(self, probabilities: Tensor, settings: Inference) -> list[NDArray[np.bool_]]:
        best: NDArray[Any] = probabilities.argmax(0).cpu().numpy()
        return [best == i for i in range(1, len(self.targets) + 1)]

    def _chances(self, probabilities: Tensor) -> list[NDArray[np.float32]]:
        return list(probabilities[1:].cpu().numpy())


class Regions(LabelScheme):
    """Overlapping regions, predicted independently: those above their threshold are painted in their order.

    Each is painted over those before (BraTS: WT, TC, ET).
    """

    overlapping = True

    @property
    def channels(self) -> tuple[Target, ...]:
        return self.targets

    def loss(self, logits: Tensor, targets: Tensor, kind: Kind = "dice_ce", *, known: Known | None = None) -> Tensor:
        return region_loss(logits, targets, kind, known=known)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        probabilities[:, outside] = 0.0

    def decide(self, settings: Inference) -> Decide | None:
        """A bit for each region that is above its threshold."""
        if len(self.targets) > REGION_BITS:
            return None
        thresholds = self._thresholds(settings)

        def bits(probabilities: Tensor) -> Tensor:
            found = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
            for i, (p, threshold) in enumerate(zip(probabilities, thresholds, strict=True)):
                found |= (p > threshold).to(torch.uint8) << i
            return found

        return bits

    def _thresholds(self, settings: Inference) -> list[float]:
        return [settings.thresholds.get(target.name, settings.threshold) for target in self.targets]

    def _written(self, code: int) -> int:
        return next((t.write for i, t in reversed(list(enumerate(self.targets))) if code >> i & 1), 0)

    def _masks(self, probabilities: Tensor, settings: Inference) -> list[NDArray[np.bool_]]:
        values = probabilities.cpu().numpy()
        return [p > threshold for p, threshold in zip(values, self._thresholds(settings), strict=True)]

    def _chances(self, probabilities: Tensor) -> list[NDArray[np.float32]]:
        return list(probabilities.cpu().numpy())


def scheme_of(labels: dict[str, int], regions: Sequence[Target] | None) -> LabelScheme:
    """The regions where there are some, else a class for each label.

    Args:
        labels: name -> value, the background among them.
        regions: None for a class per label.
    """
    if regions is not None:
        return Regions(regions)
    return Classes([Target(name, (value,), value) for name, value in labels.items() if value != 0])
