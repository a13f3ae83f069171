"""Section ``network``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cmt_med.config.sections import (
    Positive,
    Section,
)


class Network(Section):
    """A name of ``cmt_med.networks.NETWORKS`` and what it is built with."""

    name: str = "cmt_unetr"
    spatial_dims: Literal[2, 3] = 3
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the network")
    pretrained: str | None = Field(
        None,
        description="weights to start from: a run, its model/, a .safetensors file, or the authors' ImageNet checkpoint for the "
        "encoder of cmt_unetr_ti, _xs, _s or _b",
    )
    freeze: Literal["encoder"] | None = Field(None, description="part that training leaves as it is")
    adapters: Positive | None = Field(
        None,
        description="rank of low-rank adapters of the encoder's linear layers, which stay else as network.pretrained has them",
    )
