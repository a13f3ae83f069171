"""The dense head's maps: a heat map of centres for each class, and the distances to the faces of the box around a position.

Anchor-free: heat maps and focal loss as of CenterNet (Zhou et al. 2019, section 3), and faces learned in the whole middle of a
box, weighted by its Gaussian, as of TTFNet (Liu et al., AAAI 2020, section 4), which needs far fewer steps than one position.

Letters: B patches, K classes, d axes, S sizes of a patch, N boxes at the most, s the stride of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmt_med.tasks.detection.boxes import giou

CORE = 0.54
"""Part of a box along each axis in which it is learned (alpha of TTFNet)."""


def stride_of(maps: Sequence[int], size: Sequence[int]) -> int:
    """Voxels of a patch along each edge of a position of its maps.

    Raises:
        ValueError: if no power of two up to 32 leads from one to the other.
    """
    for stride in (1, 2, 4, 8, 16, 32):
        if all(math.ceil(n / stride) == m for n, m in zip(size, maps, strict=True)):
            return stride
    raise ValueError(f"maps of {tuple(maps)} for patches of {tuple(size)} have no stride")


def faces(distances: Tensor, stride: int) -> Tensor:
    """Boxes (B, 2d, *S/s), in voxels, from the raw distances (B, 2d, *S/s): e to their power, in units of 4 strides."""
    reach = 4.0 * stride * distances.clamp(-8, 4).exp()
    centre = _centres(distances.shape[2:], stride, distances.device)
    low, high = reach.chunk(2, 1)
    return torch.cat([centre - low, centre + high], dim=1)


def _centres(maps: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """The place of each position in voxels: (d, *S/s)."""
    axes = [(torch.arange(n, device=device) + 0.5) * stride for n in maps]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@torch.no_grad()
def centre_targets(
    boxes: Tensor, classes: Tensor, ignored: Tensor, maps: Sequence[int], stride: int, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the maps of patches should be.

    Args:
        boxes: (B, N, 2d), in voxels of the patch.
        classes: (B, N), from 0 on; -1 where there is none.
        ignored: (B, N), boxes in which nothing is learned.
        maps: sizes of the maps.
        stride: of the maps.
        count: K.

    Returns:
        Heat maps (B, K, *maps), 1 at the position next to each centre and less around it; whether they are learned (B, 1, *maps);
        boxes by position (B, 2d, *maps); and their weights (B, *maps), of which those of a box have the sum 1,
        where no other lies over it.
    """
    dims, device = len(maps), boxes.device
    place = _centres(maps, stride, device)
    heat = torch.zeros((len(boxes), count, *maps), device=device)
    known = torch.ones((len(boxes), 1, *maps), device=device, dtype=torch.bool)
    target = torch.zeros((len(boxes), 2 * dims, *maps), device=device)
    weight = torch.zeros((len(boxes), *maps), device=device)
    volumes = (boxes[..., dims:] - boxes[..., :dims]).prod(-1)
    for i in range(len(boxes)):
        order = torch.argsort(volumes[i], descending=True)  # the smaller ones last, on top
        own: list[tuple[tuple[int, ...], Tensor, float]] = []
        for n in order.tolist():
            if classes[i, n] < 0:
                continue
            low, high = (part.view(dims, *(1,) * dims) for part in boxes[i, n].chunk(2))
            if bool(ignored[i, n]):
                known[i, 0] &= ~((place > low) & (place < high)).all(0)
                continue
            middle, size = (low + high) / 2, high - low
            spread = (size * CORE / 6).clamp_min(stride / 3)
            gauss = torch.exp(-0.5 * ((place - middle) / spread).square().sum(0))
            nearest = tuple(
                min(max(int(m / stride), 0), maps[axis] - 1) for axis, m in enumerate(middle.flatten().tolist())
            )
            core = ((place - middle).abs() < (size * CORE / 2).clamp_min(stride / 2)).all(0)
            gauss = gauss * core
            gauss[nearest] = 1.0
            where = gauss > 0
            torch.maximum(heat[i, classes[i, n]], gauss, out=heat[i, classes[i, n]])
            target[i][:, where] = boxes[i, n][:, None]
            weight[i][where] = gauss[where] / gauss.sum()
            own.append((nearest, boxes[i, n], float(1 / gauss.sum())))
        for nearest, box, share in own:  # its own position tells of a box, though a smaller one lies over it
            target[i].movedim(0, -1)[nearest] = box
            weight[i][nearest] = share
    return heat, known, target, weight


def centre_loss(
    output: Tensor, boxes: Tensor, classes: Tensor, ignored: Tensor, size: Sequence[int], box_weight: float
) -> Tensor:
    """The loss of maps (B, K + 2d, *S/s): focal loss of the heat maps, and 1 - GIoU of the boxes, over the number of boxes.

    Arguments as of :func:`centre_targets`; ``size`` is S.
    """
    output = output.float()
    dims = len(size)
    count = output.shape[1] - 2 * dims
    stride = stride_of(output.shape[2:], size)
    heat, known, target, weight = centre_targets(boxes, classes, ignored, output.shape[2:], stride, count)
    number = ((classes >= 0) & ~ignored).sum().clamp_min(1)
    found = faces(output[:, count:], stride)
    agreement = giou(found.movedim(1, -1), target.movedim(1, -1))
    of_boxes = (weight * (1 - agreement)).sum() / number
    return (focal(output[:, :count], heat) * known).sum() / number + box_weight * of_boxes


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """The focal loss of heat maps by position (CenterNet, equation 1, alpha 2 and beta 4): of the shape of its arguments."""
    chance = logits.sigmoid()
    at_centre = -(1 - chance).square() * F.logsigmoid(logits)
    beside = -(1 - heat).pow(4) * chance.square() * F.logsigmoid(-logits)
    return torch.where(heat == 1, at_centre, beside)


def peaks(output: Tensor, size: Sequence[int], *, least: float, most: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The boxes of each patch, from its maps (B, K + 2d, *S/s): at the maxima of the heat maps among their neighbours.

    Args:
        output: of the network.
        size: S.
        least: score of a box.
        most: boxes of a patch, those of the largest scores.

    Returns:
        For each patch boxes (n, 2d) in voxels, classes (n,) from 0 on, and scores (n,).
    """
    output = output.float()
    dims = len(size)
    count = output.shape[1] - 2 * dims
    heat = output[:, :count].sigmoid()
    pool = F.max_pool3d if dims == 3 else F.max_pool2d
    heat = heat * (pool(heat, 3, stride=1, padding=1) == heat)
    boxes = faces(output[:, count:], stride_of(output.shape[2:], size)).flatten(2)
    result = []
    for i in range(len(output)):
        flat = heat[i].flatten(1)
        scores, at = flat.flatten().topk(min(most, flat.numel()))
        kept = scores >= max(least, 1e-9)
        scores, at = scores[kept], at[kept]
        classes, position = at // flat.shape[1], at % flat.shape[1]
        result.append((boxes[i][:, position].T, classes, scores))
    return result
