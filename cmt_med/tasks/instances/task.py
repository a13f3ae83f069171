"""Instances as a task: objects with a number each, panoptic quality as the monitored metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.instances import Instances as Settings
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.data.preprocessing.depth import DEEPEST
from cmt_med.evaluation.instances import bowl_score, detections, overlaps
from cmt_med.tasks.instances.decode import Objects, decode
from cmt_med.tasks.instances.report import TARGET, assess
from cmt_med.tasks.label_settings import refuse_label_settings
from cmt_med.tasks.sections import Assessment
from cmt_med.tasks.segmentation.losses import region_loss
from cmt_med.tasks.task import Batch, Metric

USUAL = Settings()
_VALIDATED = ("pq", "f1", "ap_bowl")


class Instances:
    """Objects with a number each; see :class:`cmt_med.tasks.task.ObjectTask`.

    The network has two channels: the logit of the foreground, and that of the depth of a voxel in its object, from 0 at the
    border to 1 in the middle (:mod:`cmt_med.data.preprocessing.depth`).

    Args:
        settings: the weight of the loss of depths, and how objects are found.
    """

    name: ClassVar[str] = "instances"
    monitor: ClassVar[Metric] = Metric("pq", "PQ")
    dense: ClassVar[bool] = True
    objects: ClassVar[bool] = True
    boxes: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    balanced: ClassVar[bool] = False
    overlapping: ClassVar[bool] = False
    regions: ClassVar[None] = None
    channels: ClassVar[int] = 2
    without: ClassVar[tuple[str, ...]] = ("min_score",)
    """Settings that mean nothing here."""

    def __init__(self, settings: Settings = USUAL) -> None:
        self.settings = settings

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Instances:
        """With the case list's numbered objects."""
        if all(case.instances is None for case in manifest.cases):
            raise DataError(
                "there is nothing to learn from", where=str(manifest.path), why="no case has numbered objects",
                fix='add "instances": FILE to each case, a label image with a number for each object; cmt-med init makes the '
                "list from the folders images/ and instances/", code="E_MANIFEST",
            )  # fmt: skip
        if experiment.train.loss != "dice_ce":
            raise ConfigError(
                f"{experiment.train.loss} is a loss of label maps", where="train.loss",
                why="instances uses Dice and cross-entropy of the foreground, and cross-entropy of depths",
                fix="leave it out; see the section instances",
            )  # fmt: skip
        task = cls(experiment.instances)
        task.check_objects(experiment.instances, experiment.network.name)
        return task

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Instances:
        """From a model card."""
        if regions is not None or labels != cls().labels:
            raise ValueError(f"objects are the one label {TARGET}, and have no regions")
        return cls()

    @property
    def labels(self) -> dict[str, int]:
        return {"background": 0, TARGET: 1}

    @property
    def scored(self) -> dict[str, list[int]]:
        return {TARGET: [1]}

    @staticmethod
    def has_target(case: Case) -> bool:
        return case.instances is not None

    def target(self, case: Case) -> int | None:
        return None

    def with_training(self, cases: Sequence[Case]) -> Instances:
        return self

    def check(self, settings: Inference) -> None:
        """Raise for settings of label maps."""
        refuse_label_settings(
            settings,
            "how objects are found is said in the section instances",
            "instances.threshold and instances.min_object_mm3",
        )  # fmt: skip

    def check_objects(self, settings: Settings, network: str) -> None:
        """Raise for settings of the section ``instances`` that mean nothing for a network."""
        for key in self.without:
            if getattr(settings, key) != getattr(USUAL, key):
                raise ConfigError(
                    f"{network} has no use for this setting", where=f"instances.{key}",
                    why="some belong to maps of depth, others to masks of queries", fix=f"leave instances.{key} out",
                )  # fmt: skip

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        return ()

    def loss(self, output: Tensor | list[Tensor], batch: Batch) -> Tensor:
        """Dice and cross-entropy of the foreground, and cross-entropy of depths, on each scale with the weight 2^-i.

        The target of a coarse position is the mean over the voxels that it covers.
        """
        scales = [output] if isinstance(output, Tensor) else output
        depth = batch["label"].float() / DEEPEST
        targets = torch.cat([(depth > 0).float(), depth], dim=1)
        terms = [2.0**-i * self._on_scale(logits.float(), targets) for i, logits in enumerate(scales)]
        return torch.stack(terms).sum() / sum(2.0**-i for i in range(len(scales)))

    def _on_scale(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape[2:] != targets.shape[2:]:
            targets = F.interpolate(targets, logits.shape[2:], mode="area")
        depths = F.binary_cross_entropy_with_logits(logits[:, 1:], targets[:, 1:])
        return region_loss(logits[:, :1], targets[:, :1]) + self.settings.depth_weight * depths

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        probabilities[:, outside] = 0.0

    def score(self, found: Tensor, entry: CachedCase, settings: Inference) -> list[float]:
        """Panoptic quality, F1 at IoU 0.5, and the Data Science Bowl's average precision, on the preprocessed grid.

        The network is scored: nothing is too small for that.
        """
        bare = self.settings.model_copy(update={"min_object_mm3": 0.0})
        objects = decode(found.cpu().numpy(), bare, (1.0,) * (found.ndim - 1))
        return scores_of(objects.numbers, entry)

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Means over cases."""
        return {name: float(column.mean()) for name, column in zip(_VALIDATED, rows.T, strict=True)}

    def identity(self) -> list[Any]:
        return ["instances", DEEPEST]

    # ---- what comes out

    def find(self, maps: NDArray[np.float32], settings: Settings, spacing: Sequence[float]) -> Objects:
        return decode(maps, settings, spacing)

    def assess(
        self, records: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Case], failures: Sequence[Mapping[str, str]]
    ) -> Assessment:
        return assess(records, {name: cases[name].group or name for name in records}, failed=len(failures))


def scores_of(numbers: NDArray[np.integer], entry: CachedCase) -> list[float]:
    """Panoptic quality, F1 at IoU 0.5, and the Data Science Bowl's average precision of objects on the preprocessed grid."""
    compared = overlaps(numbers, np.asarray(entry.instances()))
    at_half = detections(compared)
    return [at_half.pq, at_half.f1, bowl_score(compared)]
