"""Section ``pretraining``: what of an image is hidden, and has to be told from the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cmt_med.config.sections import Positive, Section


class Pretraining(Section):
    """Masked images; for ``task: pretraining``."""

    block: Positive = Field(16, description="edge in voxels of the blocks that are hidden, along each axis")
    hidden: Annotated[float, Field(gt=0, lt=1)] = Field(0.7, description="share of the blocks that are hidden")
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0,
        description="largest standard deviation of the noise over what is shown, drawn evenly from 0 on for each image: beside "
        "the hidden blocks, the whole image is to be cleaned (for classification)",
    )
