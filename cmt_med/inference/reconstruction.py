"""What a pretrained network makes of hidden blocks: of the same patches and blocks of a case each time."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmt_med.blocks.conv import channels_last
from cmt_med.inference.predict import not_finite
from cmt_med.tasks.task import Task

PATCHES = 4
"""Of a case."""


@dataclass(frozen=True)
class Reconstruction:
    """Patches of one case.

    Attributes:
        whole, shown, found: (N, C, *S), the image, what the network was shown, and what it answered.
        hidden: (N, 1, *S), what was hidden.
    """

    whole: Tensor
    shown: Tensor
    found: Tensor
    hidden: Tensor

    @property
    def error(self) -> float:
        """The mean squared error of hidden voxels."""
        wrong = (self.found - self.whole[:, : self.found.shape[1]]).square()
        return float(wrong[self.hidden.expand_as(wrong)].mean())

    @property
    def variance(self) -> float:
        """The variance of hidden voxels."""
        values = self.whole[:, : self.found.shape[1]]
        return float(values[self.hidden.expand_as(values)].var(correction=0))


@torch.no_grad()
def reconstructed(
    network: nn.Module, image: Tensor, patch: Sequence[int], slice_axes: Sequence[int], task: Task, name: str
) -> Reconstruction:
    """Hide blocks of patches of a preprocessed image, and let the network tell them.

    Args:
        network: in eval mode.
        image: (C, D1, D2, D3), on the network's device.
        patch: of training; where the image is smaller, it is padded with zeros.
        slice_axes: the axes that 2D slices lie across; empty in 3D.
        task: which hides.
        name: of the case, on which depends what is hidden.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(zlib.crc32(name.encode()))
    try:
        patches = torch.stack([_patch(image, patch, slice_axes) for _ in range(PATCHES)])
        batch = task.prepared({"image": patches})
    finally:
        torch.random.set_rng_state(state)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=patches.is_cuda):
        found: Tensor = network(channels_last(batch["image"]))
    if not bool(found.isfinite().all()):
        raise not_finite()
    return Reconstruction(patches, batch["image"], found.float(), batch["hidden"])


def _patch(image: Tensor, patch: Sequence[int], slice_axes: Sequence[int]) -> Tensor:
    """A random patch, around the middle rather than at the borders, where images are empty."""
    size = list(patch)
    axis = slice_axes[int(torch.randint(len(slice_axes), ()))] if slice_axes else None
    if axis is not None:
        size.insert(axis, 1)
    pads = [max(0, n - have) for n, have in zip(size, image.shape[1:], strict=True)]
    if any(pads):
        image = F.pad(image, [edge for p in reversed(pads) for edge in (p // 2, p - p // 2)])
    box = []
    for n, have in zip(size, image.shape[1:], strict=True):
        room = have - n
        low, high = room // 4, room - room // 4
        start = low + int(torch.randint(high - low + 1, ()))
        box.append(slice(start, start + n))
    cut = image[(slice(None), *box)]
    return cut if axis is None else cut.squeeze(1 + axis)
