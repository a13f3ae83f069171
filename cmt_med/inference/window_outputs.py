"""What a network says of each window of a preprocessed image, where that is no map that could be averaged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.blocks.conv import channels_last
from cmt_med.inference.predict import Windows, not_finite
from cmt_med.inference.windows import require_few_windows, window_starts


@dataclass(frozen=True)
class WindowBatch:
    """Some windows of an image.

    Attributes:
        output: of the network, (B, ...).
        starts: of each window in voxels of the image; below 0 where the image was padded.
        size: of windows.
    """

    output: Tensor
    starts: Sequence[NDArray[np.float64]]
    size: Sequence[int]


@torch.no_grad()
def window_outputs(network: nn.Module, plane: Tensor, windows: Windows) -> Iterator[WindowBatch]:
    """Run a network over the windows of an image (C, *S), in the order of their places, the last axis first.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite; E_SIZE for more than 200,000 windows.
    """
    size = windows.over(plane.shape[1:])
    pads = [max(0, w - n) // 2 for n, w in zip(plane.shape[1:], size, strict=True)]
    after = [max(0, w - n) - p for n, w, p in zip(plane.shape[1:], size, pads, strict=True)]
    if any(pads) or any(after):
        plane = F.pad(plane, [edge for pair in reversed(list(zip(pads, after, strict=True))) for edge in pair])
    require_few_windows((1, *plane.shape[1:]), size, windows.overlap)
    starts = itertools.product(
        *(window_starts(n, w, windows.overlap) for n, w in zip(plane.shape[1:], size, strict=True))
    )
    while places := list(itertools.islice(starts, windows.batch_size)):
        patches = torch.stack(
            [plane[(slice(None), *(slice(s, s + w) for s, w in zip(place, size, strict=True)))] for place in places]
        )
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=patches.is_cuda):
            output: Tensor = network(channels_last(patches))
        if not bool(output.isfinite().all()):
            raise not_finite()
        yield WindowBatch(output, [np.array(place, float) - np.array(pads) for place in places], size)


def flat_axis(windows: Windows) -> int | None:
    """The axis that 2D images lie across as volumes of one slice; None in 3D."""
    return windows.slice_axes[0] if windows.slice_axes else None
