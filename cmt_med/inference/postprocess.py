"""From probabilities to labels: thresholds, small structures, and what was removed.

The strong BraTS entries write enhancing tumour that is too small in total as tumour core, and drop small parts that the network
is not sure of. Both are settings of the model here (section ``inference``), recorded beside every result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Inference

_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Target:
    """A region or a class: its name, the label values it consists of, and the value written for it."""

    name: str
    values: tuple[int, ...]
    write: int


@dataclass
class Removed:
    """What post-processing took away, by target."""

    components: dict[str, int] = field(default_factory=dict)
    component_mm3: dict[str, float] = field(default_factory=dict)
    below_minimum_mm3: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a case's record; empty where nothing was removed."""
        return {key: value for key, value in vars(self).items() if value}


def check_settings(settings: Inference, targets: Sequence[str], *, regions: bool) -> None:
    """Refuse settings for a target that does not exist.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("thresholds", "minimum", "components"):
        strange = [name for name in getattr(settings, key) if name not in targets]
        if strange or (key == "thresholds" and settings.thresholds and not regions):
            raise ConfigError(
                f"there is no region {strange[0]!r}" if strange else "classes have no thresholds, the largest one wins",
                where=f"inference.{key}",
                why=f"the model predicts {', '.join(targets)}",
                fix="correct the name" if strange else "leave inference.thresholds out",
            )


def to_labels(
    probabilities: Tensor | NDArray[np.float32],
    settings: Inference,
    *,
    targets: Sequence[Target],
    regions: bool,
    voxel_mm3: float = 1.0,
) -> tuple[NDArray[np.uint8], Removed]:
    """A label map (D1, D2, D3) in the data set's own values.

    Regions above their threshold are painted in their order, each over those before (BraTS: WT, TC, ET); of classes the most
    probable one is written.

    Args:
        probabilities: (K, D1, D2, D3), a channel per target; of classes with the background first.
        settings: thresholds and what is removed.
        targets: for each channel; of classes without the background.
        regions: whether channels are overlapping regions.
        voxel_mm3: volume of a voxel.
    """
    if regions:
        values = probabilities.cpu().numpy() if isinstance(probabilities, Tensor) else probabilities
        masks = [p > settings.thresholds.get(t.name, settings.threshold) for t, p in zip(targets, values, strict=True)]
        chances = list(values)
    else:
        channels = torch.as_tensor(probabilities)
        best = channels.argmax(0).cpu().numpy()
        if not (settings.components or settings.minimum):  # nothing to look at class by class
            return np.array([0, *(t.write for t in targets)], dtype=np.uint8)[best], Removed()
        masks = [best == i for i in range(1, len(targets) + 1)]
        chances = list(channels[1:].cpu().numpy())
    removed = Removed()
    for i, target in enumerate(targets):
        if target.name in settings.components:
            masks[i] = _large_or_sure(masks[i], chances[i], target.name, settings, voxel_mm3, removed)
    label = _paint(masks, targets)
    _apply_minimum(label, settings, targets, voxel_mm3, removed)
    return label, removed


def decision(settings: Inference, *, targets: Sequence[Target], regions: bool) -> Callable[[Tensor], Tensor] | None:
    """What :func:`to_labels` decides at each voxel by itself: probabilities (K, n) to numbers (n,), uint8.

    Of classes the number of the most probable one; of regions a bit for each that is above its threshold. None where eight
    bits are not enough.
    """
    if not regions:
        return (lambda p: p.argmax(0).to(torch.uint8)) if len(targets) < 256 else None
    if len(targets) > 8:
        return None
    thresholds = [settings.thresholds.get(target.name, settings.threshold) for target in targets]

    def bits(probabilities: Tensor) -> Tensor:
        found = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
        for i, (p, threshold) in enumerate(zip(probabilities, thresholds, strict=True)):
            found |= (p > threshold).to(torch.uint8) << i
        return found

    return bits


def from_decisions(
    codes: NDArray[np.uint8], settings: Inference, *, targets: Sequence[Target], regions: bool, voxel_mm3: float
) -> tuple[NDArray[np.uint8], Removed]:
    """The label map of what :func:`decision` decided, as :func:`to_labels` writes it; ``components`` must not be set."""
    table = np.zeros(256, dtype=np.uint8)
    for i, target in enumerate(targets):
        table[[code for code in range(256) if (code >> i & 1 if regions else code == i + 1)]] = target.write
    label, removed = table[codes], Removed()
    _apply_minimum(label, settings, targets, voxel_mm3, removed)
    return label, removed


def _apply_minimum(
    label: NDArray[np.uint8], settings: Inference, targets: Sequence[Target], voxel_mm3: float, removed: Removed
) -> None:
    for target in targets:
        if target.name in settings.minimum:
            _write_small_as_surrounding(label, target, targets, settings.minimum[target.name], voxel_mm3, removed)


def _paint(masks: Sequence[NDArray[np.bool_]], targets: Sequence[Target]) -> NDArray[np.uint8]:
    label = np.zeros(masks[0].shape, dtype=np.uint8)
    for mask, target in zip(masks, targets, strict=True):
        label[mask] = target.write
    return label


def _large_or_sure(
    mask: NDArray[np.bool_],
    chance: NDArray[np.float32],
    name: str,
    settings: Inference,
    voxel_mm3: float,
    removed: Removed,
) -> NDArray[np.bool_]:
    """The connected parts (26 neighbours) that are large enough, or as probable somewhere as ``confident``."""
    parts, count = ndimage.label(mask, _NEIGHBOURS_26)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1) * voxel_mm3
    keep = sizes >= settings.components[name]
    if settings.confident is not None:
        keep[1:] |= ndimage.maximum(chance, parts, np.arange(1, count + 1)) >= settings.confident
    keep[0] = False
    dropped = ~keep[1:]
    if dropped.any():
        removed.components[name] = int(dropped.sum())
        removed.component_mm3[name] = float(sizes[1:][dropped].sum())
    return keep[parts]


def _write_small_as_surrounding(
    label: NDArray[np.uint8],
    target: Target,
    targets: Sequence[Target],
    minimum_mm3: float,
    voxel_mm3: float,
    removed: Removed,
) -> None:
    found = np.isin(label, target.values)
    size = float(np.count_nonzero(found)) * voxel_mm3
    if 0 < size < minimum_mm3:
        around = surrounding(target, targets)
        label[found] = around.write if around is not None else 0
        removed.below_minimum_mm3[target.name] = size


def surrounding(target: Target, targets: Sequence[Target]) -> Target | None:
    """The smallest other target that contains all of a target's labels, and writes another one (ET -> TC)."""
    wider = [
        t for t in targets if set(t.values) > set(target.values) and t.write not in target.values
    ]  # WT around TC writes ED
    return min(wider, key=lambda t: len(t.values), default=None)
