"""Validation while training: sliding windows over preprocessed cases, in an Ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from cmt_med.data.cache import Entry
from cmt_med.evaluation.overlap import case_overlaps
from cmt_med.inference.predict import Windows, predict_probabilities, to_labels


def validator(
    entries: Sequence[Entry],
    windows: Windows,
    *,
    targets: Mapping[str, Sequence[int]],
    classes: Sequence[int],
    regions: Sequence[tuple[str, Sequence[int], int]] | None,
    threshold: float,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that scores a network: mean Dice per target (``"dice/NAME"``) and over targets (``"dice"``).

    Cases are spread over the ranks. Empty references count by the challenge rule.
    """
    mine = list(entries)[idist.get_rank() :: idist.get_world_size()]

    def validate(network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        sums = torch.zeros(len(targets) + 1, dtype=torch.float64)

        def score(_: Engine, entry: Entry) -> list[float]:
            image = torch.from_numpy(np.array(entry.image())).to(device)
            found = predict_probabilities(network, image, windows, regions=regions is not None)
            labels = to_labels(found, classes=classes, regions=regions, threshold=threshold)
            overlaps = case_overlaps(labels, np.asarray(entry.label()[0]), targets, voxel_ml=1.0)
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
