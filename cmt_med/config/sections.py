"""The common base of a config's sections: strictness, and numbers with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError(
            f"the first percentile must be below the second; {pair[0]:g} and {pair[1]:g} leave no contrast"
        )
    return pair


PercentRange = Annotated[tuple[Percent, Percent], AfterValidator(_rising)]


def _wide(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError(f"the first value must be below the second; {pair[0]:g} and {pair[1]:g} leave no contrast")
    return pair


Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
ValueRange = Annotated[tuple[Value, Value], AfterValidator(_wide), Field(strict=False)]
VoxelSize = Annotated[float, Field(ge=1e-4, le=1e3, allow_inf_nan=False)]
"""Edge of a voxel in mm, from a tenth of a micrometre (light microscopy) to a metre; anything else is a slip of the pen."""


class Section(BaseModel):
    """A part of the file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
