"""Mirroring of image and label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn, chosen


class Flip:
    """Draws ``flip`` (B, d), along which axes a patch is mirrored.

    Raises:
        ConfigError: for a flip axis that patches do not have.
    """

    key: ClassVar[int] = 0xF1

    def __init__(self, settings: Augmentation, dims: int) -> None:
        self.chance, self.dims = settings.flip, dims
        self.axes = list(range(dims)) if settings.flip_axes is None else settings.flip_axes
        if any(axis >= dims for axis in self.axes):
            raise ConfigError(
                "a flip axis does not exist", where=f"augmentation.flip_axes={self.axes}", fix=f"use 0 to {dims - 1}"
            )

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw which axes are mirrored."""
        mirrored = rng.random(self.dims) < self.chance
        return {"flip": torch.as_tensor([bool(mirrored[i]) and i in self.axes for i in range(self.dims)])}

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> None:
        """Mirror image and label (B, C, *S) in place."""
        for axis in self.axes:
            rows = chosen(drawn["flip"][:, axis])
            if rows:
                image[rows] = image[rows].flip(2 + axis)
                label[rows] = label[rows].flip(2 + axis)

    def move_boxes(self, boxes: Tensor, size: Sequence[int], drawn: Drawn) -> Tensor:
        """Mirror boxes (B, N, 2d) in patches of a size: new ones."""
        low, high = boxes.chunk(2, -1)
        mirrored = torch.tensor([axis in self.axes for axis in range(self.dims)]) & drawn["flip"]
        mirrored = mirrored.to(boxes.device)[:, None]
        end = torch.tensor(size, dtype=boxes.dtype, device=boxes.device)
        return torch.cat([torch.where(mirrored, end - high, low), torch.where(mirrored, end - low, high)], dim=-1)
