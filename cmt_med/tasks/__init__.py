"""Tasks that networks are trained for: one room for each task, behind one protocol."""

from __future__ import annotations

from cmt_med.networks import MASK_NETWORKS
from cmt_med.tasks.classification.task import Classification
from cmt_med.tasks.detection.task import Detection
from cmt_med.tasks.instances.query_task import MaskInstances
from cmt_med.tasks.instances.task import Instances
from cmt_med.tasks.pretraining.task import Pretraining
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "segmentation": Segmentation, "classification": Classification, "detection": Detection, "instances": Instances,
    "pretraining": Pretraining,
}  # fmt: skip


def task_class(name: str, network: str) -> type[Task]:
    """The class of a task, as a network answers it: by maps, or by queries with a mask each."""
    return MaskInstances if name == "instances" and network in MASK_NETWORKS else TASKS[name]
