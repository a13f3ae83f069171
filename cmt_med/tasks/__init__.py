"""What a network is trained to do: one room for each task, behind one protocol."""

from __future__ import annotations

from cmt_med.tasks.segmentation.task import Segmentation

TASKS = {"segmentation": Segmentation}
