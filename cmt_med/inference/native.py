"""From probabilities on the network's grid to labels on the case's own, slab by slab, without ever holding its probabilities.

Linear interpolation cannot change a decision on which all neighbours agree: only where they differ are probabilities
interpolated at all. So neither memory nor most of the time depends on the number of classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.data.volumes.grid import Grid
from cmt_med.inference.accumulator import SLAB, Accumulator

SAME = 1e-3
"""Voxels by which two grids may differ and still be taken for the same, as MONAI's resampling does."""

Decide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Axis:
    """The positions of one axis of the case's grid along an axis of the network's grid.

    Attributes:
        low, high: neighbours of each position, -1 and n where they lie outside the crop.
        share: of the upper neighbour.
    """

    low: Tensor
    high: Tensor
    share: Tensor


def axes_between(preprocessed: Mapping[str, Any], grid: Grid) -> tuple[list[int], list[Axis]]:
    """Find how the case's grid lies in the network's.

    Returns:
        For each axis of the network's grid, the case's axis that runs along it, and its positions.
    """
    image = preprocessed["image"]
    size = tuple(image.shape[1:])
    crops = [step for step in image.applied_operations if "Crop" in str(step["class"])]
    full = tuple(int(n) for n in crops[-1]["orig_size"]) if crops else size
    cut = [int(n) for n in crops[-1]["extra_info"]["cropped"][::2]] if crops else [0, 0, 0]
    to_network = np.linalg.solve(image.affine.numpy().astype(np.float64), grid.affine)
    order = [int(np.argmax(np.abs(row[:3]))) for row in to_network[:3]]
    places = [(float(to_network[i, j]), float(to_network[i, 3])) for i, j in enumerate(order)]
    lengths = [grid.shape[j] for j in order]
    if all(abs(abs(scale) - 1) < SAME for scale, _ in places) and tuple(lengths) == full:
        places = [(round(scale), round(offset)) for scale, offset in places]
    return order, [
        _axis(scale, offset + start, length=length, full=whole, start=start, count=count)
        for (scale, offset), start, length, whole, count in zip(places, cut, lengths, full, size, strict=True)
    ]


def _axis(scale: float, offset: float, *, length: int, full: int, start: int, count: int) -> Axis:
    place = (scale * torch.arange(length, dtype=torch.float64) + offset).clamp_(0, full - 1)
    below = place.floor()
    low = below.long()
    high = (low + 1).clamp_(max=full - 1)
    return Axis((low - start).clamp_(-1, count), (high - start).clamp_(-1, count), place - below)


def labels_on_grid(
    accumulator: Accumulator, preprocessed: Mapping[str, Any], grid: Grid, decide: Decide
) -> NDArray[np.uint8]:
    """Decisions (D1, D2, D3) on the case's grid, as if the probabilities had been brought there before.

    Args:
        accumulator: probabilities (1, K, *S') on the network's grid.
        preprocessed: the case as the network saw it, whose image knows how it came about.
        grid: the case's.
        decide: probabilities (K, n) to decisions (n,), uint8; where all probabilities are 0 the decision is 0. Equal
            decisions at two points must be the decision in between.
    """
    order, axes = axes_between(preprocessed, grid)
    codes = _decided(accumulator, decide)
    result = np.empty([grid.shape[j] for j in order], dtype=np.uint8)
    rows = max(1, SLAB // (8 * result.shape[1] * result.shape[2]))
    for start in range(0, result.shape[0], rows):
        here = slice(start, start + rows)
        lowest = highest = codes
        for dim, axis in enumerate(axes):
            low, high = (i[here] if dim == 0 else i for i in (axis.low, axis.high))
            lowest = torch.minimum(lowest.index_select(dim, low + 1), lowest.index_select(dim, high + 1))
            highest = torch.maximum(highest.index_select(dim, low + 1), highest.index_select(dim, high + 1))
        split = (lowest != highest).nonzero()
        split[:, 0] += start
        lowest[lowest != highest] = _between(accumulator, axes, split, decide)
        result[here] = lowest.numpy()
    return np.ascontiguousarray(np.moveaxis(result, range(3), order))


def _decided(accumulator: Accumulator, decide: Decide) -> Tensor:
    """Decisions on the network's grid, with a border of zeros."""
    size = accumulator.values.shape[2:]
    codes = torch.zeros([n + 2 for n in size], dtype=torch.uint8)
    inner = codes[1:-1, 1:-1, 1:-1]
    for _, rows in accumulator.slabs():
        part = accumulator.values[0][:, rows]
        inner[rows] = decide(part.flatten(1)).view(part.shape[1:]).cpu()
    return codes


def _between(accumulator: Accumulator, axes: Sequence[Axis], points: Tensor, decide: Decide) -> Tensor:
    """Decisions at points (n, 3) of the case's grid, from interpolated probabilities: (n,)."""
    values = accumulator.values[0].movedim(0, -1)  # (*S', K), a row of memory for each voxel
    size = values.shape[:3]
    found = torch.empty(len(points), dtype=torch.uint8)
    piece = max(1, SLAB // (8 * values.shape[-1]))
    for begin in range(0, len(points), piece):
        chosen = points[begin : begin + piece].unbind(1)
        mean = torch.zeros((len(chosen[0]), values.shape[-1]), dtype=torch.float64)
        for corner in itertools.product((False, True), repeat=3):
            share = torch.ones(len(mean), dtype=torch.float64)
            places = []
            for axis, i, upper, n in zip(axes, chosen, corner, size, strict=True):
                place = (axis.high if upper else axis.low)[i]
                share *= axis.share[i] if upper else 1 - axis.share[i]
                share[(place < 0) | (place >= n)] = 0
                places.append(place.clamp(0, n - 1).to(values.device))
            mean.addcmul_(values[tuple(places)].cpu().double(), share[:, None])
        found[begin : begin + piece] = decide(mean.float().T)
        accumulator.release()
    return found
