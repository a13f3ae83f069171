"""The protocol of a task: all that the rest of the package knows of what a network is trained to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.base.boxes import Boxes
from cmt_med.config.schema import Detection, Experiment, Inference, Instances
from cmt_med.data.case import Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.tasks.instances.decode import Objects
from cmt_med.tasks.instances.pieces import Pieces
from cmt_med.tasks.sections import Assessment

Batch = Mapping[str, Tensor]
"""``image`` (B, C, *S) and what the task has to be told beside it: ``label`` (B, 1, *S), or ``class`` (B,).

``boxes`` (B, N, 2d), ``box_class`` and ``box_ignored`` (B, N) are there where targets are boxes, in voxels of the patch; rows of
the class 0 stand for none. ``annotated`` (B, 256) is there where cases do not annotate all labels: which values they do.
"""


@dataclass(frozen=True)
class Metric:
    """The score that validation watches: the key in its scores, how it is printed, and which direction is better."""

    name: str
    title: str
    higher_is_better: bool = True

    def is_better(self, value: float, than: float | None) -> bool:
        """Return true if a value is better than the best before; than none, any number is."""
        if than is None:
            return value == value
        return value > than if self.higher_is_better else value < than


class Task(Protocol):
    """One task with one data set's targets.

    Attributes:
        name: of the task, as ``task:`` in a config and in a model card.
        monitor: what validation watches.
        dense: whether the network answers for each position, in windows; else once for a whole image
            (:class:`WholeImageTask`).
        objects: whether its targets are objects with a number each (:class:`ObjectTask`), and no label values.
        boxes: whether its targets are boxes around objects (:class:`BoxTask`), and no label values.
        unlabelled: whether it learns from images alone, and its models are for others to start from.
        queries: whether the network finds objects with a mask each (:class:`QueryTask`), and no maps.
    """

    name: ClassVar[str]
    monitor: ClassVar[Metric]
    dense: ClassVar[bool]
    objects: ClassVar[bool]
    boxes: ClassVar[bool]
    unlabelled: ClassVar[bool]
    queries: ClassVar[bool]

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Task:
        """The task that a config and a case list describe.

        Raises:
            ConfigError: if the two do not fit together; DataError: E_MANIFEST, if there is nothing to learn from.
        """
        ...

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Task:
        """The task of a trained model, from its card."""
        ...

    @property
    def labels(self) -> dict[str, int]:
        """Names of what is predicted, and their values in label maps."""
        ...

    @property
    def regions(self) -> list[dict[str, Any]] | None:
        """Overlapping regions as a model card has them; None where classes exclude each other."""
        ...

    @property
    def overlapping(self) -> bool:
        """Tell whether targets are predicted independently, each with a threshold of its own."""
        ...

    @property
    def scored(self) -> dict[str, list[int]]:
        """The scored targets, with their label values."""
        ...

    @property
    def channels(self) -> int:
        """Classes of the network's output (``num_classes``)."""
        ...

    @staticmethod
    def has_target(case: Case) -> bool:
        """Return true for a case that can be learned from."""
        ...

    def target(self, case: Case) -> int | None:
        """Return the number of its class; None where that is a label map."""
        ...

    def with_training(self, cases: Sequence[Case]) -> Task:
        """The task once it is known which cases are trained on."""
        ...

    @property
    def balanced(self) -> bool:
        """Tell whether training shows each class equally often."""
        ...

    def check(self, settings: Inference) -> None:
        """Raise for inference settings that name what is not predicted.

        Raises:
            ConfigError: naming the key.
        """
        ...

    def prepared(self, batch: Batch) -> Batch:
        """The batch as the network is to be shown it while training; what the loss needs of it beside goes with it."""
        ...

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        """What networks that ask for it (``takes_hints``) are told beside the image while they are trained."""
        ...

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The loss of the network's output, or of a list of outputs from fine to coarse (deep supervision)."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (K, ...) to probabilities of the same shape."""
        ...

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        """Write into probabilities (K, *S), where ``outside`` (*S) is true, that nothing is there."""
        ...

    def score(self, found: Any, entry: CachedCase, settings: Inference) -> Sequence[float]:
        """A row of numbers about a cached case, from its probabilities on the preprocessed grid (K, ...), or its boxes."""
        ...

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """The scores of a validation from the rows of all its cases (N, ...): ``monitor.name`` is among the keys."""
        ...

    def identity(self) -> list[Any]:
        """Whatever a run's checkpoints depend on beside its config, as JSON."""
        ...


def draws_labels(task: Task | type[Task]) -> bool:
    """Tell whether a task's results are label maps, in which each position has a value with a name."""
    return task.dense and not task.objects and not task.boxes and not task.unlabelled


class Assessing(Task, Protocol):
    """A task that makes a report of its own."""

    def assess(
        self, records: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Case], failures: Sequence[Mapping[str, str]]
    ) -> Assessment:
        """Score what is known of cases against their targets.

        Args:
            records: case name -> record.
            cases: those that were to be predicted, with their targets.
            failures: what could not be scored; it is counted.
        """
        ...


class ObjectTask(Assessing, Protocol):
    """A task whose targets are objects with a number each."""

    def find(self, maps: NDArray[np.float32], settings: Instances, spacing: Sequence[float]) -> Objects:
        """Return the objects in the network's maps (K, *S), with voxels of this size in mm."""
        ...

    def check_objects(self, settings: Instances, network: str) -> None:
        """Raise for settings that mean nothing for a network.

        Raises:
            ConfigError: naming the key.
        """
        ...


class QueryTask(ObjectTask, Protocol):
    """A task whose network finds objects with a mask each, in windows."""

    settings: Instances

    def pieces(self, output: Tensor, size: Sequence[int], settings: Instances) -> list[Pieces]:
        """The objects of each window of a size, from the network's output."""
        ...


def query_task(task: Task) -> QueryTask:
    """A task whose network finds masks, as what it is."""
    assert task.queries  # by the callers
    return cast(QueryTask, task)


class BoxTask(Assessing, Protocol):
    """A task whose targets are boxes around objects."""

    def find(self, output: Tensor, size: Sequence[int], settings: Detection) -> list[Boxes]:
        """The boxes of each patch of a size, in its voxels, from the network's output."""
        ...


def box_task(task: Task) -> BoxTask:
    """A task whose targets are boxes, as what it is."""
    assert task.boxes  # by the callers
    return cast(BoxTask, task)


def object_task(task: Task) -> ObjectTask:
    """A task whose targets are objects, as what it is."""
    assert task.objects  # by the callers
    return cast(ObjectTask, task)


class WholeImageTask(Assessing, Protocol):
    """A task whose network answers once for a whole image: what its records, tables and reports say."""

    @property
    def columns(self) -> list[str]:
        """Of ``predictions.csv``, behind the case."""
        ...

    def record(self, probabilities: Tensor) -> dict[str, Any]:
        """Make the record of a case from its probabilities (K,)."""
        ...

    def row(self, record: Mapping[str, Any]) -> list[Any]:
        """The values of :attr:`columns`, from a record."""
        ...


def whole_image_task(task: Task) -> WholeImageTask:
    """A task that is not dense, as what it is."""
    assert not task.dense  # by the callers
    return cast(WholeImageTask, task)
