"""Brightness raised to a power."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen

RANGE = (0.7, 1.5)


class Gamma:
    """Draws ``gamma`` (B,)."""

    key: ClassVar[int] = 0x6A

    def __init__(self, settings: Augmentation) -> None:
        self.chance = settings.gamma

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw the exponent; 1 for no change."""
        happens, gamma = rng.random() < self.chance, rng.uniform(*RANGE)
        return {"gamma": torch.tensor(gamma if happens else 1.0)}

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Correct gamma in place: rescale to 0 to 1, raise to ``gamma``, and restore mean and standard deviation.

        Range, mean and deviation are those of all channels of a patch together.
        """
        rows = chosen(drawn["gamma"] != 1)
        if not rows:
            return
        x = image[rows].flatten(1)  # (b, C·S)
        power = drawn["gamma"][rows, None].to(x.device, non_blocking=True)
        low = x.amin(1, keepdim=True)
        span = (x.amax(1, keepdim=True) - low).clamp_min(1e-7)
        y = ((x - low) / span) ** power
        y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True).clamp_min(1e-8)
        y = y * x.std(1, keepdim=True) + x.mean(1, keepdim=True)
        image[rows] = y.view(len(rows), *image.shape[1:])
