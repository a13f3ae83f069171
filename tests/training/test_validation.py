"""Validation while training: what it must not take for a score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Detection, Inference
from cmt_med.data.manifest import load_manifest
from cmt_med.data.preprocessing.cache import prepare
from cmt_med.inference.predict import Windows
from cmt_med.tasks.segmentation.labels import Classes
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.training.validation import validator
from tests.helpers import tiny_dataset


class Constant(torch.nn.Module):
    """The same logit everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(x.shape[0], 2, *x.shape[2:])


@pytest.mark.fault(1)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_no_score(tmp_path: Path, value: float) -> None:
    manifest = load_manifest(tiny_dataset(tmp_path / "d", 1))
    settings = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}
    entry = prepare(
        manifest.cases[0], channels=("a", "b"), labels=manifest.labels, settings=settings, folder=tmp_path / "cache"
    )
    validate = validator(
        [entry],
        Windows((16, 16, 16), 0.5, 1),
        Segmentation(Classes([Target("ball", (1,), 1)]), manifest.labels),
        Inference(),
        Detection(),
    )
    assert validate(Constant(0.0), lambda: False) == {"dice": 0.0, "dice/ball": 0.0}
    with pytest.raises(DataError, match="not finite") as caught:
        validate(Constant(value), lambda: False)
    assert caught.value.code == "E_NAN"
    assert "case0" in caught.value.where
