"""Section ``instances``: how numbered objects are learned, and found in what the network says."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cmt_med.config.sections import PositiveFloat, Probability, Section


class Instances(Section):
    """Objects from maps of foreground and depth, or from masks. All but the weight is kept in the model."""

    depth_weight: PositiveFloat = Field(1.0, description="of the loss of depths, beside that of the foreground")
    threshold: Probability = Field(
        0.5, description="probability of the foreground from which a voxel is part of an object"
    )
    prominence: Probability = Field(
        0.1,
        description="by how much a depth must stand out from the valley between it and a deeper one to be an object of its own; "
        "more merges more. Depths go from 0 at an object's border to 1 in its middle",
    )
    smoothing: Annotated[float, Field(ge=0, le=10)] = Field(
        1.0, description="standard deviation in voxels of the Gaussian that depths are smoothed with; 0 for none"
    )
    min_object_mm3: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="mm³; smaller objects are removed. Of 2D images pixels, of which one counts as 1 mm³"
    )
    min_score: Probability = Field(
        0.3, description="of a query whose mask becomes an object; for networks that find masks (cmt_mask_queries)"
    )
