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

from cmt_med.base.errors import DataError
from cmt_med.blocks.conv import channels_last
from cmt_med.data.preprocessing.pipeline import as_dictionary, invert_probabilities, preprocessing
from cmt_med.data.volumes.gate import Grid, Loaded
from cmt_med.inference.accumulator import Accumulator
from cmt_med.inference.cards import joint_card
from cmt_med.inference.model import ModelCard
from cmt_med.inference.native import labels_on_grid
from cmt_med.inference.windows import sliding_logits
from cmt_med.tasks.segmentation.postprocess import Removed
from cmt_med.tasks.task import Task


@dataclass(frozen=True)
class Windows:
    """The windows that cover a volume.

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
        """Clip the window to a volume, which saves padding, except along axes where training padded."""
        patch = self.patch or (1,) * len(self.size)
        return [min(max(n, p), w) for n, p, w in zip(volume, patch, self.size, strict=True)]


def predict_probabilities(
    network: nn.Module, image: Tensor, windows: Windows, task: Task, *, inside: Tensor | None = None
) -> Tensor:
    """Probabilities of a preprocessed volume.

    Args:
        network: in eval mode, (B, C, *s) -> logits (B, K, *s).
        image: (C, D1, D2, D3), on the network's device.
        windows: see :class:`Windows`; windows are weighted with a Gaussian.
        task: what the output means.
        inside: (D1, D2, D3), the voxels that may be anything but background; windows without any are skipped.

    Returns:
        (K, D1, D2, D3), float32; outside, the probabilities say that nothing is there.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite.
    """
    return predict(network, image, windows, task, inside=inside).values[0]


@torch.no_grad()
def predict(
    network: nn.Module, image: Tensor, windows: Windows, task: Task, *, inside: Tensor | None = None
) -> Accumulator:
    """As :func:`predict_probabilities`, (1, K, D1, D2, D3) in an accumulator, of which only slabs need to be in memory."""
    axes = windows.mirrored_axes
    mirrored = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    planes: Sequence[int | None] = windows.slice_axes or (None,)
    count = len(mirrored) * len(planes)
    total: Accumulator | None = None
    for chosen, plane in itertools.product(mirrored, planes):
        turned = image.flip([1 + axis for axis in chosen]) if chosen else image
        within = inside.flip(chosen) if chosen and inside is not None else inside
        accumulator = _slide(network, turned, windows, plane, within)
        logits = accumulator.values[0] if plane is None else accumulator.values.movedim(0, 1 + plane)  # (K, D1, D2, D3)
        if total is None:
            alone = count == 1 and plane is None
            total = accumulator if alone else Accumulator(1, len(logits), logits.shape[1:], logits.device)
        for _, rows in total.slabs():
            part = _mirrored_rows(logits, rows, chosen)
            if not bool(part.isfinite().all()):
                raise not_finite()
            found = task.probabilities(part)
            target = total.values[0][:, rows]
            target.copy_(found) if total is accumulator else target.add_(found)
            accumulator.release()
    assert total is not None  # neither is ever empty
    if count > 1 or inside is not None:
        for _, rows in total.slabs():
            part = total.values[0][:, rows].div_(count)
            if inside is not None:
                task.set_outside(part, ~inside[rows].to(part.device))
    return total


def not_finite(where: str = "") -> DataError:
    """The error for a network whose output is NaN or infinite: neither probabilities nor labels follow from it."""
    return DataError(
        "the network's output is not finite", where=where or "the logits of this case",
        why="its weights or the values of the image are too large for its arithmetic; a mask would be wrong without a sign",
        fix="look at the image's values with inspect; if all cases fail, the model's training has diverged",
        code="E_NAN",
    )  # fmt: skip


def _mirrored_rows(volume: Tensor, rows: slice, axes: Sequence[int]) -> Tensor:
    """``volume.flip(axes)[:, rows]`` of (K, D1, D2, D3), without the rest."""
    if 0 in axes:
        count = volume.shape[1]
        rows = slice(count - min(rows.stop, count), count - rows.start)
    return volume[:, rows].flip([1 + axis for axis in axes])


def _slide(
    network: nn.Module, image: Tensor, windows: Windows, plane: int | None, inside: Tensor | None
) -> Accumulator:
    """Logits (1, K, D1, D2, D3) of the volume, or (n, K, H, W) of its slices across an axis."""

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
            result: Tensor = network(channels_last(batch))
        return result

    def slide(images: Tensor, within: Tensor | None) -> Accumulator:
        return sliding_logits(
            run, images, windows.over(images.shape[2:]), overlap=windows.overlap, batch_size=windows.batch_size,
            inside=within,
        )  # fmt: skip

    if plane is None:
        return slide(image[None], None if inside is None else inside[None])
    within = None if inside is None else inside.movedim(plane, 0)
    return slide(image.movedim(1 + plane, 0), within)


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
        return invert_probabilities(self.on_its_grid(data).values[0].cpu(), data, self.transform)

    def on_its_grid(self, data: Mapping[str, Any]) -> Accumulator:
        """Probabilities (1, K, *S') of a preprocessed case on the preprocessed grid."""
        image = data["image"].as_tensor().to(self.device)
        # A network that was trained on foreground crops has not learned what lies outside: nothing is found there.
        inside = (
            data["foreground"].as_tensor()[0].to(self.device) > 0
            if self.card.preprocessing["crop_foreground"]
            else None
        )
        return predict(self.network, image, self.windows, self.card.outputs, inside=inside)


class Ensemble:
    """Models whose probabilities are averaged, before any threshold.

    Args:
        predictors: at least one; they must predict the same targets, in the same numbers.
        written: the ensemble's card in the numbers to write (:func:`cmt_med.inference.cards.renumbered`); None for the
            models' own.

    Raises:
        ConfigError: if they do not.
    """

    def __init__(self, predictors: Sequence[Predictor], *, written: ModelCard | None = None) -> None:
        self.predictors = list(predictors)
        self._own = joint_card([predictor.card for predictor in predictors])
        self.card = written if written is not None else self._own
        # Only what is finished is renumbered: two labels may share a number, and post-processing must tell them apart.
        self._numbers = np.zeros(256, dtype=np.uint8)
        for name, value in self._own.labels.items():
            self._numbers[value] = self.card.labels[name]
        first = self.predictors[0].card
        # Members that see the same grid are averaged there, and brought back to the case's grid once.
        self._alike = all(
            (p.card.preprocessing, p.card.channels) == (first.preprocessing, first.channels) for p in self.predictors
        )

    def probabilities(self, loaded: Loaded) -> Tensor:
        """Mean probabilities (K, D1, D2, D3) on the case's own grid; ``loaded`` has the joint card's channels."""
        if is_blank(loaded):
            return self.nothing(loaded.grid)
        if self._alike:
            transform = self.predictors[0].transform
            data = transform(as_dictionary(loaded))
            return invert_probabilities(self._together(data).values[0].cpu(), data, transform)
        return _mean(p.probabilities(self._for_member(loaded, p.card)) for p in self.predictors)

    def nothing(self, grid: Grid) -> Tensor:
        """Return probabilities (K, D1, D2, D3) that say: nothing is there."""
        task = self._own.outputs
        result = torch.zeros((task.channels, *grid.shape))
        task.set_outside(result, torch.ones(grid.shape, dtype=torch.bool))
        return result

    def segment(self, loaded: Loaded) -> tuple[NDArray[np.uint8], Removed]:
        """Compute what :meth:`labels` makes of :meth:`probabilities`, which are nowhere in memory as a whole.

        Two things need them there: members that see different grids, and the removal of connected parts.
        """
        scheme, settings, grid = self._own.scheme, self._own.inference, loaded.grid
        decide = scheme.decide(settings)
        if is_blank(loaded):
            return np.zeros(grid.shape, dtype=np.uint8), Removed()
        if not self._alike or settings.min_component_mm3 or decide is None:
            return self.labels(self.probabilities(loaded), grid)
        data = self.predictors[0].transform(as_dictionary(loaded))
        codes = labels_on_grid(self._together(data), data, grid, decide)
        labels, removed = scheme.painted(codes, settings, voxel_mm3=math.prod(grid.spacing))
        return self._numbers[labels], removed

    def _together(self, data: Mapping[str, Any]) -> Accumulator:
        """Mean probabilities of members that see the same grid, on it."""
        total = self.predictors[0].on_its_grid(data)
        for member in self.predictors[1:]:
            total.add_(member.on_its_grid(data))
        count = len(self.predictors)
        if count > 1:
            for _, rows in total.slabs():
                total.values[0][:, rows].div_(count)
        return total

    def labels(self, probabilities: Tensor, grid: Grid) -> tuple[NDArray[np.uint8], Removed]:
        """The label map of :meth:`probabilities`, and what post-processing took away."""
        labels, removed = self._own.scheme.labels(probabilities, self._own.inference, voxel_mm3=math.prod(grid.spacing))
        return self._numbers[labels], removed

    def _for_member(self, loaded: Loaded, card: ModelCard) -> Loaded:
        order = [self.card.channels.index(name) for name in card.channels]
        return replace(loaded, image=loaded.image[order])


def is_blank(loaded: Loaded) -> bool:
    """Tell whether every channel is constant: there is nothing to segment, whatever a network would make of it."""
    return all(bool((channel == channel.flat[0]).all()) for channel in loaded.image)


def _mean(parts: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    count = 0
    for part in parts:  # one at a time: no more than two are in memory
        total, count = part.clone() if total is None else total.add_(part), count + 1
    assert total is not None  # an ensemble has members
    return total.div_(count)
