"""Pretraining as a task: hidden blocks are told from the rest of the image, and no label is needed.

Masked image modelling for convolutional pyramids (SimMIM, Xie et al., CVPR 2022; nnU-Net's masked autoencoder, Wald et al.,
CVPR 2025): hidden blocks are 0, the mean of a z-score, and the loss looks at them alone. Skips are kept. With noise over what is
shown, the whole image is to be cleaned, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.pretraining import Pretraining as Settings
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.tasks.pretraining.masks import hidden_blocks
from cmt_med.tasks.pretraining.report import assess
from cmt_med.tasks.sections import Assessment
from cmt_med.tasks.task import Batch, Metric

USUAL = Settings()


class Pretraining:
    """Hidden blocks of images; see :class:`cmt_med.tasks.task.Task`. Its labels are the channels, numbered from 1.

    Args:
        names: of the image's channels.
        settings: what is hidden.
    """

    name: ClassVar[str] = "pretraining"
    monitor: ClassVar[Metric] = Metric("explained", "variance explained in hidden blocks")
    dense: ClassVar[bool] = True
    objects: ClassVar[bool] = False
    boxes: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = True
    queries: ClassVar[bool] = False
    balanced: ClassVar[bool] = False
    overlapping: ClassVar[bool] = False
    regions: ClassVar[None] = None

    def __init__(self, names: Sequence[str], settings: Settings = USUAL) -> None:
        self.names, self.settings = tuple(names), settings

    @classmethod
    def from_data(cls, experiment: Experiment, manifest: Manifest) -> Pretraining:
        """With the experiment's channels."""
        if experiment.train.loss != "dice_ce":
            raise ConfigError(
                f"{experiment.train.loss} is a loss of label maps", where="train.loss",
                why="pretraining uses the squared error of hidden voxels", fix="leave it out; see the section pretraining",
            )  # fmt: skip
        return cls([canonical_channel(name) for name in experiment.data.channels], experiment.pretraining)

    @classmethod
    def from_card(cls, labels: dict[str, int], regions: Sequence[Mapping[str, Any]] | None) -> Pretraining:
        """From a model card."""
        names = [name for name, value in labels.items() if value]
        if regions is not None or not names:
            raise ValueError("pretraining has the channels of the image, and no regions")
        return cls(names)

    @property
    def labels(self) -> dict[str, int]:
        return {"background": 0} | {name: number for number, name in enumerate(self.names, 1)}

    @property
    def scored(self) -> dict[str, list[int]]:
        return {}

    @property
    def channels(self) -> int:
        return len(self.names)

    @staticmethod
    def has_target(case: Case) -> bool:
        return bool(case.images)

    def target(self, case: Case) -> int | None:
        return None

    def with_training(self, cases: Sequence[Case]) -> Pretraining:
        return self

    def check(self, settings: Inference) -> None:
        """Nothing is inferred."""

    def prepared(self, batch: Batch) -> Batch:
        """Hide blocks: ``image`` is what the network sees, ``whole`` the image, ``hidden`` (B, 1, *S) what is 0 in it."""
        whole = batch["image"]
        hidden = hidden_blocks(len(whole), whole.shape[2:], self.settings.block, self.settings.hidden, whole.device)
        seen = whole
        if self.settings.noise > 0:
            amount = self.settings.noise * torch.rand((len(whole), *(1,) * (whole.ndim - 1)), device=whole.device)
            seen = whole + amount * torch.randn_like(whole)
        return {**batch, "image": seen.masked_fill(hidden, 0.0), "whole": whole, "hidden": hidden}

    def hints(self, batch: Batch) -> tuple[Tensor, ...]:
        return ()

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The mean squared error of hidden voxels, and with noise of the shown ones, too, each by itself."""
        assert isinstance(output, Tensor)  # without deep supervision
        whole = batch["whole"]
        error = (output.float() - whole[:, : output.shape[1]]).square()
        hidden = batch["hidden"].expand_as(error)
        found = error[hidden].mean()
        return found + error[~hidden].mean() if self.settings.noise > 0 else found

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def set_outside(self, probabilities: Tensor, outside: Tensor) -> None:
        probabilities[:, outside] = 0.0

    def score(self, found: Any, entry: CachedCase, settings: Inference) -> list[float]:
        """Squared error and variance in hidden blocks, as :func:`cmt_med.inference.reconstruction.reconstructed` has them."""
        return [float(found.error), float(found.variance)]

    def summarise(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Over all cases: the mean squared error, and the share of the variance that it leaves explained."""
        error, variance = rows.mean(axis=0)
        return {"explained": 1.0 - float(error) / max(float(variance), 1e-12), "error": float(error)}

    def identity(self) -> list[Any]:
        return ["pretraining", list(self.names)]

    def assess(
        self, records: Mapping[str, Mapping[str, Any]], cases: Mapping[str, Case], failures: Sequence[Mapping[str, str]]
    ) -> Assessment:
        groups = {name: cases[name].group or name for name in records}
        return assess(records, groups, failed=len(failures))
