"""Gaussian smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen

SIGMA = (0.5, 1.0)
"""In voxels."""


class Blur:
    """Draws ``sigma`` (B, d), in voxels along each axis."""

    key: ClassVar[int] = 0xB1

    def __init__(self, settings: Augmentation, dims: int) -> None:
        self.chance, self.dims = settings.blur, dims

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw the width of the blur; 0 for none."""
        happens, sigma = rng.random() < self.chance, rng.uniform(*SIGMA, self.dims)
        return {"sigma": torch.as_tensor(sigma * happens, dtype=torch.float32)}

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Smooth in place."""
        for i in chosen(drawn["sigma"][:, 0] > 0):
            image[i] = _blurred(image[i], drawn["sigma"][i].tolist())


def _blurred(image: Tensor, sigma: Sequence[float]) -> Tensor:
    """(C, *S), smoothed along every axis; outside is zero."""
    x = image
    for axis, value in enumerate(sigma, 1):
        taps = gaussian_1d(torch.tensor(value))[None, None].to(x.device)
        rows = x.movedim(axis, -1)  # (C, ..., n)
        smooth = F.conv1d(rows.reshape(-1, 1, rows.shape[-1]), taps, padding=taps.shape[-1] // 2)
        x = smooth.view(rows.shape).movedim(-1, axis)
    return x
