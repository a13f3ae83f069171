"""Validation while training: sliding windows over preprocessed cases, in an Ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Inference
from cmt_med.data.preprocessing.cache import Entry
from cmt_med.evaluation.overlap import case_overlaps
from cmt_med.inference.postprocess import Target, to_labels
from cmt_med.inference.predict import Windows, predict_probabilities

Validate = Callable[[nn.Module, Callable[[], bool]], dict[str, float] | None]


class _StopError(Exception):
    """Raised between two windows, where a run was asked to stop."""


def validator(
    entries: Sequence[Entry],
    windows: Windows,
    *,
    outputs: Sequence[Target],
    regions: bool,
    settings: Inference,
) -> Validate:
    """A function that scores a network: mean Dice per target (``"dice/NAME"``) and over targets (``"dice"``).

    Cases are spread over the ranks. Empty references count by the challenge rule. It takes the network and a function
    that is asked before each batch of windows whether to stop; if any rank was, it returns None on all. Raises DataError,
    E_NAN with the case's name, if an output of the network is not finite.
    """
    targets = {target.name: target.values for target in outputs}
    bare = settings.model_copy(update={"minimum": {}, "components": {}})  # the network is scored, not what mends it
    mine = list(entries)[idist.get_rank() :: idist.get_world_size()]

    def validate(network: nn.Module, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        device = next(network.parameters()).device
        sums = torch.zeros(len(targets) + 2, dtype=torch.float64)  # Dice of each target; cases; ranks that stopped

        def stop(*_: object) -> None:
            if stop_requested():
                raise _StopError

        def score(_: Engine, entry: Entry) -> list[float]:
            image = torch.from_numpy(np.array(entry.image())).to(device)
            try:
                found = predict_probabilities(network, image, windows, regions=regions)
            except DataError as error:
                raise DataError(
                    error.what, where=f"case {entry.name}, validated while training", code=error.code,
                    why="the training has diverged, or the case has extreme values",
                    fix="lower optimizer.lr, or look at the case; the last finite state is in checkpoints/",
                ) from error  # fmt: skip
            labels, _ = to_labels(found, bare, targets=outputs, regions=regions)
            overlaps = case_overlaps(labels, np.asarray(entry.label()[0]), targets)
            return [overlap.dice for overlap in overlaps.values()]

        engine = Engine(score)

        @engine.on(Events.ITERATION_COMPLETED)
        def collect(running: Engine) -> None:
            sums[:-2] += torch.tensor(running.state.output, dtype=torch.float64)
            sums[-2] += 1

        hook = network.register_forward_pre_hook(stop)
        try:
            if mine:
                engine.run(mine)
        except _StopError:
            sums[-1] = 1
        finally:
            hook.remove()
        total = idist.all_reduce(sums) if idist.get_world_size() > 1 else sums
        if total[-1] > 0:
            return None
        means = (total[:-2] / total[-2]).tolist()
        named = {f"dice/{name}": value for name, value in zip(targets, means, strict=True)}
        return {"dice": float(np.mean(means))} | named

    return validate
