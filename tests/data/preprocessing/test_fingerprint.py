"""What training data look like, and which cases do not look like them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_med.config.schema import Data
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.preprocessing.fingerprint import (
    Fingerprint,
    case_statistics,
    fingerprint_of,
    joint_fingerprint,
    unlike_training,
)
from cmt_med.data.preprocessing.pipeline import preprocessing_settings
from cmt_med.data.volumes.gate import Grid, Loaded, load_case
from cmt_med.inference.folder import infer_cases
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.networks import build_network
from tests.helpers import save, tiny_dataset
from tests.inference.models import random_model

LPS = np.array(
    [[0, -2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]]
)  # first axis to the front, second to the left


def ramp() -> Loaded:
    """Values 0 to 9 along the first axis, in voxels of 3 × 2 × 4 mm, with a label of 8 voxels."""
    image = np.broadcast_to(np.arange(10, dtype=np.float32)[:, None, None], (10, 6, 5)).copy()
    label = np.zeros((10, 6, 5), np.uint8)
    label[2:4, 2:4, 2:4] = 7
    return Loaded(image[None], label, None, Grid((10, 6, 5), LPS))


def test_statistics_that_can_be_checked_by_hand() -> None:
    found = case_statistics(ramp(), ["a"], None)
    assert found["spacing"] == pytest.approx([2, 3, 4])
    assert found["extent"] == pytest.approx([12, 30, 20])
    assert found["foreground_share"] == 1
    assert found["volumes_ml"] == {"7": pytest.approx(8 * 24 / 1000)}
    spread = np.sqrt(33 / 4)  # of 0 to 9
    assert found["channels"]["a"]["quantiles"] == pytest.approx(
        [-4.5 / spread, -2.5 / spread, 0, 2.5 / spread, 4.5 / spread]
    )
    assert found["channels"]["a"]["roughness"] == pytest.approx(0.5 / spread)  # neighbours differ by 0 and by 1
    assert json.loads(json.dumps(found)) == found
    clipped = case_statistics(ramp(), ["a"], [50, 100])
    lowest, lower, middle = clipped["channels"]["a"]["quantiles"][:3]
    assert lowest == lower < middle


def test_ranges_and_their_union() -> None:
    cases = [{"spacing": [1, 1, z], "extent": [10, 10, 10 * z], "foreground_share": z / 10,
              "channels": {"a": {"quantiles": [z] * 5, "roughness": z}}, "volumes_ml": {"1": z, "2": 2 * z}}
             for z in (1.0, 3.0, 2.0, 5.0)]  # fmt: skip
    first, second = (fingerprint_of(part, {"both": [1, 2], "two": [2]}) for part in (cases[:3], cases[2:]))
    assert (first.cases, first.spacing[2], first.extent[2]) == (3, (1, 3), (10, 30))
    assert first.volumes_ml == {"both": (3, 9), "two": (2, 6)}
    assert first.channels["a"].quantiles[4] == first.channels["a"].roughness == (1, 3)
    together = joint_fingerprint([first, second])
    assert together == fingerprint_of(cases, {"both": [1, 2], "two": [2]}).model_copy(update={"cases": 3})
    assert joint_fingerprint([first, None]) is None
    assert Fingerprint.model_validate(json.loads(first.model_dump_json())) == first


@pytest.mark.fault(12)
def test_ranges_of_a_channel_are_of_cases_that_have_it() -> None:
    first = ramp()
    image = np.concatenate([first.image, np.zeros_like(first.image)])
    without = case_statistics(replace(first, image=image, missing=("b",)), ["a", "b"], None)
    assert list(without["channels"]) == ["a"]
    image = np.concatenate([first.image, -first.image])
    whole = case_statistics(replace(first, image=image), ["a", "b"], None)
    found = fingerprint_of([without, whole], {})
    assert list(found.channels) == ["a", "b"]
    assert found.channels["b"].quantiles == [(q, q) for q in whole["channels"]["b"]["quantiles"]]


def test_cases_unlike_the_training_data_are_flagged(tmp_path: Path) -> None:
    """As infer writes them: other voxels, another distribution, more of a target than there can be."""
    manifest = load_manifest(tiny_dataset(tmp_path / "d", 5, (24, 24, 24), labels=("one", "two")))
    settings = preprocessing_settings(Data(manifest="m", channels=["a", "b"]))
    loaded = [load_case(case, ["a", "b"], list(manifest.labels.values())) for case in manifest.cases]
    seen = [case_statistics(case, ["a", "b"], settings["clip"]) for case in loaded]
    card, weights = random_model()
    card = card.model_copy(update={"training_data": fingerprint_of(seen[:4], {"one": [1], "two": [2]})})
    network = build_network(**card.network)
    network.load_state_dict(weights)
    image = loaded[4].image
    smooth = torch.nn.functional.avg_pool3d(torch.from_numpy(image)[None], 5, 1, 2)[0].numpy()
    odd = {
        "tiny": (image, np.diag([0.02, 0.02, 0.02, 1])),
        "usual": (image, np.eye(4)),
        "one-sided": (np.exp(3 * smooth), np.eye(4)),
    }
    cases = []
    for name, (values, affine) in odd.items():
        files = {
            c: save(tmp_path / f"in/{name}_{c}.nii.gz", v.astype(np.float32), affine)
            for c, v in zip("ab", values, strict=True)
        }
        cases.append(Case(name, {channel: (file, None) for channel, file in files.items()}))
    assert infer_cases(Ensemble([Predictor(network, card, torch.device("cpu"))]), cases, tmp_path / "out") == []
    flags = {name: " | ".join(json.loads((tmp_path / f"out/{name}.json").read_text())["flags"]) for name in odd}
    assert "voxels measure 0.02 × 0.02 × 0.02 mm, in training 1 × 1 × 1 mm" in flags["tiny"]
    assert "a is distributed unlike the training data" in flags["one-sided"]
    assert "one has" in flags["usual"], "the random model finds far too much of it"
    assert all(word not in flags["usual"] for word in ("unlike", "noisier", "measure", "foreground"))


@pytest.mark.fault(12)
def test_noise_and_a_target_that_is_too_large() -> None:
    case = replace(ramp(), image=ramp().image / 9)
    trained = fingerprint_of([case_statistics(case, ["a"], None)], {"t": [7]})
    noisy = replace(case, image=case.image + np.random.default_rng(0).normal(0, 1, case.image.shape).astype(np.float32))
    none, large = {"t": 0.0}, {"t": 0.4}  # of 0.192 mL
    assert unlike_training(case_statistics(case, ["a"], None), none, trained, resampled=False) == []
    assert unlike_training(case_statistics(case, ["a"], None), large, trained, resampled=False) == [
        "t has 0.4 mL, in training at most 0.192 mL"
    ]
    (flag,) = unlike_training(case_statistics(noisy, ["a"], None), none, trained, resampled=False)
    assert flag.startswith("a is noisier than the training data")


@pytest.mark.data
@pytest.mark.fault(12)
@pytest.mark.parametrize(("name", "every"), [("hippocampus", 4), ("left_atrium", 3)])
def test_real_cases_of_the_same_study_are_not_flagged(real_data: Path, name: str, every: int) -> None:
    manifest = load_manifest(real_data / name / "dataset.json")
    chosen = manifest.cases[:: 1 if name == "hippocampus" else 2]
    loaded = [load_case(case, manifest.channels, list(manifest.labels.values())) for case in chosen]
    seen = [case_statistics(case, manifest.channels, None) for case in loaded]
    targets = {label: [value] for label, value in manifest.labels.items() if value}
    trained = fingerprint_of([s for i, s in enumerate(seen) if i % every], targets)
    for i in range(0, len(seen), every):
        volumes = {label: seen[i]["volumes_ml"].get(str(value), 0.0) for label, (value,) in targets.items()}
        assert unlike_training(seen[i], volumes, trained, resampled=False) == [], chosen[i].name
    rng, image = np.random.default_rng(0), loaded[0].image
    noisy = replace(loaded[0], image=(image + image.std() * rng.standard_normal(image.shape)).astype(np.float32))
    flags = unlike_training(case_statistics(noisy, manifest.channels, None), {}, trained, resampled=False)
    assert any("noisier" in flag for flag in flags)
