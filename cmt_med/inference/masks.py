"""Networks that find objects with a mask each: in windows, joined, and brought to the case's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmt_med.base.errors import ConfigError
from cmt_med.config.instances import Instances
from cmt_med.data.preprocessing.pipeline import as_dictionary, invert_numbers
from cmt_med.data.volumes.gate import Loaded
from cmt_med.inference.joining import joined
from cmt_med.inference.objects import ObjectEnsemble
from cmt_med.inference.predict import Predictor, Windows, is_blank
from cmt_med.inference.window_outputs import flat_axis, window_outputs
from cmt_med.tasks.instances.decode import Objects, described
from cmt_med.tasks.instances.pieces import Pieces
from cmt_med.tasks.task import QueryTask, query_task


def numbered(
    network: nn.Module, image: Tensor, windows: Windows, task: QueryTask, settings: Instances
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The objects of a preprocessed image (C, D1, D2, D3): their numbers (D1, D2, D3), and the probability of each.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite; E_SIZE for more than 200,000 windows.
    """
    flat = flat_axis(windows)
    plane = image if flat is None else image.squeeze(1 + flat)

    def found() -> Iterator[tuple[Sequence[int], Pieces]]:
        for batch in window_outputs(network, plane, windows):
            for start, pieces in zip(batch.starts, task.pieces(batch.output, batch.size, settings), strict=True):
                yield start.astype(int).tolist(), pieces

    numbers, chances = joined(found(), plane.shape[1:])
    return numbers if flat is None else np.expand_dims(numbers, flat), chances


class MaskEnsemble(ObjectEnsemble):
    """One model that finds objects with a mask each.

    Raises:
        ConfigError: for several, or for settings of the other kind of models.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        super().__init__(predictors)
        if len(predictors) > 1:
            raise ConfigError(
                "models that find masks by queries are not averaged", where=self.card.name,
                why="each has queries of its own, and nothing says which of them belong together",
                fix="give one model, of folds RUN/fold_0, or train the dense network cmt_unetr",
            )  # fmt: skip
        self.predictor = predictors[0]

    def find(self, loaded: Loaded) -> tuple[Objects, None]:
        """The objects of a case on its own grid."""
        assert self.card.instances is not None  # by the card
        if is_blank(loaded):
            return described(np.zeros(loaded.grid.shape, np.int32), np.zeros(0), 0.0, loaded.grid.spacing), None
        member = self.predictor
        data = member.transform(as_dictionary(loaded))
        image = data["image"].as_tensor().to(member.device)
        numbers, chances = numbered(
            member.network, image, member.windows, query_task(member.card.outputs), self.card.instances
        )
        if member.card.preprocessing["crop_foreground"]:  # it has not learned what lies outside
            numbers = np.where(data["foreground"].as_tensor()[0].numpy() > 0, numbers, 0)
        own = invert_numbers(torch.from_numpy(numbers), data, member.transform).numpy()
        return described(own, chances, self.card.instances.min_object_mm3, loaded.grid.spacing), None
