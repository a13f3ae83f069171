"""Section ``network``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cmt_med.config.sections import (
    Section,
)


class Network(Section):
    """A name of ``cmt_med.networks.NETWORKS`` and what it is built with."""

    name: str = "cmt_unetr"
    spatial_dims: Literal[2, 3] = 3
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the network")
    pretrained: str | None = Field(
        None, description="weights for the encoder of cmt_unetr_ti, _xs, _s or _b: the authors' ImageNet checkpoint"
    )
