"""Sliding-window prediction and the way back to the input's grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from cmt_med.data.gate import Loaded
from cmt_med.data.transforms import as_dictionary, invert_probabilities, preprocessing
from cmt_med.inference.model import ModelCard

SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class Windows:
    """How a volume is covered.

    Attributes:
        size: of a window, in voxels.
        overlap: of neighbouring windows, as a share of their size.
        batch_size: windows at once.
        slice_axis: the axis that 2D slices lie across; None in 3D.
        mirrored_axes: axes of the volume whose mirrorings are averaged (test-time augmentation).
        patch: of training. A volume smaller than that is padded with zeros, since training has shown it so; None pads
            nothing.
    """

    size: tuple[int, ...]
    overlap: float
    batch_size: int
    slice_axis: int | None = None
    mirrored_axes: tuple[int, ...] = ()
    patch: tuple[int, ...] | None = None

    def over(self, volume: Sequence[int]) -> list[int]:
        """The window for a volume: no larger than it, since padding costs, but where training padded, too."""
        patch = self.patch or (1,) * len(self.size)
        return [min(max(n, p), w) for n, p, w in zip(volume, patch, self.size, strict=True)]


def predict_probabilities(network: nn.Module, image: Tensor, windows: Windows, *, regions: bool) -> Tensor:
    """Probabilities of a preprocessed volume.

    Args:
        network: in eval mode, (B, C, *s) -> logits (B, K, *s).
        image: (C, D1, D2, D3), on the network's device.
        windows: see :class:`Windows`; windows are weighted with a Gaussian.
        regions: sigmoid over overlapping regions instead of softmax over classes.

    Returns:
        (K, D1, D2, D3), float32.
    """
    axes = windows.mirrored_axes
    mirrored = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    total: Tensor | None = None
    for chosen in mirrored:
        dims = [1 + axis for axis in chosen]
        logits = _slide(network, image.flip(dims) if dims else image, windows).float()
        probabilities = logits.sigmoid() if regions else logits.softmax(0)
        probabilities = probabilities.flip(dims) if dims else probabilities
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None  # mirrored is never empty
    return total.div_(len(mirrored)) if len(mirrored) > 1 else total


def _slide(network: nn.Module, image: Tensor, windows: Windows) -> Tensor:
    def run(batch: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda):
            result: Tensor = network(batch)
        return result.float()

    def slide(batch: Tensor) -> Tensor:
        result = sliding_window_inference(
            batch, windows.over(batch.shape[2:]), windows.batch_size, run, overlap=windows.overlap, mode="gaussian"
        )
        assert isinstance(result, Tensor)
        return result

    with torch.inference_mode():
        if windows.slice_axis is None:
            return slide(image[None])[0]
        slices = image.movedim(1 + windows.slice_axis, 0)  # (n, C, H, W)
        logits = torch.cat([slide(part) for part in slices.split(SLICES_AT_ONCE)])
        return logits.movedim(0, 1 + windows.slice_axis)


def to_labels(
    probabilities: Tensor, *, classes: Sequence[int], regions: Sequence[tuple[str, Sequence[int], int]] | None,
    threshold: float,
) -> NDArray[np.uint8]:  # fmt: skip
    """A label map (D1, D2, D3) in the data set's own values from probabilities (K, D1, D2, D3).

    Regions above ``threshold`` are painted in their order, each over those before (BraTS: WT, TC, ET).
    """
    if regions is None:
        values = torch.tensor(list(classes), dtype=torch.uint8, device=probabilities.device)
        return values[probabilities.argmax(0)].cpu().numpy()
    result = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    for channel, (_, _, write) in zip(probabilities, regions, strict=True):
        result[channel > threshold] = write
    return result.cpu().numpy()


class Predictor:
    """A model ready for cases: preprocessing, windows, and the way back, as its card says."""

    def __init__(self, network: nn.Module, card: ModelCard, device: torch.device) -> None:
        self.network, self.card, self.device = network.to(device).eval(), card, device
        self.transform = preprocessing(card.preprocessing, with_label=False)
        settings = card.inference
        axes = tuple(card.mirrored_axes) if settings.tta == "flips" else ()
        self.windows = Windows(
            tuple(card.window), settings.overlap, settings.batch_size, card.slice_axis, axes, tuple(card.patch)
        )

    def probabilities(self, loaded: Loaded) -> Tensor:
        """Probabilities (K, D1, D2, D3) on the case's own grid."""
        data = self.transform(as_dictionary(loaded))
        image = data["image"].as_tensor().to(self.device)
        found = predict_probabilities(self.network, image, self.windows, regions=self.card.regions is not None)
        return invert_probabilities(found.cpu(), data, self.transform)

    def labels(self, probabilities: Tensor) -> NDArray[np.uint8]:
        """The label map of :meth:`probabilities`."""
        regions = None
        if self.card.regions is not None:
            regions = [(region.name, region.values, region.write) for region in self.card.regions]
        return to_labels(
            probabilities,
            classes=list(self.card.labels.values()),
            regions=regions,
            threshold=self.card.inference.threshold,
        )
