"""The foreground of a volume, and its brightness brought to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.data.volumes.gate import Loaded


def background_value(channel: NDArray[np.float32]) -> float | None:
    """The value outside the object, if there is one: that of more than half of the voxels on the volume's faces.

    Of a single slice, its edges.

    Not every data set has zero there (the five BRATS-2013 patients have a negative constant).
    """
    axes = [axis for axis in range(3) if channel.shape[axis] > 1] or range(3)
    faces = np.concatenate([np.take(channel, index, axis).ravel() for axis in axes for index in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    most = int(np.argmax(counts))
    return float(values[most]) if counts[most] > 0.5 * faces.size else None


def foreground_of(loaded: Loaded) -> NDArray[np.bool_]:
    """The object's voxels (D1, D2, D3): the case's mask, else where any channel differs from its background value.

    The whole volume where no background can be told apart.
    """
    if loaded.mask is not None:
        return loaded.mask
    result = np.zeros(loaded.grid.shape, dtype=bool)
    for channel in loaded.image:
        value = background_value(channel)
        if value is None:
            return np.ones(loaded.grid.shape, dtype=bool)
        result |= channel != value
    return result if result.any() else np.ones(loaded.grid.shape, dtype=bool)


class Normalised(MapTransform):
    """z-score per channel, over all voxels or over the foreground, with zero outside it.

    A channel that has one of ``windows`` is clipped to its lowest and highest value, which become -1 and 1, the same in every
    case. With ``clip``, brightness is first clipped to these percentiles of the same voxels: a few bright vessels would else set
    the scale of a whole scan. A channel that is constant there becomes zeros: to divide by its standard deviation would
    blow up rounding errors into an image.
    """

    def __init__(
        self, keys: Sequence[str], *, over: str, clip: Sequence[float] | None,
        windows: Sequence[Sequence[float] | None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(keys)
        self.over, self.clip, self.windows = over, clip, windows

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        inside = data["foreground"][0] > 0 if self.over == "foreground" else None
        for key in self.key_iterator(result):
            image = result[key].clone()
            for channel, window in zip(image, self.windows or [None] * len(image), strict=True):
                values = _chosen(channel, inside)
                if window is not None and not _is_constant(values):
                    middle, half = (window[0] + window[1]) / 2, (window[1] - window[0]) / 2
                    channel.clamp_(*window).sub_(middle).div_(half)
                    continue
                if self.clip is not None:
                    low, high = np.percentile(values.numpy(), self.clip)
                    channel.clamp_(float(low), float(high))
                    values = _chosen(channel, inside)
                if _is_constant(values):
                    channel.zero_()
                    continue
                mean, spread = values.mean(), values.std(correction=0).clamp_min(1e-6)
                channel.sub_(mean).div_(spread)
            result[key] = image if inside is None else image.mul_(inside)
        return result


def _chosen(channel: Tensor, inside: Tensor | None) -> Tensor:
    """The values (n,) of a channel where ``inside`` is true, or all of them, which may be a view.

    By NumPy: torch would make three 64-bit indices for each voxel, six times the volume itself.
    """
    if inside is None:
        return torch.as_tensor(channel.numpy().reshape(-1))
    return torch.from_numpy(channel.numpy()[inside.numpy()])


def _is_constant(values: Tensor) -> bool:
    """Tell whether values differ by no more than resampling a constant leaves of it: eight roundings in float32."""
    low, high = (float(v) for v in torch.aminmax(values))
    return high - low <= 8 * torch.finfo(torch.float32).eps * max(abs(low), abs(high))
