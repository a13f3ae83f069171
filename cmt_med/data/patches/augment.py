"""Random changes of patches, drawn first and applied afterwards: to one patch in a data worker, or to a batch on a GPU.

Letters: B patches, C channels, d = 2 or 3 spatial axes, S sizes of a patch, W = S + 2 margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Augmentation, Data, Train

GAMMA = (0.7, 1.5)
NOISE = 0.15  # largest standard deviation, in those of the image
BLUR = (0.5, 1.0)  # sigma in voxels
LOWEST_RESOLUTION = 0.5
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

Drawn = dict[str, Tensor]
"""What was drawn, a row for each patch; a change that does not happen has its neutral value.

``affine`` (B,) booleans and ``matrix`` (B, d, d), from offsets in the patch to offsets in what it is taken from, both from the
centre, in voxels; ``flip`` (B, d) booleans; ``factor`` and ``offset`` (B, C) of the brightness; ``gamma`` (B,); ``noise`` (B,),
a standard deviation, and its ``seed``; ``sigma`` (B, d) of the blur in voxels; ``zoom`` (B,) of the resolution.
"""


class Augment:
    """Affine changes, mirroring, brightness, gamma, noise, blur and low resolution, in this order.

    All numbers are drawn whether they are used or not, so that switching one change off leaves the others as they are.

    Args:
        settings: probabilities and ranges.
        size: S, of the patch that is left.
        channels: of the image that are brightness; those behind them (a mask) only move.

    Attributes:
        margin: on each side, which patches must have beyond ``size``: the affine change takes its content from there. It
            is the same on both sides, so that without an affine change the grid of the patch falls on voxels.

    Raises:
        ConfigError: for a flip axis that patches do not have.
    """

    def __init__(self, settings: Augmentation, *, size: Sequence[int], channels: int) -> None:
        self.settings, self.size, self.channels = settings, tuple(size), channels
        dims = len(self.size)
        self.margin = tuple(math.ceil(n * settings.scale / 2) if settings.affine else 0 for n in self.size)
        self.flip_axes = list(range(dims)) if settings.flip_axes is None else settings.flip_axes
        if any(axis >= dims for axis in self.flip_axes):
            raise ConfigError(
                "a flip axis does not exist", where=f"augmentation.flip_axes={self.flip_axes}",
                fix=f"use 0 to {dims - 1}",
            )  # fmt: skip

    def draw(self, rng: np.random.Generator) -> Drawn:
        """What happens to one patch (B = 1, without that axis)."""
        s, dims, c = self.settings, len(self.size), self.channels
        chance = dict(zip(_CHANCES, rng.random(len(_CHANCES)), strict=True))
        mirrored = rng.random(dims) < s.flip
        angles = rng.uniform(-1, 1, 3 if dims == 3 else 1) * math.radians(s.rotate_degrees)
        scales = 1 + rng.uniform(-1, 1, dims) * s.scale
        factors, offsets = rng.uniform(-s.strength, s.strength, (2, c))
        gamma, noise, zoom = rng.uniform(*GAMMA), rng.uniform(0, NOISE), rng.uniform(LOWEST_RESOLUTION, 1)
        sigma, seed = rng.uniform(*BLUR, dims), int(rng.integers(2**62))
        return {
            "affine": torch.tensor(chance["affine"] < s.affine),
            "matrix": torch.as_tensor(rotation(angles) * scales, dtype=torch.float32),
            "flip": torch.as_tensor([bool(mirrored[i]) and i in self.flip_axes for i in range(dims)]),
            "factor": torch.as_tensor(1 + factors * (chance["factor"] < s.intensity), dtype=torch.float32),
            "offset": torch.as_tensor(offsets * (chance["offset"] < s.intensity), dtype=torch.float32),
            "gamma": torch.tensor(gamma if chance["gamma"] < s.gamma else 1.0),
            "noise": torch.tensor(noise if chance["noise"] < s.noise else 0.0),
            "seed": torch.tensor(seed),
            "sigma": torch.as_tensor(sigma * (chance["blur"] < s.blur), dtype=torch.float32),
            "zoom": torch.tensor(zoom if chance["zoom"] < s.low_resolution else 1.0),
        }

    @torch.no_grad()
    def __call__(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Apply what was drawn.

        Args:
            image: (B, C', *W), float32, on any device; C' is at least ``channels``.
            label: (B, 1, *W), whole numbers.
            drawn: see :data:`Drawn`, on the CPU, so that nothing waits for the device.

        Returns:
            (B, C', *S) and (B, 1, *S), the label in the type it came in.
        """
        image, label = self._moved(image, label, drawn)
        for axis in self.flip_axes:
            turned = _rows(drawn["flip"][:, axis])
            if turned:
                image[turned] = image[turned].flip(2 + axis)
                label[turned] = label[turned].flip(2 + axis)
        brightness = image[:, : self.channels]  # a view: what follows is done in place
        _scale(brightness, drawn["factor"], drawn["offset"])
        _gamma(brightness, drawn["gamma"])
        for i in _rows(drawn["noise"] > 0):
            generator = torch.Generator(image.device).manual_seed(int(drawn["seed"][i]))
            noise = torch.randn(brightness.shape[1:], generator=generator, device=image.device)
            brightness[i].add_(noise, alpha=float(drawn["noise"][i]))
        for i in _rows(drawn["sigma"][:, 0] > 0):
            brightness[i] = _blurred(brightness[i], drawn["sigma"][i].tolist())
        for i in _rows(drawn["zoom"] < 1):
            brightness[i] = _coarsened(brightness[i], float(drawn["zoom"][i]))
        return image, label

    def _moved(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The affine change where there is one, else the middle: (B, C', *W) -> (B, C', *S), new tensors."""
        middle = tuple(slice(m, m + n) for m, n in zip(self.margin, self.size, strict=True))
        moved = image[(slice(None), slice(None), *middle)].clone(), label[(slice(None), slice(None), *middle)].clone()
        chosen = _rows(drawn["affine"])
        if chosen:
            grid = _grid(drawn["matrix"][chosen].to(image.device, non_blocking=True), self.size, image.shape[2:])
            for target, source, mode in zip(moved, (image, label), ("bilinear", "nearest"), strict=True):
                found = F.grid_sample(source[chosen].float(), grid, mode=mode, align_corners=False)
                target[chosen] = found.to(source.dtype)
        return moved


_CHANCES = ("affine", "factor", "offset", "gamma", "noise", "blur", "zoom")


def augment(data: Data, train: Train, settings: Augmentation) -> Augment:
    """The random changes of an experiment."""
    return Augment(settings, size=train.patch_size, channels=len(data.channels))


def _rows(chosen: Tensor) -> list[int]:
    found: list[int] = chosen.nonzero().flatten().tolist()
    return found


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation by one angle in a plane, or about the three axes in turn: (d, d)."""
    if len(angles) == 1:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = result @ turn
    return result


def _grid(matrix: Tensor, size: Sequence[int], whole: Sequence[int]) -> Tensor:
    """Where in (B, C, *whole) the voxels of patches (B, C, *size) come from, as grid_sample counts: (B, *size, d).

    That is from -1 to 1 between the outer faces of the volume, the last axis first.
    """
    dims = len(size)
    place = torch.zeros((), device=matrix.device)
    for axis, n in enumerate(size):  # a sum over axes, which is much cheaper than a product with every position
        offsets = torch.arange(n, device=matrix.device) - (n - 1) / 2
        part = offsets[:, None] * matrix[:, None, :, axis]  # (B, n, d)
        place = place + part.view(len(matrix), *(n if i == axis else 1 for i in range(dims)), dims)
    return (place * (2 / torch.tensor(whole, device=matrix.device))).flip(-1)


def _scale(image: Tensor, factor: Tensor, offset: Tensor) -> None:
    """Each channel times its factor plus its offset, in place; (B, C, *S) and (B, C)."""
    shape = (*factor.shape, *(1,) * (image.ndim - 2))
    both = torch.stack([factor, offset]).to(image.device, non_blocking=True).view(2, *shape)
    image.mul_(both[0]).add_(both[1])


def _gamma(image: Tensor, gamma: Tensor) -> None:
    """Raise brightness, from 0 at its least to 1 at its most, to a power; mean and standard deviation stay. In place.

    Range, mean and deviation are those of all channels of a patch together.
    """
    chosen = _rows(gamma != 1)
    if not chosen:
        return
    x = image[chosen].flatten(1)  # (b, C·S)
    power = gamma[chosen, None].to(x.device, non_blocking=True)
    low = x.amin(1, keepdim=True)
    span = (x.amax(1, keepdim=True) - low).clamp_min(1e-7)
    y = ((x - low) / span) ** power
    y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True).clamp_min(1e-8)
    y = y * x.std(1, keepdim=True) + x.mean(1, keepdim=True)
    image[chosen] = y.view(len(chosen), *image.shape[1:])


def _blurred(image: Tensor, sigma: Sequence[float]) -> Tensor:
    """(C, *S), smoothed along every axis; outside is zero."""
    x = image
    for axis, value in enumerate(sigma, 1):
        taps = gaussian_1d(torch.tensor(value))[None, None].to(x.device)
        rows = x.movedim(axis, -1)  # (C, ..., n)
        smooth = F.conv1d(rows.reshape(-1, 1, rows.shape[-1]), taps, padding=taps.shape[-1] // 2)
        x = smooth.view(rows.shape).movedim(-1, axis)
    return x


def _coarsened(image: Tensor, zoom: float) -> Tensor:
    """(C, *S) at a lower resolution and back, linearly both ways, so that nothing moves."""
    size, mode = image.shape[1:], _LINEAR[image.ndim - 1]
    coarse = F.interpolate(image[None], size=[max(1, round(zoom * n)) for n in size], mode=mode, align_corners=False)
    return F.interpolate(coarse, size=list(size), mode=mode, align_corners=False)[0]
