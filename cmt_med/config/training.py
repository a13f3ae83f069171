"""Sections ``augmentation``, ``optimizer`` and ``train``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cmt_med.config.sections import (
    Fraction,
    Positive,
    PositiveFloat,
    Section,
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
    channel_dropout: Fraction = Field(
        0.0, description="probability of setting one channel to 0, never the last that there is; see data.missing"
    )


Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """AdamW or SGD with Nesterov's momentum; a linear warm-up and a cosine to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.99), description="of AdamW: decay of the mean gradient and of its square"
    )
    momentum: Decay = Field(0.99, description="of SGD")
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor of the rate from each stage of the encoder to the finer one below it; 1 for one rate"
    )
    decoder_first: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the steps in which the encoder stays as network.pretrained has it; then its rate rises to that of "
        "the others, over as many steps as the warm-up",
    )
    warmup: Fraction = Field(0.05, description="share of the steps over which the learning rate rises")
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")


class Train(Section):
    """Duration, batches and the weights that are kept; sizes in voxels at the network's spacing."""

    epochs: Positive | None = None
    max_minutes: PositiveFloat | None = Field(None, description="bound on the whole training, validation included")
    batch_size: Positive = Field(2, description="patches per step, over all processes")
    accumulate: Positive = Field(1, description="batches per optimizer step")
    patches_per_case: Positive = Field(1, description="patches drawn from each case in an epoch")
    patch_size: list[Positive] = Field(description="in voxels at the network's spacing")
    fit_device: bool = Field(True, description="reduce patch and batch to the device and the data; the plan says why")
    foreground_fraction: Fraction = Field(0.5, description="share of patches centred on a labelled voxel")
    loss: Literal["dice_ce", "dice_focal", "tversky", "ce"] = Field(
        "dice_ce", description="Dice plus cross-entropy or focal loss, Tversky, or cross-entropy alone"
    )
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
