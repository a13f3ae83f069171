"""A lower resolution, and back."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen

LOWEST = 0.5
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Resolution:
    """Draws ``zoom`` (B,), the share of the voxels along each axis."""

    key: ClassVar[int] = 0x20

    def __init__(self, settings: Augmentation) -> None:
        self.chance = settings.low_resolution

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw the factor of the coarser grid; 1 for none."""
        happens, zoom = rng.random() < self.chance, rng.uniform(LOWEST, 1)
        return {"zoom": torch.tensor(zoom if happens else 1.0)}

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Resample down and up in place, linearly both ways, so that nothing moves."""
        for i in chosen(drawn["zoom"] < 1):
            image[i] = _coarsened(image[i], float(drawn["zoom"][i]))


def _coarsened(image: Tensor, zoom: float) -> Tensor:
    size, mode = image.shape[1:], _LINEAR[image.ndim - 1]
    coarse = F.interpolate(image[None], size=[max(1, round(zoom * n)) for n in size], mode=mode, align_corners=False)
    return F.interpolate(coarse, size=list(size), mode=mode, align_corners=False)[0]
