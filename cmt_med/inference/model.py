"""The folder ``model/``: weights as safetensors and a card with all that inference needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,  # pydantic needs this one before Python 3.12
    cast,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cmt_med.base.errors import DataError
from cmt_med.base.files import sha256, write_bytes, write_json
from cmt_med.base.text import strict_json
from cmt_med.config.schema import Detection, Inference, Instances, PercentRange, Section, VoxelSize, with_new_names
from cmt_med.config.sections import ValueRange
from cmt_med.data.preprocessing.fingerprint import Fingerprint
from cmt_med.data.volumes.streams import MAX_VOXELS
from cmt_med.tasks import TASKS, task_class
from cmt_med.tasks.segmentation.labels import LabelScheme
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.tasks.task import Task, draws_labels

log = logging.getLogger(__name__)

SCHEMA_VERSION: Literal[4] = 4

MAX_CARD_BYTES = 10_000_000
LARGEST, LONGEST = 1 << 16, 64
"""Numbers and lists in a network's options, above which a card is no card: some sizes are reserved before any tensor is."""

LEAST_WINDOW = 8
"""Voxels along an axis of a window, unless the patch of training had less."""

_Value = Annotated[int, Field(ge=0, le=255)]  # in a label map
_Axis = Annotated[int, Field(ge=0, le=2)]
_Edge = Annotated[int, Field(ge=1, le=LARGEST)]


class _Preprocessing(Section):
    """The settings of :func:`cmt_med.data.preprocessing.pipeline.preprocessing`."""

    spacing: list[VoxelSize] | None = Field(min_length=3, max_length=3)
    crop_foreground: bool
    normalise: Literal["image", "foreground"]
    clip: PercentRange | None = Field(strict=False)
    foreground_channel: bool = False
    size: list[_Edge] | None = Field(None, min_length=3, max_length=3)  # of whole images
    enlarge: bool = True
    missing: Literal["zeros"] | None = None
    window: list[ValueRange | None] | None = None  # by channel

    @model_validator(mode="after")
    def _modest(self) -> _Preprocessing:
        if self.size is not None and math.prod(self.size) > MAX_VOXELS:
            raise ValueError(f"size {self.size} is larger than any image")
        return self


class RegionCard(BaseModel):
    """A region in the training data's numbers: what it consists of, and what is painted for it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    values: list[_Value]
    write: _Value


class ModelCard(BaseModel):
    """Everything about a model but its weights; no case names or paths."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_version: Literal[4] = SCHEMA_VERSION
    name: str
    task: str = "segmentation"
    network: dict[str, Any]  # keyword arguments of build_network
    channels: list[str] = Field(min_length=1)
    labels: dict[str, _Value]
    regions: list[RegionCard] | None
    preprocessing: dict[str, Any]
    slice_axes: list[_Axis]  # that 2D slices lie across; empty in 3D
    mirrored_axes: list[_Axis]  # of the volume, those that training mirrored
    window: list[_Edge]
    patch: list[_Edge]  # of training
    inference: Inference
    instances: Instances | None = None  # how objects are found; None for other tasks
    detection: Detection | None = None  # which boxes are kept; None for other tasks
    convention: str = ""  # of the training data, such as brats2021
    training_data: Fingerprint | None = None  # what it looks like; cards from before it was kept have none
    trained_on: list[
        Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    ] = []  # sums of the images, by which evaluate knows them
    provenance: dict[str, Any]
    validation: dict[str, Any] | None
    weights_sha256: str = ""

    @field_validator("network")
    @classmethod
    def _modest(cls, network: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(network.get("name"), str) or not _is_modest(network):
            raise ValueError("it has no name, or numbers or lists that no network has")
        return network

    @field_validator("preprocessing")
    @classmethod
    def _known(cls, preprocessing: dict[str, Any]) -> dict[str, Any]:
        _Preprocessing.model_validate(preprocessing)
        return preprocessing

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelCard:
        dims = self.network.get("spatial_dims")
        inputs = len(self.channels) + int(self.preprocessing.get("foreground_channel", False))
        if (
            dims not in (2, 3)
            or len(self.window) != dims
            or len(self.patch) != dims
            or bool(self.slice_axes) != (dims == 2)
        ):
            raise ValueError("window, patch, slice_axes and network.spatial_dims do not agree")
        if any(w < min(p, LEAST_WINDOW) for w, p in zip(self.window, self.patch, strict=True)):
            raise ValueError(f"window {self.window} is far smaller than the patch of training: a case would take hours")
        if (self.network.get("in_channels"), self.network.get("num_classes")) != (inputs, self.outputs.channels):
            raise ValueError("channels, labels or regions are not as many as the network's")
        if self.outputs.dense != (self.preprocessing.get("size") is None):
            raise ValueError("preprocessing.size is for networks that answer for whole images, which need it")
        if self.outputs.objects != (self.instances is not None):
            raise ValueError("instances is for networks that find objects, which need it")
        if self.outputs.boxes != (self.detection is not None):
            raise ValueError("detection is for networks that find boxes, which need it")
        if 0 not in self.labels.values() or len(set(self.labels.values())) != len(self.labels):
            raise ValueError("labels need a background, 0, and a number of its own for each")
        return self

    @model_validator(mode="after")
    def _named_once(self) -> ModelCard:
        names = [region.name for region in self.regions or []]
        for what, listed in (
            ("channels", self.channels), ("regions", names), ("mirrored_axes", self.mirrored_axes),
            ("slice_axes", self.slice_axes),
        ):  # fmt: skip
            if len(set(listed)) != len(listed):
                raise ValueError(f"{what} names one twice: {listed}")
        known = set(self.labels.values())
        for region in self.regions or []:
            if not {*region.values, region.write} <= known:
                raise ValueError(f"region {region.name} consists of, or writes, a value that no label has")
        return self

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}")
        return task

    @property
    def outputs(self) -> Task:
        """The task that the network was trained for."""
        regions = [region.model_dump() for region in self.regions] if self.regions is not None else None
        return task_class(self.task, str(self.network["name"])).from_card(self.labels, regions)

    @property
    def writes_labels(self) -> bool:
        """Tell whether its results are label maps, in numbers that others may have otherwise."""
        return draws_labels(self.outputs)

    @property
    def scheme(self) -> LabelScheme:
        """The meaning of the network's channels, and how probabilities become labels; of networks that segment."""
        return cast(Segmentation, self.outputs).scheme

    @property
    def probability_channels(self) -> list[dict[str, Any]]:
        """Name and label values of every channel of the probabilities, in their order; of classes the background first."""
        if self.outputs.objects:
            return [{"name": "foreground", "values": [1]}, {"name": "depth", "values": [1]}]
        return [{"name": channel.name, "values": list(channel.values)} for channel in self.scheme.channels]

    @property
    def targets(self) -> dict[str, list[int]]:
        """The scored targets: each region, or each label but background, with its label values; of whole images nothing.

        Without a label that is written in the same number as one before it (:func:`renumbered` does so with NET, where a
        numbering knows NCR alone): nothing tells the two apart there.
        """
        if not self.writes_labels:
            return self.outputs.scored
        values = list(self.labels.values())
        hidden = {name for i, (name, value) in enumerate(self.labels.items()) if value in values[:i]}
        return {t.name: list(t.values) for t in self.scheme.targets if t.name not in hidden}


def save_model(folder: Path, card: ModelCard, weights: dict[str, Tensor]) -> ModelCard:
    """Write ``model.safetensors`` and, after it, ``model.json`` with its checksum.

    Raises:
        DataError: E_MODEL if a weight is NaN or infinite.
        OutputError: if the folder cannot be written.
    """
    _require_finite(weights, folder, "train again with a lower optimizer.lr; the last finite state is in checkpoints/")
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
        DataError: E_MODEL, if there is none, the weights do not match their checksum, or one is NaN or infinite.
    """
    folder = path / "model" if (path / "model" / "model.json").exists() else path
    try:
        content = _of_this_version(_read_card(folder / "model.json"))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise _fault(
                "the model was written by another version of cmt_med",
                path,
                f"its card has version {version}, this cmt_med reads {SCHEMA_VERSION}",
                "use the cmt_med that trained it (provenance in model.json), or train again",
            )
        card = ModelCard.model_validate(content)
    except OSError as error:
        raise _fault(
            "there is no model here", path, "no model.json", "give a run folder or its model/ folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _fault("model.json is damaged", path, _reason(error), "copy the model again") from error
    weights = folder / "model.safetensors"
    try:
        if not weights.is_file() or sha256(weights) != card.weights_sha256:
            raise _fault(
                "the weights do not match model.json", path, "missing or another checksum", "copy the model again"
            )
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise _fault("the weights cannot be read", path, _reason(error), "copy the model again") from error
    _require_finite(tensors, path, "use another model: this one was damaged, or its training diverged")
    return card, tensors


def _require_finite(weights: Mapping[str, Tensor], path: Path, fix: str) -> None:
    """Raise E_MODEL if a weight is NaN or infinite: every voxel would silently become background."""
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        why = f"{len(broken)} tensors have NaN or infinite values, the first is {broken[0]}"
        raise _fault("the weights are not finite", path, why, fix)


def _of_this_version(content: Any) -> Any:
    """A card as this version writes it. Since version 4, two settings have other names.

    Peers are what they were in version 2; this package's own networks are others.
    """
    if not isinstance(content, dict):
        return content
    network, inference, version = (content.get(key) for key in ("network", "inference", "schema_version"))
    peer = isinstance(network, dict) and str(network.get("name")).startswith("monai_")
    if not (version == 3 or (version == 2 and peer)) or not isinstance(inference, dict):
        return content
    return content | {"schema_version": SCHEMA_VERSION, "inference": with_new_names(inference)}


def _read_card(path: Path) -> Any:
    if not path.is_file():  # a FIFO would never end
        raise FileNotFoundError(path)
    if path.stat().st_size > MAX_CARD_BYTES:
        raise ValueError(f"it has more than {MAX_CARD_BYTES} bytes")
    return strict_json(path.read_text(encoding="utf-8"))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_modest(value: object) -> bool:
    if isinstance(value, dict | list):
        return len(value) <= LONGEST and all(map(_is_modest, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST


def member_folders(path: Path) -> list[Path]:
    """The model folders under ``path``: one, or those of an ensemble (a cross-validation's ``model/`` has one per fold)."""
    folder = path / "model" if (path / "model").is_dir() else path
    if (folder / "model.json").exists():
        return [folder]
    return sorted(found.parent for found in folder.glob("*/model.json")) or [folder]


def _fault(what: str, path: Path, why: str, fix: str) -> DataError:
    return DataError(what, where=str(path), why=why, fix=fix, code="E_MODEL")
