"""Gaussian noise."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen

LARGEST = 0.15
"""Standard deviation, in those of the image."""


class Noise:
    """Draws ``noise`` (B,), a standard deviation, and its ``seed``."""

    key: ClassVar[int] = 0x05

    def __init__(self, settings: Augmentation) -> None:
        self.chance = settings.noise

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw the standard deviation, 0 for none, and the seed of the noise."""
        happens, deviation, seed = rng.random() < self.chance, rng.uniform(0, LARGEST), int(rng.integers(2**62))
        return {"noise": torch.tensor(deviation if happens else 0.0), "seed": torch.tensor(seed)}

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Add noise in place."""
        for i in chosen(drawn["noise"] > 0):
            generator = torch.Generator(image.device).manual_seed(int(drawn["seed"][i]))
            noise = torch.randn(image[i].shape, generator=generator, device=image.device)
            image[i].add_(noise, alpha=float(drawn["noise"][i]))
