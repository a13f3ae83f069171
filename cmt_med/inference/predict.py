"""Sliding-window prediction and the way back to the input's grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last
from cmt_med.data.gate import Grid, Loaded
from cmt_med.data.transforms import as_dictionary, invert_probabilities, preprocessing
from cmt_med.inference.model import ModelCard, joint_card
from cmt_med.inference.postprocess import Removed, to_labels
from cmt_med.inference.sliding import sliding_logits


@dataclass(frozen=True)
class Windows:
    """How a volume is covered.

    Attributes:
        size: of a window, in voxels.
        overlap: of neighbouring windows, as a share of their size.
        batch_size: windows at once.
        slice_axes: the axes that 2D slices lie across, whose predictions are averaged; empty in 3D.
        mirrored_axes: axes of the volume whose mirrorings are averaged (test-time augmentation).
        patch: of training. A volume smaller than that is padded with zeros, since training has shown it so; None pads
            nothing.
    """

    size: tuple[int, ...]
    overlap: float
    batch_size: int
    slice_axes: tuple[int, ...] = ()
    mirrored_axes: tuple[int, ...] = ()
    patch: tuple[int, ...] | None = None

    def over(self, volume: Sequence[int]) -> list[int]:
        """The window for a volume: no larger than it, since padding costs, but where training padded, too."""
        patch = self.patch or (1,) * len(self.size)
        return [min(max(n, p), w) for n, p, w in zip(volume, patch, self.size, strict=True)]


def predict_probabilities(
    network: nn.Module, image: Tensor, windows: Windows, *, regions: bool, inside: Tensor | None = None
) -> Tensor:
    """Probabilities of a preprocessed volume.

    Args:
        network: in eval mode, (B, C, *s) -> logits (B, K, *s).
        image: (C, D1, D2, D3), on the network's device.
        windows: see :class:`Windows`; windows are weighted with a Gaussian.
        regions: sigmoid over overlapping regions instead of softmax over classes.
        inside: (D1, D2, D3), the voxels that may be anything but background; windows without any are skipped.

    Returns:
        (K, D1, D2, D3), float32; outside, regions have the probability 0 and the background class 1.
    """
    axes = windows.mirrored_axes
    mirrored = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    planes: Sequence[int | None] = windows.slice_axes or (None,)
    total: Tensor | None = None
    for chosen, plane in itertools.product(mirrored, planes):
        turned = image.flip([1 + axis for axis in chosen]) if chosen else image
        within = inside.flip(chosen) if chosen and inside is not None else inside
        logits = _slide(network, turned, windows, plane, within)
        probabilities = logits.sigmoid() if regions else logits.softmax(0)
        probabilities = probabilities.flip([1 + axis for axis in chosen]) if chosen else probabilities
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None  # neither is ever empty
    count = len(mirrored) * len(planes)
    if count > 1:
        total.div_(count)
    if inside is not None:
        outside = ~inside
        total[:, outside] = 0.0
        if not regions:
            total[0, outside] = 1.0
    return total


def _slide(network: nn.Module, image: Tensor, windows: Windows, plane: int | None, inside: Tensor | None) -> Tensor:
    """Logits (K, D1, D2, D3), of the volume or of its slices across an axis."""

    def run(batch: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
            result: Tensor = network(channels_last(batch))
        return result

    def slide(images: Tensor, within: Tensor | None) -> Tensor:
        return sliding_logits(
            run, images, windows.over(images.shape[2:]), overlap=windows.overlap, batch_size=windows.batch_size,
            inside=within,
        )  # fmt: skip

    with torch.inference_mode():
        if plane is None:
            return slide(image[None], None if inside is None else inside[None])[0]
        within = None if inside is None else inside.movedim(plane, 0)
        slices = image.movedim(1 + plane, 0)  # (n, C, H, W)
        return slide(slices, within).movedim(0, 1 + plane)


class Predictor:
    """A model ready for cases: preprocessing, windows, and the way back, as its card says."""

    def __init__(self, network: nn.Module, card: ModelCard, device: torch.device) -> None:
        self.network, self.card, self.device = network.to(device).eval(), card, device
        self.transform = preprocessing(card.preprocessing, with_label=False)
        settings = card.inference
        axes = tuple(card.mirrored_axes) if settings.tta == "flips" else ()
        self.windows = Windows(
            tuple(card.window), settings.overlap, settings.batch_size, tuple(card.slice_axes), axes, tuple(card.patch)
        )

    def probabilities(self, loaded: Loaded) -> Tensor:
        """Probabilities (K, D1, D2, D3) on the case's own grid."""
        data = self.transform(as_dictionary(loaded))
        return invert_probabilities(self.on_its_grid(data), data, self.transform)

    def on_its_grid(self, data: Mapping[str, Any]) -> Tensor:
        """Probabilities (K, *S') of a preprocessed case on the preprocessed grid, on the CPU."""
        image = data["image"].as_tensor().to(self.device)
        # A network that was trained on foreground crops has not learned what lies outside: nothing is found there.
        inside = (
            data["foreground"].as_tensor()[0].to(self.device) > 0
            if self.card.preprocessing["crop_foreground"]
            else None
        )
        regions = self.card.regions is not None
        return predict_probabilities(self.network, image, self.windows, regions=regions, inside=inside).cpu()


class Ensemble:
    """Models whose probabilities are averaged, before any threshold.

    Args:
        predictors: at least one; they must predict the same targets, in the same numbers.

    Raises:
        ConfigError: if they do not.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = list(predictors)
        self.card = joint_card([predictor.card for predictor in predictors])
        first = self.predictors[0].card
        # Members that see the same grid are averaged there, and brought back to the case's grid once.
        self._alike = all(
            (p.card.preprocessing, p.card.channels) == (first.preprocessing, first.channels) for p in self.predictors
        )

    def probabilities(self, loaded: Loaded) -> Tensor:
        """Mean probabilities (K, D1, D2, D3) on the case's own grid; ``loaded`` has the joint card's channels."""
        if self._alike:
            transform = self.predictors[0].transform
            data = transform(as_dictionary(loaded))
            return invert_probabilities(_mean(p.on_its_grid(data) for p in self.predictors), data, transform)
        return _mean(p.probabilities(self._for_member(loaded, p.card)) for p in self.predictors)

    def labels(self, probabilities: Tensor, grid: Grid) -> tuple[NDArray[np.uint8], Removed]:
        """The label map of :meth:`probabilities`, and what post-processing took away."""
        return to_labels(
            probabilities,
            self.card.inference,
            targets=self.card.outputs,
            regions=self.card.regions is not None,
            voxel_mm3=math.prod(grid.spacing),
        )

    def _for_member(self, loaded: Loaded, card: ModelCard) -> Loaded:
        order = [self.card.channels.index(name) for name in card.channels]
        return replace(loaded, image=loaded.image[order])


def _mean(parts: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    count = 0
    for part in parts:  # one at a time: no more than two are in memory
        total, count = part.clone() if total is None else total.add_(part), count + 1
    assert total is not None  # an ensemble has members
    return total.div_(count)
