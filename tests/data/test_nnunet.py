"""nnU-Net's raw data sets, written after its documentation of the format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import Manifest, load_manifest
from cmt_med.data.sources import find_dataset
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save

CHANNELS = {"0": "T2", "1": "ADC"}
LABELS = {"background": 0, "PZ": 1, "TZ": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}
TINY = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [identity, identity], kv_strides: [2, 1]}"


def raw(folder: Path, *, labels: dict[str, Any] = LABELS, cases: int = 4, test: int = 1, **more: Any) -> Path:
    """A set of version 2, whose label maps hold every value up to 3."""
    rng = np.random.default_rng(0)
    highest = 3 if labels == REGIONS else 2
    for part, count in (("Tr", cases), ("Ts", test)):
        for i in range(count):
            name = f"prostate_{part}{i:02d}"
            label = rng.integers(0, highest + 1, (12, 14, 10)).astype(np.uint8)
            for channel in CHANNELS:
                image = (label * (1 + int(channel)) + rng.normal(0, 0.2, label.shape)).astype(np.float32)
                save(folder / f"images{part}/{name}_{int(channel):04d}.nii.gz", image)
            save(folder / f"labels{part}/{name}.nii.gz", label)
    content = {"channel_names": CHANNELS, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def refused(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_manifest(folder / "dataset.json")
    return caught.value


def names(manifest: Manifest) -> list[str]:
    return [case.name for case in manifest.cases]


def test_version_2(tmp_path: Path) -> None:
    found = load_manifest(raw(tmp_path))
    assert names(found) == [f"prostate_Tr{i:02d}" for i in range(4)]
    assert [case.name for case in found.test] == ["prostate_Ts00"]
    assert found.channels == ("t2", "adc")
    assert found.labels == {"background": 0, "pz": 1, "tz": 2}
    case = found.cases[1]
    assert case.images["adc"] == (tmp_path / "imagesTr/prostate_Tr01_0001.nii.gz", None)
    assert case.label == tmp_path / "labelsTr/prostate_Tr01.nii.gz"
    assert found.test[0].label == tmp_path / "labelsTs/prostate_Ts00.nii.gz"
    assert [c.name for c in find_dataset(tmp_path).cases] == names(found)


def test_more_than_ten_channels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = raw(tmp_path, channel_names={str(i): f"c{i}" for i in reversed(range(12))})
    assert load_manifest(folder).channels == tuple(f"c{i}" for i in range(12))


def test_regions(tmp_path: Path) -> None:
    found = load_manifest(raw(tmp_path, labels=REGIONS, regions_class_order=[1, 2, 3]))
    assert found.labels == {"background": 0, "label_1": 1, "label_2": 2, "active": 3}
    assert found.regions is not None
    assert [(r.name, r.labels, r.write) for r in found.regions] == [
        ("whole", ["label_1", "label_2", "active"], "label_1"), ("core", ["label_2", "active"], "label_2"),
        ("active", ["active"], "active"),
    ]  # fmt: skip
    assert [note for note in found.notes if "label_1, label_2" in note]
    assert load_manifest(raw(tmp_path / "plain")).notes == ()


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_ignore(tmp_path: Path, labels: dict[str, Any]) -> None:
    """It is no label and no region, and every case knows its value."""
    order = {"regions_class_order": [1, 2, 3]} if labels is REGIONS else {}
    plain = load_manifest(raw(tmp_path / "plain", labels=labels, **order))
    found = load_manifest(raw(tmp_path / "ignore", labels=labels | {"ignore": 4}, **order))
    assert (found.labels, found.regions) == (plain.labels, plain.regions)
    assert (plain.ignore, found.ignore) == (None, 4)
    assert {case.ignore for case in (*found.cases, *found.test)} == {4}


def test_inspect_and_init_know_what_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = raw(tmp_path / "Dataset005_Prostate", labels={"background": 0, "PZ": 1, "ignore": 2})
    assert run_command(inspect, [str(folder)]) == 0
    assert "2 ignore (5)" in capsys.readouterr().out
    assert run_command(init, [str(folder), "--output", str(tmp_path / "my.yaml")]) == 0
    written = json.loads((tmp_path / "my.json").read_text())
    assert (written["labels"], written["ignore"]) == ({"0": "background", "1": "pz"}, 2)


def test_folds(tmp_path: Path) -> None:
    folder = raw(tmp_path)
    cases = [f"prostate_Tr{i:02d}" for i in range(4)]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:2], "val": cases[2:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    assert [case.fold for case in load_manifest(folder).cases] == [0, 0, 1, 1]
    splits[1]["val"] = [*cases[1:]]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    assert "'prostate_Tr01' is held out in two folds" in refused(folder).what
    splits[1]["val"] = ["other"]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    assert "'other' is not in the data set" in refused(folder).what


def test_inspect_names_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case by case, and goes on; who trains is refused, and who predicts does not need it."""
    folder = raw(tmp_path / "set")
    (folder / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["prostate_Tr00", "prostate_Tr09"]}]))
    (folder / "labelsTr/prostate_Tr02.nii.gz").unlink()
    assert run_command(inspect, [str(folder)]) == 2
    printed = capsys.readouterr().out
    assert "5 cases, 0 faulty" in printed
    assert "look at:       1 of 5 cases without label map" in printed
    for part in ("'prostate_Tr09' is not in the data set", "imagesTr/prostate_Tr09_0000.nii.gz", "out of splits_final.json",
                 "the case has no label map", "labelsTr/prostate_Tr02.nii.gz", "put the file there"):  # fmt: skip
        assert part in printed
    assert run_command(init, [str(folder), "--output", str(tmp_path / "my.yaml")]) == 65
    assert "prostate_Tr09" in capsys.readouterr().err
    assert not (tmp_path / "my.yaml").exists()
    with pytest.raises(DataError, match="prostate_Tr09"):
        load_manifest(folder)  # as train reads it
    assert find_dataset(folder, ["t2", "adc"]).problems == []


def test_files_by_case(tmp_path: Path) -> None:
    """The key ``dataset``, by which a set reads files that lie elsewhere."""
    raw(tmp_path)
    shutil.move(tmp_path / "imagesTr", tmp_path / "scans")
    listed = {
        f"k{i}": {
            "images": [f"scans/prostate_Tr{i:02d}_{n:04d}.nii.gz" for n in range(2)],
            "label": f"labelsTr/prostate_Tr{i:02d}.nii.gz",
        }
        for i in range(3)
    }
    content = json.loads((tmp_path / "dataset.json").read_text()) | {"dataset": listed}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = load_manifest(tmp_path)
    assert names(found) == ["k0", "k1", "k2"]
    assert found.cases[2].images["t2"][0].name == "prostate_Tr02_0000.nii.gz"


def test_version_1(tmp_path: Path) -> None:
    """A decathlon's list, whose images are there by channel alone."""
    raw(tmp_path)
    training = [{"image": f"./imagesTr/prostate_Tr{i:02d}.nii.gz", "label": f"./labelsTr/prostate_Tr{i:02d}.nii.gz"}
                for i in range(4)]  # fmt: skip
    content = {"modality": CHANNELS, "labels": {"0": "background", "1": "PZ", "2": "TZ"}, "training": training,
               "test": ["./imagesTs/prostate_Ts00.nii.gz"]}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = load_manifest(tmp_path)
    assert names(found) == [f"prostate_Tr{i:02d}" for i in range(4)]
    assert found.cases[0].images["adc"] == (tmp_path / "imagesTr/prostate_Tr00_0001.nii.gz", None)
    assert found.test[0].images["t2"] == (tmp_path / "imagesTs/prostate_Ts00_0000.nii.gz", None)
    content["training"][2] = {"label": "labelsTr/prostate_Tr02.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert "training[2] has no image" in refused(tmp_path).what  # never left out in silence


@pytest.mark.parametrize(("channels", "expected"), [("RGB", ("red", "green", "blue")), ("X", ("x",))])
def test_pictures(tmp_path: Path, channels: str, expected: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = rng.integers(0, 2, (40, 48)).astype(np.uint8)
        pixels = (mask * 120 + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        for folder, array in (
            ("imagesTr", np.stack([pixels] * 3, -1) if len(channels) > 1 else pixels),
            ("labelsTr", mask),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"road{i}{'_0000' if folder == 'imagesTr' else ''}.png")
    content = {"channel_names": dict(enumerate(channels)), "labels": {"background": 0, "road": 1}, "numTraining": 4,
               "file_ending": ".png"}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert load_manifest(tmp_path).channels == expected
    assert run_command(init, [str(tmp_path), "--output", str(tmp_path / "o.yaml")]) == 0
    assert "spatial_dims: 2" in (tmp_path / "o.yaml").read_text()
    sets = [
        f"network.options={TINY}",
        "train.epochs=1",
        "train.patch_size=[32, 32]",
        "data.workers=0",
        f"output={tmp_path / 'r'}",
    ]
    assert run_command(train, ["--config", str(tmp_path / "o.yaml"), *[w for s in sets for w in ("--set", s)]]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_ending": "nii.gz"}, "'file_ending' is"), ({"file_ending": ".mha"}, "there is no imagesTr/CASE_0000.mha"),
        ({"channel_names": {"0": "T2"}}, "a channel 0001, 'channel_names' ends with 0000"),
        ({"channel_names": {"a": "T2", "b": "ADC"}}, "no number"), ({"labels": {"background": 0, "x": "1"}}, "has the value '1'"),
        ({"labels": {"background": 0, "x": 1.5}}, "has the value 1.5"), ({"labels": {"background": 0, "x": [], "y": 1}}, "[]"),
        ({"labels": {"background": 0, "x": 2, "ignore": 1}}, "'ignore' has the value 1"),
        ({"labels": {"background": 0, "x": 1, "ignore": [2, 3]}}, "'ignore' has the value [2, 3]"),
        ({"labels": REGIONS}, "'regions_class_order' is None"),
        ({"labels": REGIONS, "regions_class_order": [1, 2]}, "[1, 2]"),
        ({"labels": REGIONS, "regions_class_order": [1, 2, 9]}, "[1, 2, 9]"),
        ({"dataset": {"a": {"images": "x.nii.gz"}}}, "lacks images or a label"), ({"dataset": []}, "not a mapping"),
        ({"dataset": {"a": {"images": ["../x", "../y"], "label": "z"}}}, "leads out of the list's folder"),
    ],
)  # fmt: skip
def test_what_does_not_add_up(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(raw(tmp_path, **change)).what


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_from_raw_data_to_a_report(tmp_path: Path, labels: dict[str, Any]) -> None:
    """Every verb takes the folder as it is; results are named like the reference."""
    order = {"regions_class_order": [1, 2, 3]} if labels is REGIONS else {}
    folder = raw(tmp_path / "Dataset005_Prostate", labels=labels, **order)
    assert run_command(init, [str(folder), "--output", str(tmp_path / "my.yaml")]) == 0
    assert ("regions: listed" in (tmp_path / "my.yaml").read_text()) == (labels is REGIONS)
    sets = [f"network.options={TINY}", "train.epochs=2", "train.patch_size=[8, 8, 8]", "data.workers=0",
            "data.split={by: last, count: 1}"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *words, "--output", str(tmp_path / "run")]) == 0
    direct = [*words, "--set", f"data.manifest={folder}", "--output", str(tmp_path / "again")]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *direct]) == 0
    one, other = (json.loads((tmp_path / f"{run}/report/metrics.json").read_text()) for run in ("run", "again"))
    assert one["cases"] == other["cases"]
    assert run_command(infer, ["--model", str(tmp_path / "run"), "--input", str(folder / "imagesTs"), "--output",
                               str(tmp_path / "p")]) == 0  # fmt: skip
    assert (tmp_path / "p/prostate_Ts00.nii.gz").is_file()
    for references in (folder / "labelsTs", folder):
        given = ["--predictions", str(tmp_path / "p"), "--references", str(references), "--output", str(tmp_path / "r")]
        assert run_command(evaluate, given) == 0
        scored = json.loads((tmp_path / "r/metrics.json").read_text())["cases"]["prostate_Ts00"]
        assert set(scored) == {name.lower() for name in labels if name != "background"}
