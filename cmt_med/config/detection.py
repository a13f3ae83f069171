"""Section ``detection``: how boxes are learned, and which of those that are found are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cmt_med.config.sections import PositiveFloat, Probability, Section


class Detection(Section):
    """Boxes around objects; for ``task: detection``. All but the weight is kept in the model."""

    box_weight: PositiveFloat = Field(1.0, description="of the loss of the boxes' faces, beside that of the classes")
    min_score: Probability = Field(
        0.05, description="boxes with a lower score are not written; scores over all bounds need the low ones, too"
    )
    overlap: Probability = Field(
        0.5, description="intersection over union from which two boxes of a class are one object"
    )
    most: Annotated[int, Field(ge=1, le=10_000)] = Field(
        300, description="boxes of an image, those of the largest scores"
    )
    min_component_mm3: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="mm³; where boxes are derived from label maps, smaller connected parts are no objects"
    )
