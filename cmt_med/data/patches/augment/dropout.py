"""Channels set to zero, so that a network learns to do without each of them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment.transform import Drawn


class ChannelDropout:
    """Draws ``dropped`` (B,), the place of the channel to drop among those that a patch has, from 0 to 1; -1 for none."""

    key: ClassVar[int] = 0xCD

    def __init__(self, settings: Augmentation) -> None:
        self.chance = settings.channel_dropout

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw whether a channel is dropped, and which."""
        happens, place = rng.random() < self.chance, rng.random()
        return {"dropped": torch.tensor(place if happens else -1.0)}

    def kept(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Tell which channels of patches (B, C, *S) are kept: (B, C).

        Those that are zero everywhere are missing, and are not; of the others all but the one that is dropped, unless it is the
        last.
        """
        present = image.flatten(2).any(-1)
        place = drawn["dropped"].to(image.device, non_blocking=True)[:, None]
        count = present.sum(1, keepdim=True)
        chosen = torch.minimum((place * count).long(), count - 1)
        dropped = (place >= 0) & (count > 1) & (present.cumsum(1) - 1 == chosen)
        return present & ~dropped
