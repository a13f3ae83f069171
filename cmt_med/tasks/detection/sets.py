"""The loss and the boxes of a set prediction: each reference has one query, found by the Hungarian method (DETR, section 3.1).

Costs and weights are those of DINO (Zhang et al., ICLR 2023): focal loss of classes, L1 distance of faces as shares of the image,
and GIoU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from cmt_med.networks.heads.set_detector import SetOutput
from cmt_med.tasks.detection.boxes import giou, pairwise_giou
from cmt_med.tasks.detection.centres import centre_loss

ALPHA, GAMMA = 0.25, 2.0
OF_CLASSES, OF_FACES, OF_GIOU = 2.0, 5.0, 2.0


def set_loss(
    output: SetOutput, boxes: Tensor, classes: Tensor, ignored: Tensor, size: Sequence[int], box_weight: float
) -> Tensor:
    """The mean over layers of the loss of queries and of noised references, and that of the dense head.

    Args:
        output: of the network in training.
        boxes: (B, N, 2d), in voxels of the patch.
        classes: (B, N), from 0 on; -1 where there is none.
        ignored: (B, N), boxes that are no targets, and near which nothing is learned.
        size: of the patch.
        box_weight: of the loss of faces, beside that of classes.
    """
    present = (classes >= 0) & ~ignored
    number = present.sum().clamp_min(1)
    scale = torch.tensor(size, device=boxes.device, dtype=torch.float32).repeat(2)
    total = centre_loss(output.dense, boxes, classes, ignored, size, box_weight)
    layers = len(output.classes)
    for logits, found in zip(output.classes, output.boxes, strict=True):
        total = (
            total
            + _of_queries(logits.float(), found.float(), boxes, classes, present, ignored, scale, box_weight, number)
            / layers
        )
    noised = output.noised_classes.shape[2]
    if not noised:
        return total
    copies = noised // (2 * boxes.shape[1])  # groups
    for logits, found in zip(output.noised_classes, output.noised_boxes, strict=True):
        part = noised_loss(logits.float(), found.float(), boxes, classes, present, copies, scale, box_weight)
        total = total + part / (number * copies * layers)
    return total


def _of_queries(
    logits: Tensor, found: Tensor, boxes: Tensor, classes: Tensor, present: Tensor, ignored: Tensor, scale: Tensor,
    box_weight: float, number: Tensor,
) -> Tensor:  # fmt: skip
    target = torch.zeros_like(logits)
    learned = torch.ones(logits.shape[:2], device=logits.device)
    of_boxes = logits.new_zeros(())
    for i in range(len(logits)):
        wanted, named = boxes[i][present[i]].float(), classes[i][present[i]]
        rows, columns = assignment(logits[i].detach(), found[i].detach(), wanted, named, scale)
        target[i, rows, named[columns]] = 1.0
        of_boxes = of_boxes + face_loss(found[i][rows], wanted[columns], scale).sum()
        if bool(ignored[i].any()):
            inside = _middles_inside(found[i].detach(), boxes[i][ignored[i]].float())
            inside[rows] = False
            learned[i][inside] = 0.0
    of_classes = (focal_loss(logits, target).sum(-1) * learned).sum()
    return (OF_CLASSES * of_classes + box_weight * of_boxes) / number


def noised_loss(
    logits: Tensor,
    found: Tensor,
    boxes: Tensor,
    classes: Tensor,
    present: Tensor,
    groups: int,
    scale: Tensor,
    box_weight: float,
) -> Tensor:
    """Near copies are their reference, far ones are nothing."""
    batch, number = classes.shape
    shape = (batch, groups, 2, number)
    there = present[:, None, None].expand(shape)
    near = torch.zeros(shape, dtype=torch.bool, device=logits.device)
    near[:, :, 0] = True
    named = F.one_hot(classes.clamp_min(0), logits.shape[-1]).float()[:, None, None].expand(*shape, -1)
    target = named * (near & there)[..., None]
    of_classes = (focal_loss(logits.view(*shape, -1), target).sum(-1) * there).sum()
    wanted = boxes.float()[:, None, None].expand(*shape, -1)
    of_boxes = (face_loss(found.view(*shape, -1), wanted, scale) * (near & there)).sum()
    return OF_CLASSES * of_classes + box_weight * of_boxes


@torch.no_grad()
def assignment(logits: Tensor, found: Tensor, boxes: Tensor, classes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and the references that belong together, of the least cost in all: two rows of indices.

    Args:
        logits, found: of one image, (Q, K) and (Q, 2d).
        boxes, classes: references, (n, 2d) and (n,).
        scale: what faces are divided by, (2d,).
    """
    return cheapest(costs(logits, found, boxes, classes, scale))


def costs(logits: Tensor, found: Tensor, boxes: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """The cost of each query for each reference (Q, n); arguments as of :func:`assignment`."""
    chance = logits.sigmoid()
    for_it = ALPHA * (1 - chance) ** GAMMA * -(chance + 1e-8).log()
    against = (1 - ALPHA) * chance**GAMMA * -(1 - chance + 1e-8).log()
    cost = OF_CLASSES * (for_it - against)[:, classes]
    return cost + OF_FACES * torch.cdist(found / scale, boxes / scale, p=1) - OF_GIOU * pairwise_giou(found, boxes)


def cheapest(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a matrix of costs that belong together, so that the sum is the least."""
    rows, columns = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


def face_loss(found: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """L1 and GIoU loss of boxes (..., 2d), pair by pair."""
    return OF_FACES * ((found - wanted) / scale).abs().sum(-1) + OF_GIOU * (1 - giou(found, wanted))


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017, equation 5), element by element."""
    chance = logits.sigmoid()
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = chance * target + (1 - chance) * (1 - target)
    return (ALPHA * target + (1 - ALPHA) * (1 - target)) * (1 - right) ** GAMMA * plain


def _middles_inside(found: Tensor, boxes: Tensor) -> Tensor:
    """Tell which boxes (Q, 2d) have their middle in one of others (n, 2d): (Q,)."""
    low, high = found.chunk(2, -1)
    middle = ((low + high) / 2)[:, None]
    first, last = boxes[None].chunk(2, -1)
    return ((middle > first) & (middle < last)).all(-1).any(1)


def set_boxes(output: Tensor, dims: int, *, least: float, most: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The boxes of each patch, from the network's set (B, Q, K + 2d); as :func:`cmt_med.tasks.detection.centres.peaks`."""
    result = []
    for row in output.float():
        scores = row[:, : -2 * dims].sigmoid()
        boxes = row[:, -2 * dims :]
        values, at = scores.flatten().topk(min(most, scores.numel()))
        kept = values >= max(least, 1e-9)
        values, at = values[kept], at[kept]
        result.append((boxes[at // scores.shape[1]], at % scores.shape[1], values))
    return result
