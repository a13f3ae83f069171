"""A config and a case list for folders as downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import ConfigError
from cmt_med.config.reading import load_config
from cmt_med.config.schema import Region
from cmt_med.data.conventions.regions import region_values
from cmt_med.data.manifest import load_manifest
from cmt_med.data.phantom_years import write_as_downloaded
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.train import train
from tests.helpers import save, tiny_dataset
from tests.processes import command


def test_a_download_trains_from_what_init_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_as_downloaded(tmp_path / "download", "brats2024-gli", heads=4, spacing=8.0)
    config = tmp_path / "my.yaml"
    assert run_command(init, [str(tmp_path / "download"), "--output", str(config)]) == 0
    told = capsys.readouterr().out
    assert "BraTS 2024 GLI: 1 NCR, 2 ED, 3 ET, 4 RC" in told
    assert "RC = RC" in told
    assert "memory about" in told
    manifest = load_manifest(tmp_path / "my.json")
    assert manifest.convention == "brats2024-gli"
    assert manifest.demo  # the volumes say PHANTOM DATA
    assert {case.group for case in manifest.cases} == {f"BraTS-GLI-0000{i}" for i in range(1, 5)}
    assert [region.name for region in manifest.regions or ()] == ["WT", "TC", "ET", "RC"]
    sets = ["train.epochs=1", "train.patch_size=[16, 16, 16]", "data.workers=0", f"output={tmp_path / 'run'}",
            "network.options={stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, "
            "attention: [lightweight, window], kv_strides: [2, 1], full_channels: 4}"]  # fmt: skip
    assert run_command(train, ["--config", str(config), *[part for s in sets for part in ("--set", s)]]) == 0
    metrics = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert metrics["targets"] == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["convention"] == "brats2024-gli"
    assert card["provenance"]["data_set"] == ""  # a folder's name may be anybody's, and models go everywhere


def test_contradictions_are_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_as_downloaded(tmp_path / "new", "brats2023-gli", heads=1, spacing=12.0)
    case = next((tmp_path / "new").iterdir())
    old = tmp_path / "old/BraTS2021_00001"
    old.mkdir(parents=True)
    for new_name, name in (("t1n", "t1"), ("t1c", "t1ce"), ("t2w", "t2"), ("t2f", "flair"), ("seg", "seg")):
        shutil.copy(case / f"{case.name}-{new_name}.nii.gz", old / f"{old.name}_{name}.nii.gz")
    arguments = [str(tmp_path / "old"), "--output", str(tmp_path / "my.yaml")]
    assert run_command(init, arguments) == 65
    told = capsys.readouterr().err
    assert "E_CONVENTION" in told
    assert "--convention" in told
    assert not (tmp_path / "my.yaml").exists()
    assert run_command(init, [*arguments, "--convention", "brats2023"]) == 0
    assert load_manifest(tmp_path / "my.json").labels["ET"] == 3
    assert load_config(tmp_path / "my.yaml").data.split.by == "none"  # one patient
    assert run_command(init, [*arguments, "--convention", "brats2023"]) == 73  # it may have been edited
    assert run_command(init, [*arguments, "--convention", "brats2021", "--force"]) == 65
    assert run_command(init, [*arguments, "--convention", "brats1999", "--force"]) == 64


def test_a_mask_that_may_be_numbered_as_before_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_as_downloaded(tmp_path / "download", "brats2024-gli", heads=3, spacing=12.0)
    masks = sorted((tmp_path / "download").rglob("*-seg.nii.gz"))
    image = nib.load(masks[1])
    labels = np.asarray(image.dataobj)
    save(masks[1], np.where(labels == 3, 4, labels).astype(np.uint8), image.affine)
    others = [path.parent.name for path in masks if 3 in np.asarray(nib.load(path).dataobj)]
    assert run_command(init, [str(tmp_path / "download"), "--output", str(tmp_path / "my.yaml")]) == 0
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("look at:"))
    assert masks[1].parent.name in line
    assert "2021" in line
    assert not any(name in line for name in others)


def test_faulty_cases_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_as_downloaded(tmp_path / "download", "brats2021", heads=4, spacing=12.0)
    folder = tmp_path / "download"
    (folder / names[0] / f"{names[0]}_flair.nii.gz").unlink()
    damaged = folder / names[1] / f"{names[1]}_t1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    shutil.copy(folder / names[2] / f"{names[2]}_t1.nii.gz", folder / names[2] / f"{names[2]}_t2.nii.gz")
    assert run_command(init, [str(folder), "--output", str(tmp_path / "my.yaml")]) == 2
    told = capsys.readouterr().out
    assert f"left out:   {names[0]}: [E_CHANNEL]" in told
    assert f"copied:     case {names[2]}: t1 and t2" in told
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert {f["code"] for f in failures} == {"E_CHANNEL", "E_TRUNCATED"}
    assert [case.name for case in load_manifest(tmp_path / "my.json").cases] == names[2:]


def test_other_data_keeps_the_names_of_its_list(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data")
    assert run_command(init, [str(manifest.parent), "--output", str(tmp_path / "balls.yaml")]) == 0
    written = load_manifest(tmp_path / "balls.json")
    assert (written.labels, written.convention, written.regions) == ({"background": 0, "ball": 1}, "", None)
    assert load_config(tmp_path / "balls.yaml").data.channels == ["a", "b"]


@pytest.mark.parametrize("stem", ["2024", "true", "1e5", "null", "x" * 150])
def test_any_file_name_makes_a_config(stem: str, tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data", cases=2)
    assert run_command(init, [str(manifest), "--output", str(tmp_path / f"{stem}.yaml")]) == 0
    assert load_config(tmp_path / f"{stem}.yaml").name == stem[:100]


def test_folds_of_a_table_reach_the_case_list(tmp_path: Path) -> None:
    names = write_as_downloaded(tmp_path / "d", "brats2021", heads=3, spacing=12.0)
    lines = [
        "id,t1ce,seg,fold",
        *(f"{n},d/{n}/{n}_t1ce.nii.gz,d/{n}/{n}_seg.nii.gz,{i % 2}" for i, n in enumerate(names)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert run_command(init, [str(tmp_path / "t.csv"), "--output", str(tmp_path / "my.yaml")]) == 0
    assert [case.fold for case in load_manifest(tmp_path / "my.json").cases] == [0, 1, 0]


def test_cases_without_label_maps_are_for_infer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_as_downloaded(tmp_path / "d", "brats2021", heads=2, spacing=12.0)
    for mask in (tmp_path / "d").rglob("*_seg.nii.gz"):
        mask.unlink()
    for flair in (tmp_path / "d").rglob("*_flair.nii.gz"):
        flair.unlink()
    arguments = [str(tmp_path / "d"), "--output", str(tmp_path / "my.yaml")]
    assert run_command(init, arguments) == 65
    assert "cmt-med infer" in capsys.readouterr().err
    assert not (tmp_path / "my.yaml").exists()
    write_as_downloaded(tmp_path / "d", "brats2021", heads=2, spacing=12.0)
    for flair in (tmp_path / "d").rglob("*_flair.nii.gz"):
        flair.unlink()
    assert run_command(init, arguments) == 0
    assert "note:       no case has flair" in capsys.readouterr().out


def test_old_failures_do_not_stay(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data", cases=3)
    damaged = tmp_path / "data/case1_a.nii.gz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-100])
    arguments = [str(manifest), "--output", str(tmp_path / "my.yaml")]
    assert run_command(init, arguments) == 2
    assert (tmp_path / "failures.json").exists()
    damaged.write_bytes(content)
    assert run_command(init, [*arguments, "--force"]) == 0
    assert not (tmp_path / "failures.json").exists()


@pytest.mark.parametrize("name", ["nothing", "notes.txt"])
def test_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert run_command(init, [str(tmp_path / name), "--output", str(tmp_path / "my.yaml")]) == 65
    assert run_command(init, [str(tmp_path), "--output", str(tmp_path / "my.txt")]) == 73


def test_hostile_names_stay_inside_the_comment(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data")
    content = json.loads(manifest.read_text())
    content["name"] = "x\n\u2028train: {epochs: 1}\r\x85seed: 7 #"
    manifest.write_text(json.dumps(content))
    assert run_command(init, [str(manifest), "--output", str(tmp_path / "a b;c.yaml")]) == 0
    assert load_config(tmp_path / "a b;c.yaml").seed == 0


def wrote(data: Path, config: Path) -> None:
    """Run init until it has written both files; the plan that follows is timed on a network of full size."""
    with command("init", data, "--output", config, log=config.with_suffix(".log")) as running:
        running.wait_for(config.exists)


@pytest.mark.fault(25)
@pytest.mark.parametrize(("channels", "labels"), [
    (["ct"], ["liver", "necrosis"]), (["ct"], ["Edema"]), (["t1", "t2"], ["vessel", "enhancing"]), (["a"], ["lung", "ET"]),
    (["t2"], ["edema"]), (["image"], ["necrosis"]),
])  # fmt: skip
def test_other_organs_have_a_necrosis_too(tmp_path: Path, channels: list[str], labels: list[str]) -> None:
    """Such a label became NCR, and the regions were those of brain tumours, in which the other labels are not."""
    manifest = tiny_dataset(tmp_path / "data", cases=3, labels=tuple(labels))
    content = json.loads(manifest.read_text())
    content["modality"] = dict(enumerate(channels))
    for entry in content["training"]:
        entry["image"] = dict(zip(channels, entry["image"].values(), strict=False))
    manifest.write_text(json.dumps(content))
    wrote(manifest, tmp_path / "my.yaml")
    written = load_manifest(tmp_path / "my.json")
    assert written.regions is None
    assert list(written.labels)[1:] == [name if name == "ET" else name.lower() for name in labels]
    assert Segmentation.from_data(load_config(tmp_path / "my.yaml"), written).regions is None


@pytest.mark.fault(25)
def test_regions_can_name_such_labels(tmp_path: Path) -> None:
    regions = [
        Region(name="organ", labels=["Liver", "necrosis"], write="liver"),
        Region(name="x", labels=["necrosis"], write="necrosis"),
    ]
    labels = {"background": 0, "liver": 1, "necrosis": 2}
    assert region_values(regions, labels) == [("organ", [1, 2], 1), ("x", [2], 2)]


SMALL = ("train.patch_size=[16,16,16]", "network.options={stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, "
         "attention: [lightweight, window], kv_strides: [2, 1], full_channels: 4}")  # fmt: skip


@pytest.mark.fault(32)
def test_a_folder_can_be_moved_with_all_that_init_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tiny_dataset(tmp_path / "outside", cases=1).parent
    data = tiny_dataset(tmp_path / "old/data", cases=4)
    content = json.loads(data.read_text())
    content["training"][0]["image"]["a"] = str(outside / "case0_a.nii.gz")  # not below the list: it stays where it is
    data.write_text(json.dumps(content))
    wrote(data, tmp_path / "old/my.yaml")
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    entries = json.loads((tmp_path / "new/my.json").read_text())["training"]
    assert entries[0]["image"] == {"a": str(outside / "case0_a.nii.gz"), "b": "data/case0_b.nii.gz"}
    assert entries[1]["label"] == "data/case1_seg.nii.gz"
    assert str(tmp_path / "old") not in (tmp_path / "new/my.json").read_text()
    sets = [word for item in SMALL for word in ("--set", item)]
    assert run_command(train, ["--config", "../new/my.yaml", "--dry-run", *sets]) == 0


@pytest.mark.fault(32)
def test_a_relative_case_list_is_looked_for_here_and_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "configs/my.yaml"
    config.parent.mkdir()
    config.write_text(
        "name: x\noutput: runs/x\ndata: {manifest: lists/a.json, channels: [a]}\n"
        "train: {epochs: 1, batch_size: 1, patch_size: [16, 16, 16]}\n"
    )
    assert load_config(config).data.manifest == "lists/a.json"  # nowhere yet: as it stands
    beside, here = config.parent / "lists/a.json", tmp_path / "lists/a.json"
    beside.parent.mkdir()
    beside.write_text("{}")
    assert load_config(config).data.manifest == str(beside)
    assert load_config(config, ["data.manifest=lists/a.json"]).data.manifest == "lists/a.json"
    here.parent.mkdir()
    here.write_text("{}")
    with pytest.raises(ConfigError, match="two case lists"):
        load_config(config)
    beside.unlink()
    assert load_config(config).data.manifest == "lists/a.json"


@pytest.mark.parametrize("convention", [None, "none"])
def test_labels_that_nothing_names(tmp_path: Path, convention: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a CT they are called by their numbers; of MR sequences, that is an answer to the question."""
    word = "ct" if convention is None else "t2"
    for i in range(3):
        label = np.zeros((8, 9, 7), np.uint8)
        label[2:5, 2:5, 2:5] = 1 + i
        save(
            tmp_path / f"d/p{i}/p{i}_{word}.nii.gz",
            np.random.default_rng(i).normal(size=label.shape).astype(np.float32),
        )
        save(tmp_path / f"d/p{i}/p{i}_seg.nii.gz", label)
    arguments = [str(tmp_path / "d"), "--output", str(tmp_path / "my.yaml")]
    if convention:
        assert run_command(init, arguments) == 65
        assert "none, where they are not of these" in capsys.readouterr().err
        arguments += ["--convention", convention]
    assert run_command(init, arguments) == 0
    assert "1 label_1, 2 label_2, 3 label_3" in capsys.readouterr().out
    manifest = load_manifest(tmp_path / "my.json")
    assert manifest.labels == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3}
    assert manifest.regions is None
