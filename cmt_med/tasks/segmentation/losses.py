"""Losses over exclusive classes, or over overlapping regions: Dice with cross-entropy, and others by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
Loss = Callable[[Tensor | list[Tensor], Tensor, Tensor | None], Tensor]
LEAST_SHARE = 1e-6
"""Share of annotated voxels in a position that counts as none."""

Kind = Literal["dice_ce", "dice_focal", "tversky", "ce"]
"""Dice plus cross-entropy, Dice plus focal loss, Tversky alone, cross-entropy alone."""
GAMMA = 2.0
"""Focusing exponent of the focal loss (Lin et al., ICCV 2017, eq. 4)."""
FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7
"""Weights in the Tversky index (Salehi et al., MLMI 2017, eq. 4): a missed voxel costs more than an invented one."""


@dataclass(frozen=True)
class Known:
    """The part of a batch that somebody has annotated: all else has no part in a loss.

    Attributes:
        share: (B, 1, *S), the share of annotated voxels in a position.
        channels: (B, K), whether a case annotates what a channel stands for; None where all do.
    """

    share: Tensor
    channels: Tensor | None = None

    def weights(self, channels: int) -> Tensor:
        """The weight of each channel in a position: (B, K, *S)."""
        if self.channels is None:
            return self.share.expand(-1, channels, *self.share.shape[2:])
        return self.share * self.channels.view(*self.channels.shape, *(1,) * (self.share.ndim - 2))


class SingleLoss(Protocol):
    """A loss of logits (B, K, *S) against shares of the channels (B, K, *S), on one scale."""

    def __call__(self, logits: Tensor, targets: Tensor, *, known: Known | None = None) -> Tensor:
        """Return the loss, over what is ``known``."""
        ...


def batch_dice_loss(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """``1 - mean_k (2 Σ p_k t_k + ε) / (Σ p_k + Σ t_k + ε)`` with sums over the whole batch of all processes.

    Sums over the batch keep a class that is absent from one patch from dominating (nnU-Net's "batch Dice"). The sums are
    reduced across ranks with a gradient, so that training does not depend on how a batch is spread.

    Args:
        probabilities: (B, K, *S).
        targets: (B, K, *S), 0 or 1.
        weights: (B, K, *S), 0 where nothing is known; the mean is over the channels of which something is.
    """
    hit, predicted, true = _sums(probabilities, targets, weights)
    hit, total, *there = _over_ranks(hit, predicted + true, *_amounts(weights))
    return _one_minus_mean((2.0 * hit + SMOOTH) / (total + SMOOTH), *there)


def batch_tversky_loss(probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """``1 - mean_k (TP_k + ε) / (TP_k + 0.3 FP_k + 0.7 FN_k + ε)`` with sums over the whole batch of all processes.

    Args:
        probabilities, targets, weights: (B, K, *S), see :func:`batch_dice_loss`.
    """
    hit, predicted, true = _sums(probabilities, targets, weights)
    hit, invented, missed, *there = _over_ranks(hit, predicted - hit, true - hit, *_amounts(weights))
    ratios = (hit + SMOOTH) / (hit + FALSE_POSITIVES * invented + FALSE_NEGATIVES * missed + SMOOTH)
    return _one_minus_mean(ratios, *there)


def _sums(probabilities: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of p t, p and t over batch and positions, weighted: (K,) each."""
    axes = (0, *range(2, probabilities.ndim))
    if weights is None:
        return (probabilities * targets).sum(axes), probabilities.sum(axes), targets.sum(axes)
    seen = probabilities * weights
    return (seen * targets).sum(axes), seen.sum(axes), (targets * weights).sum(axes)


def _amounts(weights: Tensor | None) -> tuple[Tensor, ...]:
    """The sum of each channel's weights (K,); nothing without weights."""
    return () if weights is None else (weights.sum((0, *range(2, weights.ndim))),)


def _one_minus_mean(ratios: Tensor, there: Tensor | None = None) -> Tensor:
    """``1 - mean_k`` of ratios (K,), over the channels of which something is ``there``; 0 where nothing is."""
    if there is None:
        return 1.0 - ratios.mean()
    known = (there > 0).float()
    return ((1.0 - ratios) * known).sum() / known.sum().clamp_min(1.0)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean (over what all processes know, so that it does not depend on how a batch is spread); 0 of nothing."""
    if weights is None:
        return values.mean()
    count = weights.sum()
    if dist.is_available() and dist.is_initialized():
        count = _over_ranks(count)[0] / dist.get_world_size()  # gradients are averaged over the processes
    return (values * weights).sum() / count.clamp_min(LEAST_SHARE)


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


def class_loss(logits: Tensor, targets: Tensor, kind: Kind = "dice_ce", *, known: Known | None = None) -> Tensor:
    """The loss over exclusive classes; Dice and Tversky are over all of them but the background.

    Args:
        logits: (B, K, *S).
        targets: (B, K, *S), the share of each class in a position; one class has all of it, or they sum to one.
        kind: which one.
        known: what is annotated; None for everything. A class that a case does not annotate is part of its background: the
            probability of that is the sum of both (the marginal loss of Shi et al., Medical Image Analysis 2021, eq. 3-5).
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    if known is not None and known.channels is not None:
        log_probabilities = _merged(log_probabilities, known.channels)
    probabilities = log_probabilities.exp()
    weights = None if known is None else known.weights(logits.shape[1])[:, 1:]
    if kind == "tversky":
        return batch_tversky_loss(probabilities[:, 1:], targets[:, 1:], weights)
    terms = log_probabilities * targets
    if kind == "dice_focal":
        terms = (1.0 - probabilities) ** GAMMA * terms
    at_each_voxel = _mean(-terms.sum(1, keepdim=True), None if known is None else known.share)
    if kind == "ce":
        return at_each_voxel
    return batch_dice_loss(probabilities[:, 1:], targets[:, 1:], weights) + at_each_voxel


def _merged(log_probabilities: Tensor, annotated: Tensor) -> Tensor:
    """Log-probabilities (B, K, *S) whose first channel is the background with the classes that are not ``annotated`` (B, K)."""
    apart = annotated.clone()
    apart[:, 0] = False
    hidden = apart.view(*apart.shape, *(1,) * (log_probabilities.ndim - 2))
    background = log_probabilities.masked_fill(hidden, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([background, log_probabilities[:, 1:]], 1)


def region_loss(logits: Tensor, targets: Tensor, kind: Kind = "dice_ce", *, known: Known | None = None) -> Tensor:
    """The loss over overlapping regions, each a yes or no of its own; logits and shares (B, R, *S), over what is ``known``."""
    logits = logits.float()
    probabilities = logits.sigmoid()
    weights = None if known is None else known.weights(logits.shape[1])
    if kind == "tversky":
        return batch_tversky_loss(probabilities, targets, weights)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if kind == "dice_focal":
        wrong = probabilities * (1.0 - targets) + (1.0 - probabilities) * targets
        cross_entropy = wrong**GAMMA * cross_entropy
    at_each_voxel = _mean(cross_entropy, weights)
    return at_each_voxel if kind == "ce" else batch_dice_loss(probabilities, targets, weights) + at_each_voxel


def segmentation_loss(channels: Sequence[Sequence[int]], single: SingleLoss, *, ignore: int | None = None) -> Loss:
    """The loss of a network's output against label maps (B, 1, *S).

    Args:
        channels: the label values that each output channel stands for.
        single: the loss on one scale.
        ignore: value of voxels that nobody has annotated; None for none.

    Returns:
        A function of logits, or of a list of them from fine to coarse (deep supervision), of label maps, and of which values
        are annotated in each case (B, 256), or None for all. A channel is, if all of its values are. Scale i of a list has the
        weight 2^-i, normalised to a sum of one. Its target is the share of each label in the voxels that a coarse position
        covers: a label taken from one of them would move the target by half a voxel. Of the voxels that a position covers,
        those that nobody has annotated are left out of that share, and of the position's weight.
    """

    def loss(output: Tensor | list[Tensor], labels: Tensor, annotated: Tensor | None = None) -> Tensor:
        scales = [output] if isinstance(output, Tensor) else output
        targets = torch.cat([torch.isin(labels, labels.new_tensor(list(values))) for values in channels], dim=1).float()
        known = None
        if ignore is not None or annotated is not None:
            share = torch.ones_like(targets[:, :1]) if ignore is None else (labels != ignore).float()
            known = Known(share, None if annotated is None else _annotated_channels(annotated, channels))
        terms = [2.0**-i * _on_scale(single, logits, targets, known) for i, logits in enumerate(scales)]
        return torch.stack(terms).sum() / sum(2.0**-i for i in range(len(scales)))

    return loss


def _annotated_channels(annotated: Tensor, channels: Sequence[Sequence[int]]) -> Tensor:
    """The channels (B, K) of which all values are ``annotated`` (B, 256)."""
    return torch.stack([annotated[:, list(values)].all(1) for values in channels], 1)


def _on_scale(single: SingleLoss, logits: Tensor, targets: Tensor, known: Known | None) -> Tensor:
    """The loss of one scale, against targets and what is known of them on the finest one."""
    shares = _shares(targets, logits)
    if known is None:
        return single(logits, shares)
    annotated = _shares(known.share, logits)
    return single(logits, shares / annotated.clamp_min(LEAST_SHARE), known=Known(annotated, known.channels))


def _shares(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets (B, K, *S) averaged over the cells of a coarser grid."""
    return targets if logits.shape[2:] == targets.shape[2:] else F.interpolate(targets, logits.shape[2:], mode="area")
