"""Step functions for the engines, and averaged weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last
from cmt_med.data.patches.augment import Augment
from cmt_med.data.patches.loader import keyed_seed
from cmt_med.tasks.task import Batch
from cmt_med.training.averaging import AveragedWeights

BESIDE = ("class", "annotated", "boxes", "box_class", "box_ignored")
"""What a batch has for a task beside images and labels (:class:`cmt_med.tasks.task.Batch`)."""
Loss = Callable[[Any, Batch], Tensor]
Step = Callable[[Engine, Sequence[dict[str, Any]]], dict[str, float]]


def training_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    *,
    rate_at: Callable[[int], float],
    average: AveragedWeights,
    seed: int,
    clip: float,
    amp: bool,
    augment: Augment | None = None,
    compiled: bool = False,
    frozen: Sequence[nn.Module] = (),
    hints: Callable[[Batch], tuple[Tensor, ...]] | None = None,
    prepared: Callable[[Batch], Batch] | None = None,
    late_at: Callable[[int], float] | None = None,
) -> Step:
    """One optimizer step on a group of batches, whose gradients are averaged.

    Args:
        network: the network, wrapped for several processes where there are several.
        optimizer: its optimizer.
        loss: from the network's output and the batch to a number.
        rate_at: learning rate at a step (0-based).
        average: updated after each step.
        seed: with step and rank, the key of the network's own randomness.
        clip: largest norm of the gradient.
        amp: bf16 autocast on a GPU.
        augment: changes images and labels on the device, where batches come unchanged.
        hints: what networks that ask for it are told beside the image (:meth:`cmt_med.tasks.task.Task.hints`).
        prepared: what is done to a batch on the device (:meth:`cmt_med.tasks.task.Task.prepared`).
        late_at: factor at a step of the rate of groups that are marked ``late``.
        frozen: parts of the network that stay in eval mode, statistics included.
        compiled: run the network through torch.compile, for patches of one size; whatever else uses it does not.

    Returns:
        ``step(engine, batches) -> {"loss", "lr", "grad_norm", "finite", "seconds"}``, the last those of forward, loss and
        backward; without a finite loss, gradient and statistics on every rank (``finite`` 0), all ranks leave weights and
        statistics as they are.
    """
    device = next(network.parameters()).device
    plain = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    told = hints if getattr(plain, "takes_hints", False) else None
    run = torch.compile(network, dynamic=False) if compiled else network

    def step(engine: Engine, batches: Sequence[dict[str, Any]]) -> dict[str, float]:
        number = engine.state.iteration - 1
        torch.manual_seed(keyed_seed(seed, number, idist.get_rank(), 0x57E9))
        rate = rate_at(number)
        for group in optimizer.param_groups:
            late = late_at(number) if late_at is not None and group.get("late") else 1.0
            group["lr"] = rate * group.get("scale", 1.0) * late
        network.train()
        for part in frozen:
            part.eval()
        buffers = list(plain.buffers())
        before = [buffer.clone() for buffer in buffers]  # a forward pass moves the statistics of a batch norm
        optimizer.zero_grad(set_to_none=True)
        total = seconds = 0.0
        for position, batch in enumerate(batches):
            moved = on_device(batch, device, augment)
            if prepared is not None:
                moved = {**prepared(moved)}
            begun = time.perf_counter()
            waits = position + 1 < len(batches) and network is not plain
            with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
                    output = run(moved["image"], *(told(moved) if told is not None else ()))
                value = loss(output, moved) / len(batches)
                value.backward()
            total += float(value.detach())  # on a GPU, this waits for it
            seconds += time.perf_counter() - begun
        norm, *extremes = torch.stack(
            [nn.utils.clip_grad_norm_(network.parameters(), clip), *_largest(buffers)]
        ).tolist()  # fmt: skip
        finite = float(all(map(math.isfinite, (total, norm, *extremes))))
        if idist.get_world_size() > 1:
            finite = float(idist.all_reduce(finite, "MIN"))
        if finite:
            optimizer.step()
            average.update(plain)
        else:
            for buffer, kept in zip(buffers, before, strict=True):
                buffer.copy_(kept)
        return {"loss": total, "lr": rate, "grad_norm": norm, "finite": finite, "seconds": seconds}

    return step


def _largest(buffers: Sequence[Tensor]) -> Sequence[Tensor]:
    """The largest magnitude in each that is not of integers; NaN where there is one."""
    statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
    return torch._foreach_norm(statistics, math.inf) if statistics else []


def on_device(batch: Mapping[str, Any], device: torch.device, augment: Augment | None) -> dict[str, Tensor]:
    """A batch as the task's loss takes it, changed as drawn where it comes unchanged.

    Returns:
        ``image`` (B, C, *S), channels-last, ``label`` (B, 1, *S), and what of :data:`BESIDE` there is.
    """
    images, labels = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
    if augment is not None:
        images, labels = augment(images, labels, batch["drawn"])
    more = {key: batch[key].to(device, non_blocking=True) for key in BESIDE if key in batch}
    if augment is not None and "boxes" in more:
        more["boxes"] = augment.move_boxes(more["boxes"], batch["drawn"])
    return {"image": channels_last(images), "label": labels} | more


def batch_groups(loader: Iterator[dict[str, Any]], count: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of ``count`` batches, for gradient accumulation."""
    while True:
        yield [next(loader) for _ in range(count)]
