"""Validation scores of cases that nobody has annotated in full, by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmt_med.config.schema import Inference
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.tasks.segmentation.labels import Classes
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.segmentation.task import Segmentation

LABELS = {"background": 0, "a": 1, "b": 2}
SCHEME = Classes([Target("a", (1,), 1), Target("b", (2,), 2)])


@dataclass(frozen=True)
class Drawn(CachedCase):
    """A cached case whose label map is at hand."""

    def label(self) -> NDArray[np.uint8]:
        return np.array([1, 1, 0, 0, 9, 9, 2, 0], np.uint8).reshape(1, 2, 2, 2)


def test_what_is_not_annotated_is_not_scored() -> None:
    """Of a, one voxel of two is found and one invented; two more are where nobody knows. Of b, the only one is found."""
    found = torch.eye(3)[torch.tensor([1, 0, 1, 0, 1, 1, 2, 0])].T.reshape(3, 2, 2, 2)
    task = Segmentation(SCHEME, LABELS, ignore=9)
    assert task.score(found, Drawn("x", Path()), Inference()) == [0.5, 1.0]
    partial = task.score(found, Drawn("x", Path(), annotated=(1,)), Inference())
    assert partial[0] == 0.5
    assert math.isnan(partial[1])
    assert Segmentation(SCHEME, LABELS).score(found, Drawn("x", Path()), Inference())[0] == pytest.approx(2 / 6)


def test_means_are_of_cases_that_annotate_a_target() -> None:
    task = Segmentation(SCHEME, LABELS)
    assert task.summarise(np.array([[0.5, np.nan], [1.0, 0.25]])) == {"dice": 0.5, "dice/a": 0.75, "dice/b": 0.25}
    assert task.summarise(np.array([[0.5, np.nan]])) == {"dice": 0.5, "dice/a": 0.5}
    assert math.isnan(task.summarise(np.full((1, 2), np.nan))["dice"])
