"""A factor and an offset of the brightness of each channel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn


class Contrast:
    """Draws ``factor`` and ``offset`` (B, C), in standard deviations of the image; each happens by a chance of its own."""

    key: ClassVar[int] = 0xC0

    def __init__(self, settings: Augmentation, channels: int) -> None:
        self.chance, self.strength, self.channels = settings.intensity, settings.strength, channels

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw factor and offset of the values."""
        happens = rng.random(2) < self.chance
        factors, offsets = rng.uniform(-self.strength, self.strength, (2, self.channels))
        return {
            "factor": torch.as_tensor(1 + factors * happens[0], dtype=torch.float32),
            "offset": torch.as_tensor(offsets * happens[1], dtype=torch.float32),
        }

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Each channel times its factor plus its offset, in place."""
        factor, offset = drawn["factor"], drawn["offset"]
        shape = (*factor.shape, *(1,) * (image.ndim - 2))
        both = torch.stack([factor, offset]).to(image.device, non_blocking=True).view(2, *shape)
        image.mul_(both[0]).add_(both[1])
