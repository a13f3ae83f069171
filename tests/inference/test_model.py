"""A model whose parts do not fit is refused when it is loaded, before any case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from cmt_med.base.errors import DataError
from cmt_med.inference.model import MAX_CARD_BYTES, load_model, save_model
from cmt_med.networks import CLASSIFIERS, DETECTORS, MASK_NETWORKS, NETWORKS, build_network
from cmt_med.runs.trained import trained_network
from tests.inference.models import NETWORK, random_model, save_random_model

CLASSIFIER = {"name": "cmt_ti", "spatial_dims": 3, "in_channels": 2, "num_classes": 3}


def _region(name: str, values: list[int], *, write: int = 1) -> dict[str, Any]:
    return {"name": name, "values": values, "write": write}


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "other widths": lambda card: card["network"].update(dims=[8, 24]),
    "other depths": lambda card: card["network"].update(depths=[1, 2]),
    "unknown option": lambda card: card["network"].update(bogus=1),
    "option of another type": lambda card: card["network"].update(dims="wide"),
    "no network's name": lambda card: card["network"].pop("name"),
    "unknown network": lambda card: card["network"].update(name="unheard_of"),
    "a classifier": lambda card: card.update(network=CLASSIFIER),
    "network of 4 dimensions": lambda card: card["network"].update(spatial_dims=4),
    "network as a list": lambda card: card.update(network=[]),
    "one more channel": lambda card: card["channels"].append("c"),
    "no channels": lambda card: card.update(channels=[]),
    "one label less": lambda card: card["labels"].pop("two"),
    "a label beyond 255": lambda card: card["labels"].update(two=300),
    "a label that is no number": lambda card: card["labels"].update(two="2"),
    "one number for two labels": lambda card: card["labels"].update(two=1),
    "no background": lambda card: card.update(labels={"x": 3, "one": 1, "two": 2}),
    "empty preprocessing": lambda card: card["preprocessing"].clear(),
    "a spacing of two": lambda card: card["preprocessing"].update(spacing=[1.0, 1.0]),
    "a spacing of zeros": lambda card: card["preprocessing"].update(spacing=[0.0] * 3),
    "unknown normalisation": lambda card: card["preprocessing"].update(normalise="none"),
    "clipping at one percentile": lambda card: card["preprocessing"].update(clip=[1.0]),
    "unknown preprocessing": lambda card: card["preprocessing"].update(rotate=1),
    "a window of zeros": lambda card: card.update(window=[0, 0, 0]),
    "a window of one voxel": lambda card: card.update(window=[1, 1, 1]),
    "a window of seven": lambda card: card.update(window=[7, 7, 7]),
    "a window of two": lambda card: card.update(window=[16, 16]),
    "a patch of text": lambda card: card.update(patch=["8", "8", "8"]),
    "an endless patch": lambda card: card.update(patch=[1 << 40] * 3),
    "slices in 3D": lambda card: card.update(slice_axes=[0]),
    "a mirrored axis of none": lambda card: card.update(mirrored_axes=[3]),
    "overlap of one": lambda card: card["inference"].update(overlap=1.0),
    "clipping from high to low": lambda card: card["preprocessing"].update(clip=[99.0, 1.0]),
    "clipping to one value": lambda card: card["preprocessing"].update(clip=[50.0, 50.0]),
    "voxels of a kilometre": lambda card: card["preprocessing"].update(spacing=[1e6] * 3),
    "voxels of next to nothing": lambda card: card["preprocessing"].update(spacing=[1e-300] * 3),
    "one axis mirrored twice": lambda card: card.update(mirrored_axes=[0, 0]),
    "two channels of one name": lambda card: card.update(channels=["a", "a"]),
    "two regions of one name": lambda card: card.update(regions=[_region("r", [1]), _region("r", [2]), _region("s", [1])]),
    "a region that writes what no label has": lambda card: card.update(
        regions=[_region("r", [1]), _region("s", [2]), _region("t", [1], write=7)]
    ),
    "a region of what no label has": lambda card: card.update(
        regions=[_region("r", [1]), _region("s", [2]), _region("t", [7], write=1)]
    ),
    "a large card": lambda card: card["provenance"].update(note="x" * MAX_CARD_BYTES),
}  # fmt: skip


def test_models_of_version_2(tmp_path: Path) -> None:
    """Peers are what they were; our own networks are others, whose weights would fit and mean something else."""
    folder = save_random_model(tmp_path)
    card = json.loads((folder / "model.json").read_text()) | {"schema_version": 2}
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="another version"):
        load_model(folder)
    card["network"]["name"] = "monai_segresnet"
    (folder / "model.json").write_text(json.dumps(card))
    assert load_model(folder)[0].schema_version == 4


def test_models_of_version_3_have_other_names(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path)
    card = json.loads((folder / "model.json").read_text()) | {"schema_version": 3}
    name = next(name for name, value in card["labels"].items() if value)
    card["inference"] |= {"minimum": {name: 7.0}, "components": {name: 3.0}, "choose": ["minimum"]}
    for key in ("min_region_mm3", "min_component_mm3"):
        del card["inference"][key]
    (folder / "model.json").write_text(json.dumps(card))
    settings = load_model(folder)[0].inference
    assert (settings.min_region_mm3, settings.min_component_mm3) == ({name: 7.0}, {name: 3.0})
    assert settings.choose == ["min_region_mm3"]


@pytest.mark.fault(8)
@pytest.mark.fault(20)
@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_parts_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    folder = save_random_model(tmp_path)
    trained_network(*load_model(folder))
    card = json.loads((folder / "model.json").read_text())
    change(card)
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(DataError) as caught:
        trained_network(*load_model(folder))
    assert (caught.value.code, caught.value.exit_code) == ("E_MODEL", 65)
    assert "validation error" not in caught.value.why
    assert len(caught.value.why.splitlines()) == 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - set(CLASSIFIERS)))
def test_every_network_is_no_larger_than_its_weights(name: str, dims: int) -> None:
    """Else a sound model would be refused."""
    small = {key: value for key, value in NETWORK.items() if key not in ("name", "spatial_dims")}
    options = small if name == "cmt_unetr" else {"in_channels": 2, "num_classes": 3}
    network = build_network(name, spatial_dims=dims, **options)
    card, _ = random_model()
    task = "detection" if name in DETECTORS else "instances" if name in MASK_NETWORKS else "segmentation"
    labels = {"background": 0, "object": 1} if task == "instances" else card.labels
    card = card.model_copy(
        update={"network": {"name": name, "spatial_dims": dims} | options, "task": task, "labels": labels}
    )
    again = trained_network(card, network.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.fault(20)
def test_a_key_given_twice(tmp_path: Path) -> None:
    """Of two windows, one reader takes the first and another one the last."""
    folder = save_random_model(tmp_path)
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"window":', '"window": [8, 8, 8], "window":', 1))
    with pytest.raises(DataError, match="'window' is given twice") as caught:
        load_model(folder)
    assert caught.value.code == "E_MODEL"


@pytest.mark.fault(1)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    """Neither written nor read, even with a right checksum: every voxel would become background."""
    card, weights = random_model()
    name = next(iter(weights))
    broken = weights | {name: weights[name].clone()}
    broken[name].view(-1)[0] = value
    with pytest.raises(DataError, match="not finite") as caught:
        save_model(tmp_path / "new", card, broken)
    assert (caught.value.code, name in caught.value.why) == ("E_MODEL", True)
    assert not (tmp_path / "new").exists()
    folder = save_random_model(tmp_path / "old")
    content = save({key: tensor.contiguous() for key, tensor in broken.items()})
    (folder / "model.safetensors").write_bytes(content)
    described = json.loads((folder / "model.json").read_text()) | {
        "weights_sha256": hashlib.sha256(content).hexdigest()
    }
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="not finite") as caught:
        load_model(folder)
    assert caught.value.code == "E_MODEL"
