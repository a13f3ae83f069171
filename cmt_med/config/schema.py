"""The schema of an experiment, strictly typed, a section a module; :mod:`cmt_med.config.reading` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cmt_med.config.classification import Classification
from cmt_med.config.data import Data, Missing, Region, Split
from cmt_med.config.detection import Detection
from cmt_med.config.inference import Inference
from cmt_med.config.instances import Instances
from cmt_med.config.network import Network
from cmt_med.config.pretraining import Pretraining
from cmt_med.config.sections import PercentRange, Section, VoxelSize
from cmt_med.config.training import Augmentation, Optimizer, Train

__all__ = [
    "Augmentation", "Classification", "Data", "Detection", "Experiment", "Inference", "Instances", "Missing", "Network",
    "Optimizer", "PercentRange", "Pretraining", "Region", "Section", "Split", "Train", "VoxelSize", "with_new_names",
    "without_later_keys",
]  # fmt: skip


LATER_KEYS: dict[tuple[str, ...], Any] = {
    ("task",): "segmentation", ("optimizer", "name"): "adamw", ("optimizer", "betas"): (0.9, 0.99),
    ("optimizer", "momentum"): 0.99, ("optimizer", "layer_decay"): 1.0, ("network", "freeze"): None,
    ("network", "adapters"): None, ("train", "loss"): "dice_ce",
    ("data", "enlarge"): True, ("data", "missing"): "drop", ("data", "window"): None, ("augmentation", "channel_dropout"): 0.0,
    ("classification",): Classification().model_dump(), ("instances",): Instances().model_dump(),
    ("instances", "min_score"): Instances().min_score,
    ("detection",): Detection().model_dump(), ("pretraining",): Pretraining().model_dump(),
    ("optimizer", "decoder_first"): 0.0,
}  # fmt: skip
"""Keys that came after runs had been begun without them, and the values that mean what those runs did."""


class Experiment(Section):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    output: str = Field(min_length=1, description="run folder")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    task: Literal["segmentation", "classification", "detection", "instances", "pretraining"] = Field(
        "segmentation", description="what the network is trained to do"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: a network for each fold, all cases scored by one that has not seen them"
    )
    data: Data
    network: Network = Network()
    augmentation: Augmentation = Augmentation()
    classification: Classification = Classification()
    detection: Detection = Detection()
    instances: Instances = Instances()
    pretraining: Pretraining = Pretraining()
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
        if self.task != "classification" and self.classification != Classification():
            raise ValueError("the section classification needs task: classification")
        if self.task != "instances" and self.instances != Instances():
            raise ValueError("the section instances needs task: instances")
        if self.task != "detection" and self.detection != Detection():
            raise ValueError("the section detection needs task: detection")
        if self.task == "pretraining":
            if self.pretraining.block >= max(self.train.patch_size):
                raise ValueError("pretraining.block covers the whole patch: nothing would be shown")
        elif self.pretraining != Pretraining():
            raise ValueError("the section pretraining needs task: pretraining")
        if self.optimizer.decoder_first > 0 and self.network.pretrained is None:
            raise ValueError("optimizer.decoder_first is for weights to start from, and network.pretrained is not set")
        if self.task in ("instances", "detection", "pretraining") and self.data.regions is not None:
            raise ValueError(f"data.regions is for label maps, and task is {self.task}")
        if self.task == "classification":
            self._whole_images()
        if self.network.adapters is not None and (self.network.pretrained is None or self.network.freeze is not None):
            raise ValueError(
                "network.adapters change what network.pretrained brings: they need it, and not network.freeze"
            )
        if self.network.freeze is not None and self.network.pretrained is None:
            raise ValueError(
                "network.freeze keeps what network.pretrained brings; without it, random weights would be frozen"
            )
        if self.task != "classification" and not self.data.enlarge:
            raise ValueError("data.enlarge is for task: classification, where images are brought to one size")
        if self.inference.window is not None and len(self.inference.window) != dims:
            raise ValueError(
                f"inference.window has {len(self.inference.window)} numbers, network.spatial_dims is {dims}"
            )
        if dims == 3 and self.data.slice_axis is not None:
            raise ValueError("data.slice_axis is for 2D networks; 3D networks must not have it")
        if self.augmentation.channel_dropout > 0 and len(self.data.channels) == 1:
            raise ValueError("augmentation.channel_dropout leaves one channel at least, and data.channels has no more")
        if self.data.spacing is not None and len(self.data.spacing) != 3:
            raise ValueError("data.spacing needs three numbers")
        return self

    def _whole_images(self) -> None:
        """Raise for what is read where images are cut into patches, or label maps are drawn."""
        if self.data.slice_axis is not None:
            raise ValueError("data.slice_axis is for label maps; with task: classification, 2D networks see 2D images")
        if self.data.regions is not None:
            raise ValueError("data.regions is for label maps, and task is classification")
        if self.train.foreground_fraction != Train.model_fields["foreground_fraction"].default:
            raise ValueError(
                "train.foreground_fraction is for patches; with task: classification, images are seen whole"
            )


INFERENCE_NAMES = {"minimum": "min_region_mm3", "components": "min_component_mm3"}
"""Older names of keys in the section ``inference`` -> their present ones."""


def with_new_names(inference: dict[str, Any]) -> dict[str, Any]:
    """The section ``inference`` of an older model card, with the present names."""
    renamed = {INFERENCE_NAMES.get(key, key): value for key, value in inference.items()}
    if isinstance(renamed.get("choose"), list):
        renamed["choose"] = [INFERENCE_NAMES.get(name, name) for name in renamed["choose"]]
    return renamed


def without_later_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop keys that older versions lacked, so that their runs resume and their finished folds are recognised."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for path, value in LATER_KEYS.items():
        section = result if len(path) == 1 else result.get(path[0])
        if isinstance(section, dict) and section.get(path[-1]) == value:
            del section[path[-1]]
    inference = result.get("inference")
    if isinstance(inference, dict):
        for old, new in INFERENCE_NAMES.items():
            if new in inference:
                inference[old] = inference.pop(new)
        if "choose" in inference:
            names = {new: old for old, new in INFERENCE_NAMES.items()}
            inference["choose"] = [names.get(name, name) for name in inference["choose"]]
    return result
