"""Dice with cross-entropy: over exclusive classes, or over overlapping regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
Loss = Callable[[Tensor | list[Tensor], Tensor], Tensor]


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
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_reduce

        overlap, total = all_reduce(torch.stack([overlap, total])).unbind()
    return 1.0 - ((2.0 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice over all classes but background, plus cross-entropy.

    Args:
        logits: (B, K, *S).
        labels: (B, *S), class indices.
    """
    logits = logits.float()
    one_hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    log_probabilities = F.log_softmax(logits, dim=1)
    cross_entropy = -(log_probabilities * one_hot).sum(1).mean()
    return batch_dice_loss(log_probabilities.exp()[:, 1:], one_hot[:, 1:]) + cross_entropy


def region_loss(logits: Tensor, regions: Tensor) -> Tensor:
    """Dice plus binary cross-entropy over overlapping regions, (B, R, *S) each."""
    logits, targets = logits.float(), regions.to(logits.dtype)
    dice = batch_dice_loss(logits.sigmoid(), targets)
    return dice + F.binary_cross_entropy_with_logits(logits, targets)


def segmentation_loss(classes: Sequence[int], regions: Sequence[Sequence[int]] | None) -> Loss:
    """The loss of a network's output against label maps (B, 1, *S).

    Args:
        classes: the label value of each output channel, for exclusive classes.
        regions: the label values of each output channel, for overlapping regions; replaces ``classes``.

    Returns:
        A function of logits, or of a list of them from fine to coarse (deep supervision), and label maps. Scale i of a
        list has the weight 2^-i, normalised to a sum of one; labels are taken at the coarse grid's nearest voxels.
    """

    def single(logits: Tensor, labels: Tensor) -> Tensor:
        if regions is not None:
            return region_loss(logits, _as_regions(labels, regions))
        return class_loss(logits, _as_classes(labels, classes))

    def loss(output: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            return single(output, labels)
        weights = [2.0**-i for i in range(len(output))]
        terms = [
            weight * single(logits, labels if logits.shape[2:] == labels.shape[2:] else _nearest(labels, logits))
            for weight, logits in zip(weights, output, strict=True)
        ]
        return torch.stack(terms).sum() / sum(weights)

    return loss


def _nearest(labels: Tensor, logits: Tensor) -> Tensor:
    return F.interpolate(labels.float(), logits.shape[2:], mode="nearest-exact").to(labels.dtype)


def _as_regions(labels: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    return torch.cat([torch.isin(labels, labels.new_tensor(list(values))) for values in regions], dim=1)


def _as_classes(labels: Tensor, classes: Sequence[int]) -> Tensor:
    index = torch.zeros_like(labels, dtype=torch.long)
    for position, value in enumerate(classes):
        index.masked_fill_(labels == value, position)
    return index.squeeze(1)
