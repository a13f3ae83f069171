"""Sliding windows without waste: only windows that hold something are computed, straight into one buffer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.nn import functional as F

from cmt_med.base.errors import DataError
from cmt_med.inference.accumulator import Accumulator

LEAST_WEIGHT = 1e-3  # of the largest: a corner that one window alone covers still has a weight to divide by
GAUSSIAN_SIGMA = 0.125  # of the window's edge
MOST_WINDOWS = 200_000
"""Of a case: a CT of 512 × 512 × 600 voxels in windows of 64³ with the usual overlap takes 4,050."""


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """The positions of windows along one axis: evenly, the last one flush with the end.

    Args:
        length: of the axis, at least ``window``.
        window: edge of a window.
        overlap: of neighbours, as a share of the window.
    """
    step = max(1, int(window * (1 - overlap)))
    return sorted({min(start, length - window) for start in range(0, length - window + step, step)})


def require_few_windows(images: Sequence[int], window: Sequence[int], overlap: float) -> None:
    """Refuse to cover images with more windows than any sensible setting needs, before the first one is computed.

    Args:
        images: number of images, and their extent along each axis.
        window: edges, no longer than the images.
        overlap: of neighbouring windows, as a share of their size.

    Raises:
        DataError: E_SIZE.
    """
    count, *size = images
    per_axis = [len(window_starts(n, w, overlap)) for n, w in zip(size, window, strict=True)]
    total = count * math.prod(per_axis)
    if total > MOST_WINDOWS:
        raise DataError(
            f"the case would take {total:,} windows",
            where=f"windows of {' × '.join(map(str, window))} with overlap {overlap:g}",
            why=f"more than {MOST_WINDOWS:,} would keep the machine busy for days",
            fix="lower the overlap (infer --overlap), or train with a larger inference.window", code="E_SIZE",
        )  # fmt: skip


def sliding_logits(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    window: Sequence[int],
    *,
    overlap: float,
    batch_size: int,
    inside: Tensor | None = None,
) -> Accumulator:
    """Logits of images of any size, averaged over windows with Gaussian weights.

    A voxel that windows with ``inside`` cover is computed from all windows that cover it: skipping the empty ones changes
    no voxel inside.

    Args:
        network: (B, C, *w) -> (B, K, *w).
        images: (N, C, *S).
        window: edges; axes of the image that are shorter are padded with zeros on both sides.
        overlap: of neighbouring windows, as a share of their size.
        batch_size: windows at once, taken across images.
        inside: (N, *S) booleans; windows without any are not computed. None computes all.

    Returns:
        An accumulator of (N, K, *S), float32; zero where no window was computed.

    Raises:
        DataError: E_SIZE for more than 200,000 windows.
    """
    padding = [
        (max(0, w - n) // 2, max(0, w - n) - max(0, w - n) // 2) for n, w in zip(images.shape[2:], window, strict=True)
    ]
    if any(before or after for before, after in padding):
        flat = [edge for pair in reversed(padding) for edge in pair]
        images = F.pad(images, flat)
        inside = F.pad(inside, flat) if inside is not None else None
    require_few_windows((images.shape[0], *images.shape[2:]), window, overlap)
    weight = _weight(tuple(window), images.device)
    result: Accumulator | None = None
    total: Tensor | None = None
    for places in _batches(images, window, overlap, batch_size, inside):
        patches = torch.stack([images[n][(slice(None), *box)] for n, box in places])
        logits = network(patches).float()
        if result is None or total is None:
            result = Accumulator(images.shape[0], logits.shape[1], images.shape[2:], images.device)
            total = torch.zeros((images.shape[0], *images.shape[2:]), device=result.values.device)
            weight = weight.to(total.device)
        for (n, box), patch in zip(places, logits.to(total.device), strict=True):
            result.add_window(n, box, patch, weight)
            total[n][box].add_(weight)
    if result is None or total is None:  # nothing inside: one window tells how many channels there are
        corner = images[0][(slice(None), *(slice(0, w) for w in window))]
        probe = network(corner[None])
        result = Accumulator(images.shape[0], probe.shape[1], images.shape[2:], images.device)
    else:
        total.clamp_(min=torch.finfo(total.dtype).tiny)
        for some, rows in result.slabs():
            result.values[some, :, rows].div_(total[some, rows][:, None])
    return result.crop([slice(before, n - after) for n, (before, after) in zip(images.shape[2:], padding, strict=True)])


def _batches(
    images: Tensor, window: Sequence[int], overlap: float, batch_size: int, inside: Tensor | None
) -> Iterator[list[tuple[int, tuple[slice, ...]]]]:
    grids = [window_starts(n, w, overlap) for n, w in zip(images.shape[2:], window, strict=True)]
    places = (
        (n, box)
        for n in range(images.shape[0])
        for starts in itertools.product(*grids)
        for box in [tuple(slice(s, s + w) for s, w in zip(starts, window, strict=True))]
        if inside is None or bool(inside[n][box].any())
    )
    while batch := list(itertools.islice(places, batch_size)):
        yield batch


def _weight(window: tuple[int, ...], device: torch.device) -> Tensor:
    weight = compute_importance_map(window, mode="gaussian", sigma_scale=GAUSSIAN_SIGMA, device=device)
    return weight.clamp_(min=max(float(weight[weight > 0].min()), LEAST_WEIGHT))
