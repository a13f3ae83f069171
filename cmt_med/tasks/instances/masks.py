"""The loss of a set of masks: each object of a patch has one query, found by the Hungarian method.

Costs and weights are those of Mask2Former (Cheng et al., CVPR 2022, section 3.2) for masks, and of DINO for classes and boxes, as
Mask DINO (Li et al., CVPR 2023) joins them. Masks are compared at their stride.

Letters: B patches, N objects at the most, d axes, P positions of a mask, m its stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmt_med.networks.heads.mask_queries import MaskOutput
from cmt_med.networks.heads.queries import GROUPS
from cmt_med.tasks.detection.centres import centre_loss
from cmt_med.tasks.detection.sets import OF_CLASSES, cheapest, costs, face_loss, focal_loss, noised_loss

OF_CROSS_ENTROPY, OF_DICE = 5.0, 5.0
AROUND = 4.0
"""The cross-entropy of a mask is divided by so many times its object's box, so that small objects count as large ones do."""


def numbered_objects(label: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """The objects of patches, which may be parts of larger ones.

    Args:
        label: numbers of objects (B, 1, *S), in any order, 0 for the background.
        least: voxels of an object in a patch; what has fewer is left out.

    Returns:
        Numbers (B, 1, *S), from 1 on in each patch; boxes (B, N, 2d) in voxels; and which there are (B, N).
    """
    dims = label.ndim - 2
    renumbered = torch.zeros_like(label, dtype=torch.int64)
    listed = []
    for i in range(len(label)):
        values, order, counts = label[i, 0].unique(return_inverse=True, return_counts=True)
        kept = (values > 0) & (counts >= least)
        renumbered[i, 0] = torch.where(kept, kept.cumsum(0), 0)[order]
        listed.append(_boxes(renumbered[i, 0], int(kept.sum())))
    most = max(len(rows) for rows in listed)
    boxes = label.new_zeros((len(label), most, 2 * dims), dtype=torch.float32)
    there = torch.zeros((len(label), most), dtype=torch.bool, device=label.device)
    for i, rows in enumerate(listed):
        boxes[i, : len(rows)], there[i, : len(rows)] = rows, True
    return renumbered, boxes, there


def _boxes(numbers: Tensor, count: int) -> Tensor:
    """Boxes (count, 2d) of the numbers from 1 to count."""
    at = numbers.nonzero()
    which = (numbers[tuple(at.T)] - 1)[:, None].expand(-1, numbers.ndim)
    low = torch.full((count, numbers.ndim), max(numbers.shape), device=numbers.device)
    high = torch.zeros((count, numbers.ndim), dtype=torch.int64, device=numbers.device)
    low = low.scatter_reduce(0, which, at, "amin")
    high = high.scatter_reduce(0, which, at + 1, "amax")
    return torch.cat([low, high], 1).float()


def masks_of(numbers: Tensor, count: int, stride: int) -> Tensor:
    """The share of each position that an object covers (count, P), from numbers (*S) from 1 on."""
    cells = [math.ceil(n / stride) for n in numbers.shape]
    place = torch.zeros((), dtype=torch.int64, device=numbers.device)
    for axis, (n, k) in enumerate(zip(numbers.shape, cells, strict=True)):
        along = torch.arange(n, device=numbers.device) // stride
        place = place * k + along.view([-1 if i == axis else 1 for i in range(numbers.ndim)])
    total = math.prod(cells)
    found = torch.bincount((numbers * total + place).flatten(), minlength=(count + 1) * total).view(count + 1, total)
    return found[1:] / found.sum(0)


def mask_loss(output: MaskOutput, numbers: Tensor, boxes: Tensor, there: Tensor, box_weight: float) -> Tensor:
    """The mean over layers of the loss of queries and of noised objects, and that of the dense head.

    Args:
        output: of the network in training.
        numbers, boxes, there: see :func:`numbered_objects`.
        box_weight: of the loss of boxes, beside those of classes and masks.
    """
    size = numbers.shape[2:]
    stride = mask_stride(size, output.masks.shape[3:])
    classes = there.long() - 1
    number = there.sum().clamp_min(1)
    scale = torch.tensor(size, device=boxes.device, dtype=torch.float32).repeat(2)
    total = centre_loss(output.dense, boxes, classes, torch.zeros_like(there), size, box_weight)
    layers, copies = len(output.classes), GROUPS if output.noised_classes.shape[2] else 0
    wanted = [masks_of(numbers[i, 0], int(there[i].sum()), stride) for i in range(len(numbers))]
    # Taken apart at once: the gradient of each single index would be as large as the whole.
    for said, placed, all_drawn, noised_said, noised_placed, noised_drawn in zip(
        output.classes,
        output.boxes,
        output.masks,
        output.noised_classes,
        output.noised_boxes,
        output.noised_masks,
        strict=True,
    ):
        part = boxes.new_zeros(())
        for i, (logits, found, drawn) in enumerate(
            zip(said.float(), placed.float(), all_drawn.float().flatten(2), strict=True)
        ):
            masks, own = wanted[i], boxes[i][there[i]]
            around = _around(own, stride)
            rows, columns = assignment(logits.detach(), found.detach(), drawn.detach(), own, masks, scale, around)
            target = torch.zeros_like(logits)
            target[rows] = 1.0
            part = part + OF_CLASSES * focal_loss(logits, target).sum()
            part = part + box_weight * face_loss(found[rows], own[columns], scale).sum()
            part = part + _of_masks(drawn[rows], masks[columns], around[columns]).sum()
        if copies:
            noised = noised_loss(
                noised_said.float(), noised_placed.float(), boxes, classes, there, copies, scale, box_weight
            )
            for i, (drawn, masks) in enumerate(zip(noised_drawn.float().flatten(2), wanted, strict=True)):
                drawn = drawn.unflatten(0, (copies, -1))[:, : len(masks)]
                around = _around(boxes[i][there[i]], stride).expand(copies, -1)
                noised = noised + _of_masks(drawn, masks.expand(copies, -1, -1), around).sum()
            part = part + noised / copies
        total = total + part / (number * layers)
    return total


@torch.no_grad()
def assignment(
    logits: Tensor, found: Tensor, drawn: Tensor, boxes: Tensor, masks: Tensor, scale: Tensor, around: Tensor
) -> tuple[Tensor, Tensor]:
    """The queries and the objects that belong together, of the least cost in all: two rows of indices.

    Args:
        logits, found, drawn: of one patch: classes (Q, 1), boxes (Q, 2d) and masks (Q, P).
        boxes, masks: of its objects, (n, 2d) and (n, P).
        scale: what faces are divided by, (2d,).
        around: what the cross-entropy of each object's mask is divided by, (n,).
    """
    classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return cheapest(costs(logits, found, boxes, classes, scale) + mask_costs(drawn, masks, around))


def mask_costs(drawn: Tensor, masks: Tensor, around: Tensor) -> Tensor:
    """The loss of each mask (Q, P), as logits, for each object (n, P): (Q, n)."""
    chance, outside = drawn.sigmoid(), F.softplus(drawn)
    entropy = (outside.sum(1, keepdim=True) - drawn @ masks.T) / around
    shared = chance @ masks.T
    dice = 1 - (2 * shared + 1) / (chance.sum(1, keepdim=True) + masks.sum(1) + 1)
    return OF_CROSS_ENTROPY * entropy + OF_DICE * dice


def _of_masks(drawn: Tensor, masks: Tensor, around: Tensor) -> Tensor:
    """As :func:`mask_costs`, pair by pair: (..., P) and (..., P) -> (...)."""
    entropy = F.binary_cross_entropy_with_logits(drawn, masks, reduction="none").sum(-1) / around
    chance = drawn.sigmoid()
    dice = 1 - (2 * (chance * masks).sum(-1) + 1) / (chance.sum(-1) + masks.sum(-1) + 1)
    return OF_CROSS_ENTROPY * entropy + OF_DICE * dice


def _around(boxes: Tensor, stride: int) -> Tensor:
    """Positions that the cross-entropy of masks with boxes (n, 2d) is divided by: (n,)."""
    low, high = (boxes / stride).chunk(2, -1)
    return AROUND * (high - low + 1).prod(-1)


def mask_stride(size: Sequence[int], maps: Sequence[int]) -> int:
    """Voxels of a patch along each edge of a position of its masks."""
    return next(s for s in (1, 2, 4, 8, 16) if all(math.ceil(n / s) == k for n, k in zip(size, maps, strict=True)))
