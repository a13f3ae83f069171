"""Section ``data``: cases, channels, labels, and how they are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cmt_med.config.sections import (
    Fraction,
    PercentRange,
    Positive,
    Section,
    ValueRange,
    VoxelSize,
)


class Region(Section):
    """A target made of labels; regions may overlap and are predicted independently."""

    name: str
    labels: list[str] = Field(min_length=1, description="names of the labels it consists of")
    write: str = Field(description="name of the label painted where it is predicted; later regions paint over earlier")

    @field_validator("name")
    @classmethod
    def _not_the_mean(cls, name: str) -> str:
        if name == "mean":
            raise ValueError("reports call the average over regions mean; give another name")
        return name


class Split(Section):
    """The cases held out for validation; cases of one patient (`group`) always stay together."""

    by: Literal["last", "random", "fold", "none"] = "random"
    count: Positive | None = Field(None, description="number of cases, for last and random")
    fraction: Fraction | None = Field(None, description="share of the cases, for last and random")
    fold: Annotated[int, Field(ge=0)] = Field(0, description="the fold held out, for fold")
    folds: Annotated[int, Field(ge=2)] = Field(5, description="number of seeded folds, if the manifest has none")

    @model_validator(mode="after")
    def _one_amount(self) -> Split:
        if self.by in ("last", "random") and (self.count is None) == (self.fraction is None):
            raise ValueError(f"by: {self.by} needs either count or fraction")
        return self


Missing = Literal["drop", "zeros"]
"""What is done with cases that lack a channel."""


class Data(Section):
    """Cases and channels, and their preparation."""

    manifest: str = Field(
        min_length=1,
        description="case list (MSD dataset.json, MONAI datalist), or a folder or table that init takes; "
        "a relative path is looked for in the current folder, then in the config's",
    )
    phantom: bool | Literal["lesions"] = Field(
        False,
        description="make synthetic heads (PHANTOM DATA) if the config's own case list does not exist: true for heads with one "
        "tumour each, lesions for heads with up to 12 numbered lesions",
    )
    channels: list[str] = Field(min_length=1, description="input channels by name, in the network's order")
    missing: Missing = Field(
        "drop",
        description="cases without one of the channels: drop leaves them out of folders and tables, and in a case list they are "
        "errors; zeros uses them, with 0 (the mean of a z-score) in its place, in training and by the model's infer",
    )
    regions: list[Region] | Literal["brats", "listed"] | None = Field(
        None,
        description="overlapping targets; listed: those of the case list; brats: these, or the challenge's; null: a class per "
        "label",
    )
    split: Split = Split(by="random", fraction=0.2)
    spacing: list[VoxelSize] | None = Field(None, description="voxel size in mm to resample to; null keeps it")
    crop_foreground: bool = Field(False, description="crop to the part that differs from the background")
    normalise: Literal["image", "foreground"] = Field("image", description="voxels that z-scores are taken over")
    enlarge: bool = Field(
        True, description="where whole images are classified: scale small ones up; false keeps sizes in mm comparable"
    )
    clip: PercentRange | None = Field(
        None, strict=False, description="percentiles that brightness is clipped to, per channel"
    )
    window: dict[str, ValueRange] | None = Field(
        None,
        description="channel: [lowest, highest] value that it is clipped to, which become -1 and 1 in every case, in place of "
        "z-scores: for CT, whose values (HU) mean the same in all cases",
    )
    foreground_channel: bool = Field(False, description="give the network the foreground mask as one more channel")
    slice_axis: Literal[0, 1, 2, "all"] | None = Field(
        None,
        description="axis (right, front, top) that 2D slices lie across; all: trained on and averaged over the three",
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that prepare batches; results are the same")

    @field_validator("window")
    @classmethod
    def _not_empty(cls, window: dict[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]] | None:
        if window == {}:
            raise ValueError("name a channel, as {ct: [-160, 240]}, or leave it out")
        return window
