"""Validation while training: sliding windows over preprocessed cases, in an Ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from numpy.typing import NDArray
from torch import nn

from cmt_med.base.boxes import Boxes
from cmt_med.base.errors import DataError
from cmt_med.config.schema import Detection, Inference
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.inference.boxes import together, views_of
from cmt_med.inference.masks import numbered
from cmt_med.inference.predict import Windows, predict_probabilities
from cmt_med.inference.reconstruction import Reconstruction, reconstructed
from cmt_med.inference.whole import whole_probabilities
from cmt_med.tasks.task import Task, box_task, query_task

Validate = Callable[[nn.Module, Callable[[], bool]], dict[str, float] | None]


def _found(
    network: nn.Module, image: torch.Tensor, windows: Windows, task: Task, settings: Detection, name: str
) -> torch.Tensor | NDArray[np.int32] | Boxes | Reconstruction:
    """What a network says of an image, as the task scores it."""
    if task.boxes:
        return together(views_of(network, image, windows, box_task(task), settings), image.shape[1:], settings)
    if task.queries:
        return numbered(network, image, windows, query_task(task), query_task(task).settings)[0]
    if task.unlabelled:
        return reconstructed(network, image, windows.patch or windows.size, windows.slice_axes, task, name)
    if task.dense:
        return predict_probabilities(network, image, windows, task)
    return whole_probabilities(network, image, task, slice_axes=windows.slice_axes)


class _StopError(Exception):
    """Raised between two windows, where a run was asked to stop."""


def validator(
    entries: Sequence[CachedCase], windows: Windows, task: Task, settings: Inference, boxes: Detection
) -> Validate:
    """A function that scores a network; its keys are those of :meth:`cmt_med.tasks.task.Task.summarise`.

    Cases are spread over the ranks. It takes the network and a function that is asked before each batch of windows whether
    to stop; if any rank was, it returns None on all. Raises DataError, E_NAN with the case's name, if an output of the
    network is not finite.
    """
    rank, world = idist.get_rank(), idist.get_world_size()
    mine = list(enumerate(entries))[rank::world]

    def validate(network: nn.Module, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        device = next(network.parameters()).device
        rows: dict[int, Sequence[float]] = {}
        stopped = False

        def stop(*_: object) -> None:
            if stop_requested():
                raise _StopError

        def score(_: Engine, numbered: tuple[int, CachedCase]) -> None:
            number, entry = numbered
            image = torch.from_numpy(np.array(entry.image())).to(device)
            try:
                found = _found(network, image, windows, task, boxes, entry.name)
            except DataError as error:
                raise DataError(
                    error.what, where=f"case {entry.name}, validated while training", code=error.code,
                    why="the training has diverged, or the case has extreme values",
                    fix="lower optimizer.lr, or look at the case; the last finite state is in checkpoints/",
                ) from error  # fmt: skip
            rows[number] = task.score(found, entry, settings)

        hook = network.register_forward_pre_hook(stop)
        try:
            if mine:
                Engine(score).run(mine)
        except _StopError:
            stopped = True
        finally:
            hook.remove()
        if world > 1:
            stopped = bool(idist.all_reduce(float(stopped)))
        if stopped:
            return None
        return task.summarise(_of_all_ranks(rows, len(entries)))

    return validate


def _of_all_ranks(rows: Mapping[int, Sequence[float]], count: int) -> NDArray[np.float64]:
    """The rows of all cases (N, ...), in the order of the cases, from those that each rank has; shorter ones end in zeros."""
    width = max((len(row) for row in rows.values()), default=0)
    if idist.get_world_size() > 1:
        width = int(idist.all_reduce(width, "MAX"))
    table = torch.zeros((count, width), dtype=torch.float64)
    for number, row in rows.items():
        table[number, : len(row)] = torch.tensor(row, dtype=torch.float64)
    if idist.get_world_size() > 1:
        table = torch.as_tensor(idist.all_reduce(table))
    return table.numpy()
