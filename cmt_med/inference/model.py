"""The folder ``model/``: weights as safetensors and a card with all that inference needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cmt_med.config import Inference
from cmt_med.errors import DataError
from cmt_med.files import sha256, write_bytes, write_json


class RegionCard(BaseModel):
    """A region in the training data's numbers: what it consists of, and what is painted for it."""

    model_config = ConfigDict(extra="forbid")
    name: str
    values: list[int]
    write: int


class ModelCard(BaseModel):
    """Everything about a model but its weights; no case names or paths."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    name: str
    network: dict[str, Any]  # keyword arguments of build_network
    channels: list[str]
    labels: dict[str, int]
    regions: list[RegionCard] | None
    preprocessing: dict[str, Any]
    slice_axis: int | None
    mirrored_axes: list[int]  # of the volume, those that training mirrored
    window: list[int]
    patch: list[int]  # of training
    inference: Inference
    provenance: dict[str, Any]
    validation: dict[str, Any] | None
    weights_sha256: str = ""

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.regions) if self.regions is not None else len(self.labels)

    @property
    def targets(self) -> dict[str, list[int]]:
        """What is scored: each region, or each label but background, with its label values."""
        if self.regions is not None:
            return {region.name: region.values for region in self.regions}
        return {name: [value] for name, value in self.labels.items() if value != 0}


def save_model(folder: Path, card: ModelCard, weights: dict[str, Tensor]) -> ModelCard:
    """Write ``model.safetensors`` and, after it, ``model.json`` with its checksum."""
    notice = str(card.provenance.get("notice", ""))
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        metadata={"notice": notice} if notice else None,
    )
    write_bytes(folder / "model.safetensors", content)
    card = card.model_copy(update={"weights_sha256": sha256(folder / "model.safetensors")})
    write_json(folder / "model.json", card.model_dump())
    return card


def load_model(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read a model from its folder, or from a run folder that contains ``model/``.

    Raises:
        DataError: E_MODEL, if there is none, or the weights do not match their checksum.
    """
    folder = path / "model" if (path / "model" / "model.json").exists() else path
    try:
        card = ModelCard.model_validate(json.loads((folder / "model.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise _fault(
            "there is no model here", path, "no model.json", "give a run folder or its model/ folder"
        ) from error
    except (ValueError, ValidationError) as error:
        raise _fault("model.json is damaged", path, str(error).splitlines()[0], "copy the model again") from error
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256(weights) != card.weights_sha256:
        raise _fault("the weights do not match model.json", path, "missing or another checksum", "copy the model again")
    try:
        return card, load_file(weights)
    except SafetensorError as error:
        raise _fault("the weights cannot be read", path, str(error), "copy the model again") from error


def _fault(what: str, path: Path, why: str, fix: str) -> DataError:
    return DataError(what, where=str(path), why=why, fix=fix, code="E_MODEL")
