"""Section ``classification``: the loss and the sampling where whole images are classified."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cmt_med.config.sections import Section


class Classification(Section):
    """The weighing of classes; for ``task: classification``. Images are brought to ``train.patch_size``."""

    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: errors in rare classes cost more, so that each class has the same share of the loss",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each label that is spread over all classes"
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="balanced: an epoch shows each class equally often, rare cases several times"
    )
