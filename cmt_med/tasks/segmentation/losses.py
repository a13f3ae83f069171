"""Losses over exclusive classes, or over overlapping regions: Dice with cross-entropy, and others by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
Loss = Callable[[Tensor | list[Tensor], Tensor], Tensor]


Kind = Literal["dice_ce", "dice_focal", "tversky", "ce"]
"""Dice plus cross-entropy, Dice plus focal loss, Tversky alone, cross-entropy alone."""
GAMMA = 2.0
"""Focusing exponent of the focal loss (Lin et al., ICCV 2017, eq. 4)."""
FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7
"""Weights in the Tversky index (Salehi et al., MLMI 2017, eq. 4): a missed voxel costs more than an invented one."""


def batch_dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """``1 - mean_k (2 Σ p_k t_k + ε) / (Σ p_k + Σ t_k + ε)`` with sums over the whole batch of all processes.

    Sums over the batch keep a class that is absent from one patch from dominating (nnU-Net's "batch Dice"). The sums are
    reduced across ranks with a gradient, so that training does not depend on how a batch is spread.

    Args:
        probabilities: (B, K, *S).
        targets: (B, K, *S), 0 or 1.
    """
    axes = (0, *range(2, probabilities.ndim))
    overlap = (probabilities * targets).sum(axes)  # (K,)
    total = probabilities.sum(axes) + targets.sum(axes)  # (K,)
    overlap, total = _over_ranks(overlap, total)
    return 1.0 - ((2.0 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def batch_tversky_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """``1 - mean_k (TP_k + ε) / (TP_k + 0.3 FP_k + 0.7 FN_k + ε)`` with sums over the whole batch of all processes.

    Args:
        probabilities, targets: (B, K, *S), see :func:`batch_dice_loss`.
    """
    axes = (0, *range(2, probabilities.ndim))
    hit = (probabilities * targets).sum(axes)  # (K,)
    invented, missed = probabilities.sum(axes) - hit, targets.sum(axes) - hit
    hit, invented, missed = _over_ranks(hit, invented, missed)
    return 1.0 - ((hit + SMOOTH) / (hit + FALSE_POSITIVES * invented + FALSE_NEGATIVES * missed + SMOOTH)).mean()


def _over_ranks(*sums: Tensor) -> tuple[Tensor, ...]:
    """The sums over all processes, with a gradient."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return tuple(_SumOverRanks.apply(torch.stack(sums)).unbind())
    return sums


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def class_loss(logits: Tensor, targets: Tensor, kind: Kind = "dice_ce") -> Tensor:
    """The loss over exclusive classes; Dice and Tversky are over all of them but the background.

    Args:
        logits: (B, K, *S).
        targets: (B, K, *S), the share of each class in a position; one class has all of it, or they sum to one.
        kind: which one.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    probabilities = log_probabilities.exp()
    if kind == "tversky":
        return batch_tversky_loss(probabilities[:, 1:], targets[:, 1:])
    terms = log_probabilities * targets
    if kind == "dice_focal":
        terms = (1.0 - probabilities) ** GAMMA * terms
    at_each_voxel = -terms.sum(1).mean()
    return at_each_voxel if kind == "ce" else batch_dice_loss(probabilities[:, 1:], targets[:, 1:]) + at_each_voxel


def region_loss(logits: Tensor, targets: Tensor, kind: Kind = "dice_ce") -> Tensor:
    """The loss over overlapping regions, each a yes or no of its own; logits and shares (B, R, *S)."""
    logits = logits.float()
    probabilities = logits.sigmoid()
    if kind == "tversky":
        return batch_tversky_loss(probabilities, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits, targets, reduction="none" if kind == "dice_focal" else "mean"
    )
    if kind == "dice_focal":
        wrong = probabilities * (1.0 - targets) + (1.0 - probabilities) * targets
        cross_entropy = (wrong**GAMMA * cross_entropy).mean()
    return cross_entropy if kind == "ce" else batch_dice_loss(probabilities, targets) + cross_entropy


def segmentation_loss(channels: Sequence[Sequence[int]], single: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The loss of a network's output against label maps (B, 1, *S).

    Args:
        channels: the label values that each output channel stands for.
        single: the loss of logits (B, K, *S) against shares of the channels (B, K, *S), on one scale.

    Returns:
        A function of logits, or of a list of them from fine to coarse (deep supervision), and label maps. Scale i of a
        list has the weight 2^-i, normalised to a sum of one. Its target is the share of each label in the voxels that a
        coarse position covers: a label taken from one of them would move the target by half a voxel.
    """

    def loss(output: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        scales = [output] if isinstance(output, Tensor) else output
        targets = torch.cat([torch.isin(labels, labels.new_tensor(list(values))) for values in channels], dim=1).float()
        terms = [2.0**-i * single(logits, _shares(targets, logits)) for i, logits in enumerate(scales)]
        return torch.stack(terms).sum() / sum(2.0**-i for i in range(len(scales)))

    return loss


def _shares(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets (B, K, *S) averaged over the cells of a coarser grid."""
    return targets if logits.shape[2:] == targets.shape[2:] else F.interpolate(targets, logits.shape[2:], mode="area")
