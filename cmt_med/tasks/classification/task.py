"""Classification as a task: one class for a whole image, the area under the ROC curve as the monitored metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.classification import Classification as Settings
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.evaluation import classes as scores
from cmt_med.tasks.classification.report import assess
from cmt_med.tasks.sections import Assessment
from cmt_med.tasks.task import Batch, Metric

USUAL = Settings()
USUAL_INFERENCE = Inference()


class Classification:
    """A class for each image; see :class:`cmt_med.tasks.task.WholeImageTask`.

    Args:
        classes: names, in the order of the network's outputs.
        settings: of the loss and the sampling.
        counts: training cases of each class, for weights; None where nothing is trained.
    """

    name: ClassVar[str] = "classification"
    monitor: ClassVar[Metric] = Metric("auc", "macro AUC")
    dense: ClassVar[bool] = False
    objects: ClassVar[bool] = False
    boxes: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    overlapping: ClassVar[bool] = False
    regions: ClassVar[None] = None

    def __init__(self, classes: Sequence[str], settings: Settings = USUAL, counts: Sequence[int] | None = None) -> None:
        self.classes, self.settings, self.counts = tuple(classes), settings, counts

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Classification:
        """With the case list's classes."""
        if len(manifest.classes) < 2:
            found = f"the case list names {', '.join(manifest.classes)}" if manifest.classes else "no case has a class"
            raise DataError(
                "there is nothing to tell apart", where=str(manifest.path), why=found,
                fix='add "class": "NAME" to each case; cmt-med init makes the list from a folder for each class',
                code="E_MANIFEST",
            )  # fmt: skip
        if experiment.train.loss != "dice_ce":
            raise ConfigError(
                f"{experiment.train.loss} is a loss of label maps", where="train.loss",
                why="classification uses cross-entropy", fix="leave it out; see the section classification",
            )  # fmt: skip
        return cls(manifest.classes, experiment.classification)

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Classification:
        """From names and numbers as a model card has them."""
        if regions is not None or sorted(labels.values()) != list(range(len(labels))):
            raise ValueError("classes are numbered from 0 on, and have no regions")
        return cls(sorted(labels, key=labels.__getitem__))

    @property
    def labels(self) -> dict[str, int]:
        """Name -> number of the network's output."""
        return {name: i for i, name in enumerate(self.classes)}

    @property
    def scored(self) -> dict[str, list[int]]:
        """Nothing: there are no label maps."""
        return {}

    @property
    def channels(self) -> int:
        return len(self.classes)

    @property
    def balanced(self) -> bool:
        return self.settings.sampling == "balanced"

    @staticmethod
    def has_target(case: Case) -> bool:
        return bool(case.class_name)

    def target(self, case: Case) -> int:
        return self.labels[case.class_name]

    def with_training(self, cases: Sequence[Case]) -> Classification:
        counts = Counter(case.class_name for case in cases)
        return Classification(self.classes, self.settings, [counts[name] for name in self.classes])

    def check(self, settings: Inference) -> None:
        """Raise for settings of label maps."""
        for key in ("threshold", "thresholds", "min_region_mm3", "min_component_mm3", "confident", "choose"):
            if getattr(settings, key) != getattr(USUAL_INFERENCE, key):
                raise ConfigError(
                    "post-processing is for label maps", where=f"inference.{key}",
                    why="a class is the most probable one", fix=f"leave inference.{key} out",
                )  # fmt: skip
        for key in ("window", "overlap"):
            if getattr(settings, key) != getattr(USUAL_INFERENCE, key):
                raise ConfigError(
                    "windows are for label maps", where=f"inference.{key}",
                    why="the network sees a whole image at once", fix=f"leave inference.{key} out",
                )  # fmt: skip

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        return ()

    def loss(self, output: Tensor | list[Tensor], batch: Batch) -> Tensor:
        """Cross-entropy of logits (B, K), with weights by class and smoothed labels as configured."""
        assert isinstance(output, Tensor)  # a classifier has no deep supervision
        weight = None
        if self.settings.class_weights == "balanced" and self.counts is not None:
            inverse = [1 / n if n else 0.0 for n in self.counts]
            weight = output.new_tensor(inverse, dtype=torch.float32) * (sum(self.counts) / len(self.counts))
        return F.cross_entropy(
            output.float(), batch["class"].long(), weight=weight, label_smoothing=self.settings.label_smoothing
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(0)

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        """Nothing lies outside of an answer for a whole image."""

    def score(self, found: Tensor, entry: CachedCase, settings: Inference) -> list[float]:
        """The probabilities (K,), and the number of the true class."""
        return [*map(float, found), float(entry.target if entry.target is not None else -1)]

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Macro AUC (NaN if a class has no case), accuracy, balanced accuracy and log loss."""
        answers = scores.answers_of(
            rows[:, :-1].tolist(), rows[:, -1].astype(int).tolist(), list(map(str, range(len(rows))))
        )
        return {
            "auc": scores.macro_auc(answers),
            "accuracy": scores.accuracy(answers),
            "balanced_accuracy": scores.balanced_accuracy(answers),
            "log_loss": float(scores.log_loss(answers).mean()),
        }

    def identity(self) -> list[Any]:
        return ["classification", list(self.classes)]

    # ---- what comes out

    @property
    def columns(self) -> list[str]:
        return ["class", *(f"p_{name}" for name in self.classes)]

    def record(self, probabilities: Tensor) -> dict[str, Any]:
        values = [float(p) for p in probabilities]
        return {
            "class": self.classes[int(np.argmax(values))],
            "probabilities": dict(zip(self.classes, values, strict=True)),
        }

    def row(self, record: Mapping[str, Any]) -> list[Any]:
        """The class and the probabilities of a record.

        Raises:
            DataError: E_RUN, if it lacks them.
        """
        found = record.get("probabilities")
        if not isinstance(found, dict) or set(found) != set(self.classes):
            raise DataError(
                "the record has no probabilities of these classes", where=f"case {record.get('case')}",
                why=f"the classes are {', '.join(self.classes)}", fix="run infer again", code="E_RUN",
            )  # fmt: skip
        return [record["class"], *(float(found[name]) for name in self.classes)]

    def assess(
        self, records: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Case], failures: Sequence[Mapping[str, str]]
    ) -> Assessment:
        strange = sorted({cases[name].class_name for name in records} - set(self.classes))
        if strange:
            raise DataError(
                f"the references have classes that the model does not know: {', '.join(strange)}",
                where=next(name for name in records if cases[name].class_name in strange),
                why=f"the model knows {', '.join(self.classes)}", fix="rename them in the case list", code="E_LABEL",
            )  # fmt: skip
        return assess(
            self.classes, {name: self.row(record)[1:] for name, record in records.items()},
            {name: (self.target(cases[name]), cases[name].group or name) for name in records}, failed=len(failures),
        )  # fmt: skip
