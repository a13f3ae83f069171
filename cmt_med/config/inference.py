"""Section ``inference``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cmt_med.config.sections import (
    Positive,
    PositiveFloat,
    Probability,
    Section,
)


class Inference(Section):
    """The sliding window, and how probabilities become labels; kept in the model."""

    window: list[Positive] | None = Field(None, description="sliding window in voxels; null for train.patch_size")
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Positive = 1
    tta: Literal["none", "flips"] = "none"
    threshold: Probability = Field(0.5, description="for regions")
    thresholds: dict[str, Probability] = Field(default_factory=dict, description="for single regions, by name")
    min_region_mm3: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="mm³ by name; a region that is smaller in total becomes the one around it"
    )
    min_component_mm3: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="mm³ by name; smaller connected parts are removed"
    )
    confident: Probability | None = Field(
        None, description="a part that reaches this probability stays, however small it is"
    )
    choose: list[Literal["thresholds", "min_region_mm3"]] = Field(
        default_factory=list, description="with folds: settings chosen on the out-of-fold predictions for the model"
    )
