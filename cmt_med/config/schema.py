"""The schema of an experiment, strictly typed; :mod:`cmt_med.config.reading` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

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
VoxelSize = Annotated[float, Field(ge=1e-4, le=1e3, allow_inf_nan=False)]
"""Edge of a voxel in mm, from a tenth of a micrometre (light microscopy) to a metre; anything else is a slip of the pen."""


class Section(BaseModel):
    """A part of the file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


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
    """Which cases are held out for validation; cases of one patient (`group`) always stay together."""

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


class Data(Section):
    """Which cases and channels there are, and how they are prepared."""

    manifest: str = Field(
        min_length=1,
        description="case list: MSD dataset.json or MONAI datalist JSON; "
        "a relative path is looked for in the current folder, then in the config's",
    )
    channels: list[str] = Field(min_length=1, description="input channels by name, in the network's order")
    regions: list[Region] | Literal["brats"] | None = Field(
        None, description="overlapping targets; brats: those of the case list or the challenge; null: a class per label"
    )
    split: Split = Split(by="random", fraction=0.2)
    spacing: list[VoxelSize] | None = Field(None, description="voxel size in mm to resample to; null keeps it")
    crop_foreground: bool = Field(False, description="crop to the part that differs from the background")
    normalise: Literal["image", "foreground"] = Field("image", description="voxels that z-scores are taken over")
    clip: PercentRange | None = Field(
        None, strict=False, description="percentiles that brightness is clipped to, per channel"
    )
    foreground_channel: bool = Field(False, description="give the network the foreground mask as one more channel")
    slice_axis: Literal[0, 1, 2, "all"] | None = Field(
        None,
        description="axis (right, front, top) that 2D slices lie across; all: trained on and averaged over the three",
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that prepare batches; results are the same")


class Network(Section):
    """A name of ``cmt_med.networks.NETWORKS`` and what it is built with."""

    name: str = "cmt_unetr"
    spatial_dims: Literal[2, 3] = 3
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the network")
    pretrained: str | None = Field(
        None, description="weights for the encoder of cmt_unetr_ti, _xs, _s or _b: the authors' ImageNet checkpoint"
    )


class Augmentation(Section):
    """Probabilities and ranges; each is drawn per patch."""

    flip: Fraction = 0.5
    flip_axes: list[Annotated[int, Field(ge=0, le=2)]] | None = Field(None, description="null for every axis")
    affine: Fraction = 0.5
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    intensity: Fraction = Field(0.5, description="probability of a change of brightness and contrast")
    strength: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="range of that change, in standard deviations"
    )
    gamma: Fraction = 0.2
    noise: Fraction = 0.15
    blur: Fraction = 0.0
    low_resolution: Fraction = Field(0.0, description="probability of halving the resolution, or less, and back")


class Optimizer(Section):
    """AdamW with a linear warm-up and a cosine to zero."""

    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Fraction = Field(0.05, description="share of the steps over which the learning rate rises")
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")


class Train(Section):
    """How long, on what, and which weights are kept; sizes in voxels at the network's spacing."""

    epochs: Positive | None = None
    max_minutes: PositiveFloat | None = Field(None, description="bound on the whole training, validation included")
    batch_size: Positive = Field(2, description="patches per step, over all processes")
    accumulate: Positive = Field(1, description="batches per optimizer step")
    patches_per_case: Positive = Field(1, description="patches drawn from each case in an epoch")
    patch_size: list[Positive] = Field(description="in voxels at the network's spacing")
    fit_device: bool = Field(True, description="reduce patch and batch to the device and the data; the plan says why")
    foreground_fraction: Fraction = Field(0.5, description="share of patches centred on a labelled voxel")
    deep_supervision: bool = True
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.995, description="decay of the averaged weights; 0 for none")
    amp: bool = Field(True, description="bf16 autocast on a GPU; CPUs compute in float32")
    compile: bool = Field(
        False,
        description="torch.compile the network while training, for GPUs: it takes minutes, and CPUs are faster without",
    )
    validate_every: Positive = Field(1, description="epochs between validations")
    validation_cases: Positive | None = Field(None, description="at most so many cases while training; all at the end")
    select: Literal["last", "best"] = Field(
        "last", description="weights that become the model; best looks at validation"
    )
    patience: Positive | None = Field(None, description="validations without gain after which training stops")

    @model_validator(mode="after")
    def _bounded(self) -> Train:
        if self.epochs is None and self.max_minutes is None:
            raise ValueError("set epochs, max_minutes or both")
        if self.patience is not None and self.select == "last":
            raise ValueError("patience stops by the validation score, so it needs select: best")
        return self


class Inference(Section):
    """The sliding window, and how probabilities become labels; kept in the model."""

    window: list[Positive] | None = Field(None, description="sliding window in voxels; null for train.patch_size")
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Positive = 1
    tta: Literal["none", "flips"] = "none"
    threshold: Probability = Field(0.5, description="for regions")
    thresholds: dict[str, Probability] = Field(default_factory=dict, description="for single regions, by name")
    minimum: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="mm³ by name; a region that is smaller in total becomes the one around it"
    )
    components: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="mm³ by name; smaller connected parts are removed"
    )
    confident: Probability | None = Field(
        None, description="a part that reaches this probability stays, however small it is"
    )
    choose: list[Literal["thresholds", "minimum"]] = Field(
        default_factory=list, description="with folds: settings chosen on the out-of-fold predictions for the model"
    )


class Experiment(Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    output: str = Field(min_length=1, description="run folder")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: a network for each fold, all cases scored by one that has not seen them"
    )
    data: Data
    network: Network = Network()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    train: Train
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _dimensions_agree(self) -> Experiment:
        dims = self.network.spatial_dims
        if len(self.train.patch_size) != dims:
            raise ValueError(
                f"train.patch_size has {len(self.train.patch_size)} numbers, network.spatial_dims is {dims}"
            )
        if self.inference.window is not None and len(self.inference.window) != dims:
            raise ValueError(
                f"inference.window has {len(self.inference.window)} numbers, network.spatial_dims is {dims}"
            )
        if (dims == 2) != (self.data.slice_axis is not None):
            raise ValueError("data.slice_axis is for 2D networks, which need it; 3D networks must not have it")
        if self.data.spacing is not None and len(self.data.spacing) != 3:
            raise ValueError("data.spacing needs three numbers")
        return self
