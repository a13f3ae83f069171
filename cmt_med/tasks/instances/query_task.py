"""Instances by queries with a mask each (``cmt_mask_queries``), beside the dense baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.instances import Instances as Settings
from cmt_med.config.schema import Inference
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.tasks.instances.masks import mask_loss, numbered_objects
from cmt_med.tasks.instances.pieces import Pieces, pieces
from cmt_med.tasks.instances.task import Instances, scores_of
from cmt_med.tasks.task import Batch

LEAST = 4
"""Voxels of an object below which a patch does not have it in 2D; in 3D its square."""
BOX_WEIGHT = 1.0
"""Of the loss of boxes, which are no result but tell queries where to look."""


class MaskInstances(Instances):
    """Objects with a mask each; see :class:`cmt_med.tasks.task.QueryTask`.

    The network has one class. Labels of batches are the numbers of objects.
    """

    queries: ClassVar[bool] = True
    channels: ClassVar[int] = 1
    without: ClassVar[tuple[str, ...]] = ("depth_weight", "prominence", "smoothing")

    def check(self, settings: Inference) -> None:
        """Raise for settings of label maps, and for averages over mirrored images."""
        super().check(settings)
        if settings.tta != "none":
            raise ConfigError(
                "masks of mirrored images are not averaged", where=f"inference.tta={settings.tta}",
                why="each has queries of its own, and nothing says which of them belong together",
                fix="use tta: none, or the dense network cmt_unetr",
            )  # fmt: skip

    def prepared(self, batch: Batch) -> Batch:
        """With the objects of each patch, numbered from 1 on, and their boxes."""
        numbers, boxes, there = numbered_objects(batch["label"], LEAST ** (batch["image"].ndim - 3))
        return {**batch, "label": numbers, "boxes": boxes, "box_class": there.long()}

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        """Boxes and classes, for queries that learn from noised ones."""
        return batch["boxes"], batch["box_class"] - 1

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """See :func:`cmt_med.tasks.instances.masks.mask_loss`; ``batch`` is prepared."""
        return mask_loss(output, batch["label"], batch["boxes"], batch["box_class"] > 0, BOX_WEIGHT)

    def score(self, found: Any, entry: CachedCase, settings: Inference) -> list[float]:
        """As of the dense network, from the numbers of objects on the preprocessed grid."""
        return scores_of(found, entry)

    def identity(self) -> list[Any]:
        return ["instances", "masks"]

    def pieces(self, output: Tensor, size: Sequence[int], settings: Settings) -> list[Pieces]:
        return pieces(output, size, settings)
