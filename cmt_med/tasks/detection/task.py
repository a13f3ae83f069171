"""Detection as a task: boxes around objects of one or more classes, average precision as the monitored metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.base.boxes import Boxes
from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.detection import Detection as Settings
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.data.volumes.boxes import OBJECT, has_boxes
from cmt_med.evaluation.boxes import COCO, LOOSE, MOST_BOXES, THRESHOLDS, Matches, match, mean_precision, ranking
from cmt_med.networks.heads.retinanet import DetectionLosses
from cmt_med.networks.heads.set_detector import SetOutput
from cmt_med.tasks.detection.centres import centre_loss, peaks
from cmt_med.tasks.detection.fusion import without_repeats
from cmt_med.tasks.detection.report import assess
from cmt_med.tasks.detection.sets import set_boxes, set_loss
from cmt_med.tasks.label_settings import refuse_label_settings
from cmt_med.tasks.sections import Assessment
from cmt_med.tasks.task import Batch, Metric

USUAL = Settings()
MONITORED = tuple(THRESHOLDS.index(value) for value in (*LOOSE, 0.5))
_NUMBERS = 3
"""Of each found box in the rows of a validation: class, score, and the thresholds that it is a match at, as bits."""


class Detection:
    """Boxes around objects; see :class:`cmt_med.tasks.task.BoxTask`.

    Args:
        names: classes -> values, with the background.
        settings: the weight of the loss of boxes, and which boxes are kept.
    """

    name: ClassVar[str] = "detection"
    monitor: ClassVar[Metric] = Metric("ap", "AP, mean of IoU 0.1, 0.3, 0.5")
    dense: ClassVar[bool] = True
    objects: ClassVar[bool] = False
    boxes: ClassVar[bool] = True
    unlabelled: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    balanced: ClassVar[bool] = False
    overlapping: ClassVar[bool] = False
    regions: ClassVar[None] = None

    def __init__(self, names: Mapping[str, int], settings: Settings = USUAL) -> None:
        self.names, self.settings = dict(names), settings
        self.values = [value for value in self.names.values() if value]
        self._number = torch.full((256,), -1, dtype=torch.int64)  # label value -> channel
        for channel, value in enumerate(self.values):
            self._number[value] = channel

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Detection:
        """With the case list's boxes, or what they can be derived from."""
        if not any(map(has_boxes, manifest.cases)):
            raise DataError(
                "there is nothing to learn from", where=str(manifest.path), why="no case has boxes, numbered objects or labels",
                fix='add "boxes": FILE to each case (Pascal VOC, COCO, CSV); cmt-med init makes the list from the folders '
                "JPEGImages/ and Annotations/", code="E_MANIFEST",
            )  # fmt: skip
        if experiment.train.loss != "dice_ce":
            raise ConfigError(
                f"{experiment.train.loss} is a loss of label maps", where="train.loss",
                why="detection uses the focal loss of centres and the GIoU of boxes",
                fix="leave it out; see the section detection",
            )  # fmt: skip
        numbered = all(case.boxes is None for case in manifest.cases) and any(case.instances for case in manifest.cases)
        names = {"background": 0, OBJECT: 1} if numbered else manifest.labels
        if not any(names.values()):
            raise DataError(
                "the classes of boxes are not known", where=str(manifest.path), why="the case list has no labels",
                fix='add "labels": {"0": "background", "1": "NAME", ...}', code="E_MANIFEST",
            )  # fmt: skip
        return cls(names, experiment.detection)

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Detection:
        """From a model card."""
        if regions is not None or not any(labels.values()):
            raise ValueError("boxes have classes, and no regions")
        return cls(labels)

    @property
    def labels(self) -> dict[str, int]:
        return dict(self.names)

    @property
    def scored(self) -> dict[str, list[int]]:
        return {name: [value] for name, value in self.names.items() if value}

    @property
    def channels(self) -> int:
        return len(self.values)

    @staticmethod
    def has_target(case: Case) -> bool:
        return has_boxes(case)

    def target(self, case: Case) -> int | None:
        return None

    def with_training(self, cases: Sequence[Case]) -> Detection:
        return self

    def check(self, settings: Inference) -> None:
        """Raise for settings of label maps."""
        refuse_label_settings(
            settings,
            "which boxes are kept is said in the section detection",
            "detection.min_score, detection.overlap and detection.most",
        )  # fmt: skip

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        """Boxes and classes, for networks that learn from noised ones; ignored ones are none."""
        boxes, classes = self._targets(batch)
        return boxes, torch.where(batch["box_ignored"], -1, classes)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Of maps or of a set, by what the network gives; objects whose middle lies outside of the patch are no targets.

        See :func:`cmt_med.tasks.detection.centres.centre_loss` and :func:`cmt_med.tasks.detection.sets.set_loss`.
        """
        boxes, classes = self._targets(batch)
        size, weight = batch["image"].shape[2:], self.settings.box_weight
        if isinstance(output, DetectionLosses):
            return output.classes + weight * output.boxes
        if isinstance(output, SetOutput):
            return set_loss(output, boxes, classes, batch["box_ignored"], size, weight)
        return centre_loss(output, boxes, classes, batch["box_ignored"], size, weight)

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 2d), and the channels of their classes (B, N), -1 for none."""
        boxes = batch["boxes"]
        low, high = boxes.chunk(2, -1)
        middle = (low + high) / 2
        end = torch.tensor(batch["image"].shape[2:], device=boxes.device)
        inside = ((middle >= 0) & (middle < end)).all(-1)
        return boxes, torch.where(inside, self._number.to(boxes.device)[batch["box_class"]], -1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        probabilities[:, outside] = 0.0

    def find(self, output: Tensor, size: Sequence[int], settings: Settings) -> list[Boxes]:
        """The boxes of each patch, in its voxels, from the network's output; the best first."""
        values = np.array(self.values)
        found = []
        if output.ndim == 3:  # a set of queries
            listing = set_boxes(output, len(size), least=settings.min_score, most=settings.most)
        else:
            listing = peaks(output, size, least=settings.min_score, most=settings.most)
        for boxes, classes, scores in listing:
            low, high = boxes.double().cpu().numpy().reshape(-1, 2, len(size)).swapaxes(0, 1)
            listed = Boxes.of(low, high, values[classes.cpu().numpy()], scores.cpu().numpy(), dims=len(size))
            found.append(without_repeats(listed, settings.overlap))
        return found

    def score(self, found: Any, entry: CachedCase, settings: Inference) -> list[float]:
        """References of each class, and of each found box three numbers, in one row."""
        assert isinstance(found, Boxes)  # see training.validation
        references = entry.boxes()
        row: list[float] = []
        numbers: list[float] = []
        for value in self.values:
            matches = match(found[found.classes == value], references[references.classes == value])
            row.append(matches.references)
            for i, score in enumerate(matches.scores.tolist()):
                numbers += [
                    value,
                    score,
                    _as_bits(matches.hits[:, i]) + _as_bits(matches.ignored[:, i]) * 2 ** len(THRESHOLDS),
                ]
        return [*row, len(numbers) / _NUMBERS, *numbers]

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Average precision over all cases together: mean over classes, at three thresholds, at 0.5, and as COCO has it."""
        by_class = {}
        for number, (name, (value,)) in enumerate(self.scored.items()):
            by_class[name] = ranking([[self._matches(row, number, value)] for row in rows])
        coco = [THRESHOLDS.index(threshold) for threshold in COCO]
        return {
            "ap": mean_precision(by_class, MONITORED),
            "ap50": mean_precision(by_class, [THRESHOLDS.index(0.5)]),
            "map": mean_precision(by_class, coco),
        }

    def _matches(self, row: NDArray[np.float64], number: int, value: int) -> Matches:
        count = int(row[len(self.values)])
        first = len(self.values) + 1
        found = row[first : first + _NUMBERS * count].reshape(count, _NUMBERS)
        found = found[found[:, 0] == value]
        bits = (found[:, 2].astype(np.int64)[None] >> np.arange(2 * len(THRESHOLDS))[:, None]) & 1
        hits, ignored = bits.astype(bool).reshape(2, len(THRESHOLDS), len(found))
        return Matches(found[:, 1], hits, ignored, int(row[number]))

    def identity(self) -> list[Any]:
        return ["detection", sorted(self.names.items()), MOST_BOXES]

    def assess(
        self, records: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Case], failures: Sequence[Mapping[str, str]]
    ) -> Assessment:
        groups = {name: cases[name].group or name for name in records}
        return assess(records, groups, self.scored, failed=len(failures))


def _as_bits(flags: NDArray[np.bool_]) -> int:
    return int((flags.astype(np.int64) << np.arange(len(flags))).sum())
