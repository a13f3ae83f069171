"""Models' cards in other numbers and with other settings, as ``infer`` asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Inference
from cmt_med.data.volumes.gate import Grid
from cmt_med.infer import infer
from cmt_med.inference.cards import joint_card, renumbered, with_settings
from cmt_med.inference.model import ModelCard, RegionCard, save_model
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.launch.command import run_command
from cmt_med.networks import build_network
from tests.helpers import save
from tests.inference.models import random_model, save_random_model

LABELS_2024 = {"background": 0, "NCR": 1, "ED": 2, "ET": 3, "RC": 4}


def tumour_model(folder: Path) -> Path:
    """A model of 2024: WT, ET and RC."""
    card, weights = random_model()
    regions = [RegionCard(name="WT", values=[1, 2, 3], write=2), RegionCard(name="ET", values=[3], write=3),
               RegionCard(name="RC", values=[4], write=4)]  # fmt: skip
    card = ModelCard.model_validate(
        card.model_dump()
        | {"labels": LABELS_2024, "regions": [r.model_dump() for r in regions], "convention": "brats2024-gli"}
    )
    save_model(folder, card, weights)
    return folder


def one_case(folder: Path, name: str) -> Path:
    rng = np.random.default_rng(0)
    for channel in ("a", "b"):
        save(folder / name / f"{name}_{channel}.nii.gz", rng.normal(size=(16, 16, 16)).astype(np.float32))
    return folder


def labels_in(folder: Path, case: str) -> set[int]:
    return set(np.unique(np.asarray(nib.load(folder / f"{case}.nii.gz").dataobj)).tolist())


def test_no_number_gets_two_meanings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of 2024 on cases of 2021, where 4 is enhancing tumour and nothing is a cavity."""
    model = tumour_model(tmp_path / "model")
    arguments = ["--model", str(model), "--output", str(tmp_path / "out"), "--input"]
    old = str(one_case(tmp_path / "old", "BraTS2021_00001"))
    assert run_command(infer, [*arguments, old]) == 65
    told = capsys.readouterr().err
    assert "E_CONVENTION" in told
    assert "4 is RC" in told
    assert "--convention brats2024-gli" in told
    assert not (tmp_path / "out").exists()
    assert run_command(infer, [*arguments, old, "--convention", "brats2021"]) == 64  # no number for the cavity
    assert run_command(infer, [*arguments, old, "--convention", "brats2024-gli"]) == 0
    assert labels_in(tmp_path / "out", "BraTS2021_00001") == {0, 2, 3, 4}
    # 2023's numbers are the same, but for the cavity, which has a number that means nothing else there
    new = str(one_case(tmp_path / "new", "BraTS-MEN-00001-000"))
    assert run_command(infer, [*arguments, new]) == 0
    for name in ("BraTS-MEN-RT-0001-1", "BRATS_001"):  # 1 is GTV; 1 is ED
        other = str(one_case(tmp_path / name, name))
        assert run_command(infer, [*arguments, other]) == 65
        assert "E_CONVENTION" in capsys.readouterr().err


def listing(folder: Path, **content: object) -> Path:
    """A list, called as the decathlon's, of case ``x``."""
    one_case(folder, "x")
    images = {channel: f"x/x_{channel}.nii.gz" for channel in ("a", "b")}
    (folder / "dataset.json").write_text(json.dumps({"training": [{"id": "x", "image": images}]} | content))
    return folder


def test_a_list_s_numbers_however_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its folder or its name, by labels or by convention alone; the background has any name."""
    model = tumour_model(tmp_path / "model")
    swapped = {"0": "unlabelled", "1": "ED", "2": "NCR", "5": "ET", "7": "RC"}
    folder = listing(tmp_path / "in", labels=swapped)
    for i, path in enumerate((folder, folder / "dataset.json")):
        out = tmp_path / f"out{i}"
        assert run_command(infer, ["--model", str(model), "--input", str(path), "--output", str(out)]) == 0
        assert labels_in(out, "x") == {0, 1, 5, 7}
        record = json.loads((out / "run.json").read_text())
        assert (record["labels"]["ET"], record["convention"]) == (5, "")
    out, folder = str(tmp_path / "out"), listing(tmp_path / "by", convention="brats2021")
    assert run_command(infer, ["--model", str(model), "--input", str(folder), "--output", out]) == 65
    assert "4 is RC" in capsys.readouterr().err


def test_post_processing_goes_before_new_numbers() -> None:
    """NET, too small, becomes the core around it; where both are written as 1, the core must not go with it."""
    card, weights = random_model()
    labels = {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4}
    regions = [RegionCard(name="WT", values=[1, 2, 3, 4], write=2), RegionCard(name="TC", values=[1, 3, 4], write=1),
               RegionCard(name="NET", values=[3], write=3)]  # fmt: skip
    settings = Inference(min_region_mm3={"NET": 50.0})
    card = card.model_copy(update={"labels": labels, "regions": regions, "inference": settings})
    chances = np.zeros((3, 8, 8, 8), np.float32)
    chances[0, 1:7, 1:7, 1:7] = chances[1, 2:6, 2:6, 2:6] = chances[2, 2:4, 2:4, 2:4] = 1.0
    network = build_network(**card.network)
    network.load_state_dict(weights)
    grid = Grid((8, 8, 8), np.eye(4))
    found = []
    for written in (None, renumbered(card, {"background": 0, "NCR": 1, "ED": 2, "ET": 4})):
        ensemble = Ensemble([Predictor(network, card, torch.device("cpu"))], written=written)
        found.append(ensemble.labels(torch.from_numpy(chances), grid)[0])
    assert np.count_nonzero(found[0] == 1) == 64
    np.testing.assert_array_equal(*found)


def test_net_is_no_target_where_it_is_written_as_ncr() -> None:
    card, _ = random_model()
    card = card.model_copy(update={"labels": {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4}})
    assert set(card.targets) == {"NCR", "ED", "NET", "ET"}
    in_2021 = renumbered(card, {"background": 0, "NCR": 1, "ED": 2, "ET": 4})
    assert in_2021.labels["NET"] == 1
    assert in_2021.targets == {"NCR": [1], "ED": [2], "ET": [4]}


def test_post_processing_is_changed_and_recorded(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model")
    arguments = ["--model", str(model), "--input", str(one_case(tmp_path / "in", "x")), "--output"]
    assert run_command(infer, [*arguments, str(tmp_path / "plain")]) == 0
    assert labels_in(tmp_path / "plain", "x") == {0, 1, 2}
    settings = ["--set", "min_region_mm3.one=1e6", "--set", "inference.min_component_mm3.two=1e6"]
    assert run_command(infer, [*arguments, str(tmp_path / "changed"), *settings]) == 0
    assert labels_in(tmp_path / "changed", "x") == {0}
    record = json.loads((tmp_path / "changed/x.json").read_text())
    assert record["settings"]["min_region_mm3"] == {"one": 1e6}
    assert record["settings"]["min_component_mm3"] == {"two": 1e6}
    assert set(record["removed"]["component_mm3"]) == {"two"}


@pytest.mark.parametrize(
    ("item", "said"),
    [("min_region_mm3.three=5", "three"), ("thresholds.one=0.4", "thresholds"), ("min_region_mm.one=5", "min_region_mm3"),
     ("minimum.one=5", "write inference.min_region_mm3"), ("components.one=5", "write inference.min_component_mm3"),
     ("tta=mirror", "tta"), ("window=[8, 8, 8]", "settled in training"), ("choose=[min_region_mm3]", "settled in training"),
     ("min_region_mm3.one=-5", "greater"), ("overlap", "min_region_mm3.ET=100"),
     ("train.epochs=3", "known keys here"), ("windows=3", "did you mean inference.window"),
     ("epochs=3", "known keys here")],
)  # fmt: skip
def test_settings_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], item: str, said: str) -> None:
    model = save_random_model(tmp_path / "model")
    arguments = ["--model", str(model), "--input", str(one_case(tmp_path / "in", "x")), "--output", str(tmp_path / "o")]
    assert run_command(infer, [*arguments, "--set", item]) == 64
    message = capsys.readouterr().err
    assert said in message
    assert "fix:" in message or "why:" in message
    assert not (tmp_path / "o").exists()


def test_an_ensemble_was_trained_on_what_any_member_was() -> None:
    card, _ = random_model()
    one, other = ([letter * 16] for letter in "ab")
    cards = [card.model_copy(update={"trained_on": contents}) for contents in (other, one, one)]
    assert joint_card(cards).trained_on == [*one, *other]


def test_changes_are_the_ensemble_s(caplog: pytest.LogCaptureFixture) -> None:
    card, _ = random_model()
    cards = [card.model_copy(update={"inference": Inference(min_region_mm3={"one": size})}) for size in (5.0, 7.0)]
    changed = with_settings(cards, ["min_component_mm3.two=3", "overlap=0.25"])
    assert "different thresholds" in caplog.text  # of its own, each would fit one member alone
    joint = joint_card(changed).inference
    assert (joint.min_region_mm3, joint.min_component_mm3, joint.overlap) == ({}, {"two": 3.0}, 0.25)
    alike = with_settings([cards[0], cards[0]], ["min_component_mm3.two=3"])
    assert joint_card(alike).inference.min_region_mm3 == {"one": 5.0}
    assert joint_card(with_settings([cards[0]], ["min_region_mm3={}"])).inference.min_region_mm3 == {}
    with pytest.raises(ConfigError, match="there is no region 'three'"):
        with_settings(cards, ["min_region_mm3.three=1"])
