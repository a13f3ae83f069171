"""Random changes of patches, one a module: drawn first and applied afterwards, to one patch in a data worker, or to a batch on a
GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cmt_med.config.schema import Augmentation, Data, Train
from cmt_med.data.patches.augment.affine import Affine, rotation
from cmt_med.data.patches.augment.blur import Blur
from cmt_med.data.patches.augment.contrast import Contrast
from cmt_med.data.patches.augment.dropout import ChannelDropout
from cmt_med.data.patches.augment.flip import Flip
from cmt_med.data.patches.augment.gamma import Gamma
from cmt_med.data.patches.augment.noise import Noise
from cmt_med.data.patches.augment.resolution import Resolution
from cmt_med.data.patches.augment.transform import Drawn, IntensityTransform, RandomTransform

__all__ = ["Augment", "Drawn", "augment", "rotation"]


class Augment:
    """All changes, in their order: affine, mirroring, contrast, gamma, noise, blur, resolution, dropped channels.

    Args:
        settings: probabilities and ranges.
        size: S, of the patch that is left.
        channels: of the image that are brightness; those behind them (a mask) only move.
        missing: whether cases may lack channels. They are zero, and stay so.

    Attributes:
        margin: on each side, which patches must have beyond ``size``.

    Raises:
        ConfigError: for a flip axis that patches do not have.
    """

    def __init__(self, settings: Augmentation, *, size: Sequence[int], channels: int, missing: bool = False) -> None:
        self.size, self.channels = tuple(size), channels
        dims = len(self.size)
        self.affine, self.flip = Affine(settings, self.size), Flip(settings, dims)
        self.margin = self.affine.margin
        self.brightness: tuple[IntensityTransform, ...] = (
            Contrast(settings, channels), Gamma(settings), Noise(settings), Blur(settings, dims), Resolution(settings),
        )  # fmt: skip
        self.dropout = ChannelDropout(settings)
        self.zeros = missing or settings.channel_dropout > 0

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw what happens to one patch: B = 1, without that axis. Each change draws from a stream of its own."""
        root = int(rng.integers(2**62))
        drawn: Drawn = {}
        changes: tuple[RandomTransform, ...] = (self.affine, self.flip, *self.brightness, self.dropout)
        for change in changes:
            drawn |= change.draw(np.random.default_rng([root, change.key]))
        return drawn

    @torch.no_grad()
    def __call__(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Apply what was drawn.

        Args:
            image: (B, C', *W), float32, on any device; C' is at least ``channels``.
            label: (B, 1, *W), whole numbers.
            drawn: rows of :meth:`draw`, on the CPU, so that nothing waits for the device.

        Returns:
            (B, C', *S) and (B, 1, *S), the label in the type it came in.
        """
        image, label = self.affine.apply(image, label, drawn)
        self.flip.apply(image, label, drawn)
        seen = image[:, : self.channels]  # a view: what follows is done in place
        kept = self.dropout.kept(seen, drawn) if self.zeros else None
        for change in self.brightness:
            change.apply(seen, drawn)
        if kept is not None:
            seen.masked_fill_(~kept.view(*kept.shape, *(1,) * len(self.size)), 0.0)
        return image, label

    @torch.no_grad()
    def move_boxes(self, boxes: Tensor, drawn: Drawn) -> Tensor:
        """Boxes around objects, in voxels of patches W (B, N, 2d) -> of the patches S that :meth:`__call__` makes of these."""
        return self.flip.move_boxes(self.affine.move_boxes(boxes, drawn), self.size, drawn)


def augment(data: Data, train: Train, settings: Augmentation) -> Augment:
    """The random changes of an experiment."""
    return Augment(settings, size=train.patch_size, channels=len(data.channels), missing=data.missing == "zeros")
