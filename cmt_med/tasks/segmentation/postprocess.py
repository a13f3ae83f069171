"""Removal of parts of a label map: small parts, and targets that are too small in total.

The strong BraTS entries write enhancing tumour that is too small in total as tumour core, and drop small parts that the network
is not sure of. Both are settings of the model here (section ``inference``), recorded beside every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.config.schema import Inference
from cmt_med.tasks.segmentation.target import Target, surrounding

_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass
class Removed:
    """The voxels that post-processing took away, by target."""

    components: dict[str, int] = field(default_factory=dict)
    component_mm3: dict[str, float] = field(default_factory=dict)
    below_minimum_mm3: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a case's record; empty where nothing was removed."""
        return {key: value for key, value in vars(self).items() if value}


def large_or_sure(
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
    keep = sizes >= settings.min_component_mm3[name]
    if settings.confident is not None:
        keep[1:] |= ndimage.maximum(chance, parts, np.arange(1, count + 1)) >= settings.confident
    keep[0] = False
    dropped = ~keep[1:]
    if dropped.any():
        removed.components[name] = int(dropped.sum())
        removed.component_mm3[name] = float(sizes[1:][dropped].sum())
    return keep[parts]


def write_small_as_surrounding(
    label: NDArray[np.uint8],
    target: Target,
    targets: Sequence[Target],
    minimum_mm3: float,
    voxel_mm3: float,
    removed: Removed,
) -> None:
    """Write a target that is smaller in total than ``minimum_mm3`` as the one around it, in place."""
    found = np.isin(label, target.values)
    size = float(np.count_nonzero(found)) * voxel_mm3
    if 0 < size < minimum_mm3:
        around = surrounding(target, targets)
        label[found] = around.write if around is not None else 0
        removed.below_minimum_mm3[target.name] = size
