"""Segmentation as a task: label maps as targets, Dice as the monitored metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import standard_regions
from cmt_med.data.conventions.names import TUMOUR_LABELS
from cmt_med.data.conventions.regions import region_values
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.evaluation.overlap import case_overlaps
from cmt_med.tasks.segmentation.labels import LabelScheme, scheme_of
from cmt_med.tasks.segmentation.losses import Kind, segmentation_loss
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.task import Batch, Metric


class Segmentation:
    """A label for each voxel; see :class:`cmt_med.tasks.task.Task`.

    Args:
        scheme: classes or regions.
        labels: name -> value in the label maps, the background among them.
        loss: which one is minimised.
        ignore: value in the label maps of voxels that nobody has annotated; None for none.
    """

    name: ClassVar[str] = "segmentation"
    monitor: ClassVar[Metric] = Metric("dice", "Dice")
    dense: ClassVar[bool] = True
    objects: ClassVar[bool] = False
    boxes: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    balanced: ClassVar[bool] = False

    def __init__(
        self, scheme: LabelScheme, labels: dict[str, int], loss: Kind = "dice_ce", *, ignore: int | None = None
    ) -> None:
        self.scheme, self.labels, self.ignore = scheme, labels, ignore
        values = [channel.values for channel in scheme.channels]
        self._loss = segmentation_loss(values, partial(scheme.loss, kind=loss), ignore=ignore)

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Segmentation:
        """With the config's regions, in the data set's numbers; a class per label where it has none."""
        if not manifest.labels or all(case.label is None for case in manifest.cases):
            raise DataError(
                "there is nothing to learn from", where=str(manifest.path),
                why="no labels are named" if not manifest.labels else "no case has a label",
                fix='add "labels": {"0": "background", ...} and a "label" for each case', code="E_MANIFEST",
            )  # fmt: skip
        if set(manifest.labels.values()) == {0}:
            raise DataError(
                "there is nothing to learn from", where=str(manifest.path), why="its only label is the background",
                fix="check the label maps: all of them are empty", code="E_LABEL",
            )  # fmt: skip
        wanted = experiment.data.regions
        if wanted == "listed":
            if manifest.regions is None:
                raise ConfigError(
                    "the case list has no regions", where="data.regions=listed", why=f"{manifest.path} names labels alone",
                    fix="leave it out, or write out data.regions",
                )  # fmt: skip
            wanted = list(manifest.regions)
        if wanted == "brats":
            wanted = list(manifest.regions) if manifest.regions is not None else standard_regions(manifest.labels)
            if not wanted:
                raise ConfigError(
                    "the data set has no tumour labels", where="data.regions=brats",
                    why=f"the case list names {', '.join(manifest.labels)}",
                    fix=f"name the labels {', '.join(TUMOUR_LABELS)} in the case list, or write out data.regions",
                )  # fmt: skip
        regions = None
        if wanted is not None:
            found = region_values(wanted, manifest.labels)
            regions = [Target(name, tuple(values), write) for name, values, write in found]
        return cls(scheme_of(manifest.labels, regions), manifest.labels, experiment.train.loss, ignore=manifest.ignore)

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Segmentation:
        """From names, values and regions as a model card has them."""
        targets = None
        if regions is not None:
            targets = [Target(region["name"], tuple(region["values"]), region["write"]) for region in regions]
        return cls(scheme_of(labels, targets), labels)

    @property
    def channels(self) -> int:
        return len(self.scheme.channels)

    @property
    def regions(self) -> list[dict[str, Any]] | None:
        if not self.overlapping:
            return None
        return [{"name": t.name, "values": list(t.values), "write": t.write} for t in self.scheme.targets]

    @property
    def overlapping(self) -> bool:
        return self.scheme.overlapping

    @property
    def scored(self) -> dict[str, list[int]]:
        """The scored targets with their label values: the regions, or every label but background."""
        return {target.name: list(target.values) for target in self.scheme.targets}

    @staticmethod
    def has_target(case: Case) -> bool:
        return case.label is not None

    def target(self, case: Case) -> int | None:
        return None

    def with_training(self, cases: Sequence[Case]) -> Segmentation:
        return self

    def check(self, settings: Inference) -> None:
        self.scheme.check(settings)

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        return ()

    def loss(self, output: Tensor | list[Tensor], batch: Batch) -> Tensor:
        return self._loss(output, batch["label"], batch.get("annotated"))

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.scheme.probabilities(logits)

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        self.scheme.set_outside(probabilities, outside)

    def score(self, found: Tensor, entry: CachedCase, settings: Inference) -> list[float]:
        """Dice of each target by the challenge rule; the network is scored, not the post-processing that mends it.

        Voxels that nobody has annotated count nowhere, and targets that the case does not annotate have NaN.
        """
        bare = settings.model_copy(update={"min_region_mm3": {}, "min_component_mm3": {}})
        labels, _ = self.scheme.labels(found, bare)
        overlaps = case_overlaps(labels, np.asarray(entry.label()[0]), self.scored, ignore=self.ignore)
        annotated = None if entry.annotated is None else set(entry.annotated)
        return [
            overlap.dice if annotated is None or set(self.scored[name]) <= annotated else float("nan")
            for name, overlap in overlaps.items()
        ]

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Mean Dice over the cases that annotate a target (``dice/NAME``), and over targets that any does (``dice``)."""
        columns = {name: column[~np.isnan(column)] for name, column in zip(self.scored, rows.T, strict=True)}
        means = {f"dice/{name}": float(column.mean()) for name, column in columns.items() if len(column)}
        return {"dice": float(np.mean([*means.values()])) if means else float("nan")} | means

    def identity(self) -> list[Any]:
        regions = [[target.name, list(target.values), target.write] for target in self.scheme.targets]
        return [self.labels, regions if self.overlapping else None, *([] if self.ignore is None else [self.ignore])]
