"""Networks that answer once for a whole image: probabilities of a case, alone and averaged over models."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmt_med.base.files import write_text
from cmt_med.base.text import as_text
from cmt_med.blocks.conv import channels_last
from cmt_med.data.case import Case
from cmt_med.data.preprocessing.pipeline import as_dictionary
from cmt_med.data.volumes.gate import Loaded
from cmt_med.inference.cards import joint_card
from cmt_med.inference.predict import Predictor, not_finite
from cmt_med.inference.results import read_record
from cmt_med.tasks.task import Task, whole_image_task

TABLE = "predictions.csv"


@torch.no_grad()
def whole_probabilities(
    network: nn.Module, image: Tensor, task: Task, *, slice_axes: Sequence[int] = (), mirrored_axes: Sequence[int] = ()
) -> Tensor:
    """Probabilities (K,) of a preprocessed image.

    Args:
        network: in eval mode, (B, C, *s) -> logits (B, K).
        image: (C, D1, D2, D3), on the network's device.
        task: what the output means.
        slice_axes: the axis that a 2D image lies across; empty in 3D.
        mirrored_axes: axes of the image whose mirrorings are averaged.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite.
    """
    total: Tensor | None = None
    turns = [chosen for n in range(len(mirrored_axes) + 1) for chosen in itertools.combinations(mirrored_axes, n)]
    for chosen in turns:
        turned = image.flip([1 + axis for axis in chosen]) if chosen else image
        for axis in slice_axes:
            turned = turned.squeeze(1 + axis)
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=turned.is_cuda):
            logits: Tensor = network(channels_last(turned[None]))
        if not bool(logits.isfinite().all()):
            raise not_finite()
        found = task.probabilities(logits[0].float())
        total = found if total is None else total + found
    assert total is not None  # there is always the image itself
    return total / len(turns)


class WholeEnsemble:
    """Models that answer for whole images, whose probabilities are averaged.

    Raises:
        ConfigError: if they predict different classes.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = list(predictors)
        self.card = joint_card([predictor.card for predictor in predictors])
        self.task = whole_image_task(self.card.outputs)

    def answer(self, loaded: Loaded) -> dict[str, Any]:
        """Make the record of a case."""
        return self.task.record(torch.stack([self._of_member(loaded, one) for one in self.predictors]).mean(0))

    def _of_member(self, loaded: Loaded, predictor: Predictor) -> Tensor:
        card = predictor.card
        order = [self.card.channels.index(name) for name in card.channels]
        data = predictor.transform(as_dictionary(replace(loaded, image=loaded.image[order])))
        return whole_probabilities(
            predictor.network, data["image"].as_tensor().to(predictor.device), self.task, slice_axes=card.slice_axes,
            mirrored_axes=predictor.windows.mirrored_axes,
        ).cpu()  # fmt: skip

    def finish(self, folder: Path, cases: Sequence[Case]) -> None:
        """Write ``predictions.csv``: a row for each case that has a record."""
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["case", *self.task.columns, "flags"])
        for case in cases:
            record = read_record(folder / f"{case.name}.json")
            if record.get("case") == case.name:
                writer.writerow([as_text(case.name), *map(as_text, self.task.row(record)), "; ".join(record["flags"])])
        write_text(folder / TABLE, table.getvalue())
