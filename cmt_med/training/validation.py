"""Validation while training: sliding windows over preprocessed cases, in an Ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from cmt_med.config import Inference
from cmt_med.data.cache import Entry
from cmt_med.evaluation.overlap import case_overlaps
from cmt_med.inference.postprocess import Target, to_labels
from cmt_med.inference.predict import Windows, predict_probabilities


def validator(
    entries: Sequence[Entry],
    windows: Windows,
    *,
    outputs: Sequence[Target],
    regions: bool,
    settings: Inference,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that scores a network: mean Dice per target (``"dice/NAME"``) and over targets (``"dice"``).

    Cases are spread over the ranks. Empty references count by the challenge rule.
    """
    targets = {target.name: target.values for target in outputs}
    bare = settings.model_copy(update={"minimum": {}, "components": {}})  # the network is scored, not what mends it
    mine = list(entries)[idist.get_rank() :: idist.get_world_size()]

    def validate(network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        sums = torch.zeros(len(targets) + 1, dtype=torch.float64)

        def score(_: Engine, entry: Entry) -> list[float]:
            image = torch.from_numpy(np.array(entry.image())).to(device)
            found = predict_probabilities(network, image, windows, regions=regions)
            labels, _ = to_labels(found, bare, targets=outputs, regions=regions)
            overlaps = case_overlaps(labels, np.asarray(entry.label()[0]), targets)
            return [overlap.dice for overlap in overlaps.values()]

        engine = Engine(score)

        @engine.on(Events.ITERATION_COMPLETED)
        def collect(running: Engine) -> None:
            sums[:-1] += torch.tensor(running.state.output, dtype=torch.float64)
            sums[-1] += 1

        if mine:
            engine.run(mine)
        total = idist.all_reduce(sums) if idist.get_world_size() > 1 else sums
        means = (total[:-1] / total[-1]).tolist()
        named = {f"dice/{name}": value for name, value in zip(targets, means, strict=True)}
        return {"dice": float(np.mean(means))} | named

    return validate
