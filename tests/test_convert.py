"""Data sets in the layouts of others: what is written is read again as the same cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cmt_med.convert import convert
from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources import find_dataset
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.instances import load_instances
from cmt_med.launch.command import run_command
from cmt_med.runs.recognition import data_set
from tests.helpers import save


def original(folder: Path, values: tuple[int, ...] = (0, 1, 4), ending: str = ".nii.gz") -> Path:
    """Two patients, one with two scans, two channels, labels with a gap, on an oblique grid."""
    rng, entries = np.random.default_rng(0), []
    affine = np.array([[0.0, -1.5, 0.1, 5.0], [1.2, 0.0, 0.0, -3.0], [0.0, 0.15, 2.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    for i, patient in enumerate(("a", "a", "b")):
        for channel in ("t1", "flair"):
            save(folder / f"{i}_{channel}{ending}", rng.normal(size=(7, 6, 5)).astype(np.float32), affine)
        save(folder / f"{i}_seg{ending}", rng.choice(values, (7, 6, 5)).astype(np.uint8), affine)
        entries.append({"id": f"case_{i}", "group": patient, "fold": i % 2 if patient == "b" else 1, "label": f"{i}_seg{ending}",
                        "image": {"t1": f"{i}_t1{ending}", "flair": f"{i}_flair{ending}"}})  # fmt: skip
    labels = dict(zip(map(str, values), ("background", "edge", "core"), strict=True))
    content = {"modality": {"0": "t1", "1": "flair"}, "labels": labels, "training": entries}
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def arrays(path: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images, label maps as ranks of their values, and affines, of the cases in the order of their names."""
    found = data_set(path)
    ranks = {value: i for i, value in enumerate(sorted(found.labels.values()))}
    result = []
    for case in sorted(found.cases, key=lambda case: case.name):
        loaded = load_case(case, ["t1", "flair"], list(found.labels.values()), need_label=True)
        assert loaded.label is not None
        result.append((loaded.image, np.vectorize(ranks.get)(loaded.label), loaded.grid.affine))
    return result


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("to", ["nnunet", "msd", "bids"])
def test_there_and_back(tmp_path: Path, to: str, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = original(tmp_path / "d", ending=ending), tmp_path / "out"
    words = [str(source), "--to", to, "--output", str(output)]
    assert run_command(convert, words) == 0
    assert "3 cases written" in capsys.readouterr().out
    for mine, theirs in zip(arrays(output), arrays(source), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert np.allclose(one, other, rtol=0, atol=1e-6)
    found = data_set(output)
    assert sorted(found.labels)[1:] == ["core", "edge"]
    if to == "bids":
        assert [case.group for case in found.cases] == ["sub-a", "sub-a", "sub-b"]
    if to == "nnunet":
        assert [case.fold for case in found.cases] == [1, 1, 0]
        assert json.loads((output / "dataset.json").read_text())["labels"] == {"background": 0, "edge": 1, "core": 2}
    before = sorted(output.rglob("*"))
    assert run_command(convert, words) == 73
    assert sorted(output.rglob("*")) == before


def test_regions_are_lists(tmp_path: Path) -> None:
    source = original(tmp_path / "d")
    regions = [
        {"name": "whole", "labels": ["edge", "core"], "write": "edge"},
        {"name": "core", "labels": ["core"], "write": "core"},
    ]
    source.write_text(json.dumps(json.loads(source.read_text()) | {"regions": regions}))
    assert run_command(convert, [str(source), "--to", "nnunet", "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 2}
    assert content["regions_class_order"] == [1, 2]
    assert load_manifest(tmp_path / "out").regions is not None


@pytest.mark.parametrize(("to", "value"), [("nnunet", 2), ("msd", 7)])
def test_what_nobody_has_annotated(tmp_path: Path, to: str, value: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels 0 and 4 with 7 to be ignored: nnU-Net has 0, 1 and 2, of which the highest is ignored."""
    source = original(tmp_path / "d", values=(0, 4, 7))
    content = json.loads(source.read_text())
    source.write_text(json.dumps(content | {"labels": {"0": "background", "4": "edge"}, "ignore": 7}))
    words = [str(source), "--to", to, "--output", str(tmp_path / "out")]
    assert run_command(convert, words) == 0
    found, before = data_set(tmp_path / "out"), data_set(source)
    assert found.ignore == value
    assert list(found.labels) == ["background", "edge"]
    for one, other in zip(found.cases, before.cases, strict=True):
        new = load_case(one, ["t1"], [*found.labels.values(), value], need_label=True).label
        old = load_case(other, ["t1"], [0, 4, 7], need_label=True).label
        assert new is not None
        assert old is not None
        assert np.array_equal(new == value, old == 7)
        assert np.array_equal(new == found.labels["edge"], old == 4)
    assert run_command(convert, [str(source), "--to", "bids", "--output", str(tmp_path / "b")]) == 65
    assert "BIDS has no value" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_labels_that_a_case_does_not_annotate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layout that cannot say it would call them background."""
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    content["training"][1]["annotated"] = ["core"]
    source.write_text(json.dumps(content))
    for to in ("nnunet", "bids"):
        assert run_command(convert, [str(source), "--to", to, "--output", str(tmp_path / to)]) == 65
        assert "annotate some labels alone" in capsys.readouterr().err
        assert not (tmp_path / to).exists()
    assert run_command(convert, [str(source), "--to", "msd", "--output", str(tmp_path / "msd")]) == 0
    assert [case.annotated for case in data_set(tmp_path / "msd").cases] == [None, (4,), None]


def test_a_channel_that_a_case_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    del content["training"][1]["image"]["flair"]
    source.write_text(json.dumps(content))
    for to in ("nnunet", "msd", "bids"):
        assert run_command(convert, [str(source), "--to", to, "--output", str(tmp_path / to)]) == 65
        assert "[E_CHANNEL] channel flair is missing" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [False, True])
def test_pictures(tmp_path: Path, *, colour: bool) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        for folder, array in (
            ("images", rng.integers(0, 255, (9, 8, 3) if colour else (9, 8))),
            ("masks", rng.integers(0, 2, (9, 8)) * 255),
        ):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(
                tmp_path / "d" / folder / f"p{i}.{'tif' if folder == 'images' else 'png'}"
            )
    assert run_command(convert, [str(tmp_path / "d"), "--to", "nnunet", "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["file_ending"] == ".png"
    assert content["channel_names"] == ({"0": "R", "1": "G", "2": "B"} if colour else {"0": "image"})
    with Image.open(tmp_path / "d/images/p1.tif") as mine, Image.open(tmp_path / "out/imagesTr/p1_0000.png") as theirs:
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))
    with Image.open(tmp_path / "d/masks/p1.png") as mine, Image.open(tmp_path / "out/labelsTr/p1.png") as theirs:
        assert np.array_equal(np.asarray(mine) > 0, np.asarray(theirs) == 1)
    if not colour:  # shades of grey that are saved in colour are one channel of nnU-Net's all the same
        for i in range(3):
            with Image.open(tmp_path / f"d/images/p{i}.tif") as grey:
                grey.convert("RGB").save(tmp_path / f"d/images/p{i}.png")
            (tmp_path / f"d/images/p{i}.tif").unlink()
        assert run_command(convert, [str(tmp_path / "d"), "--to", "nnunet", "--output", str(tmp_path / "again")]) == 0
        with Image.open(tmp_path / "again/imagesTr/p1_0000.png") as theirs:
            assert theirs.mode == "L"
    assert run_command(convert, [str(tmp_path / "d"), "--to", "msd", "--output", str(tmp_path / "no")]) == 65
    assert not (tmp_path / "no").exists()


@pytest.mark.data
def test_volumes_of_one_channel(real_data: Path, tmp_path: Path) -> None:
    """Whose sequence nobody names: the label map is found beside it all the same."""
    whole = json.loads((real_data / "hippocampus/dataset.json").read_text())
    few = [
        {k: str(real_data.absolute() / "hippocampus" / v) for k, v in entry.items()} for entry in whole["training"][:3]
    ]
    (tmp_path / "list.json").write_text(json.dumps(whole | {"training": few, "test": []}))
    for to in ("nnunet", "msd", "bids"):
        assert run_command(convert, [str(tmp_path / "list.json"), "--to", to, "--output", str(tmp_path / to)]) == 0
        found = data_set(tmp_path / to)
        assert len(found.cases) == 3
        assert all(case.label is not None for case in found.cases)
        assert found.labels == {"background": 0, "anterior": 1, "posterior": 2}


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = original(tmp_path / "d")
    output = ["--output", str(tmp_path / "out")]
    assert run_command(convert, [str(source), "--to", "yolo", *output]) == 64
    assert "nnunet, msd, bids, coco" in capsys.readouterr().err
    (tmp_path / "d/1_seg.nii.gz").write_bytes(b"")
    assert run_command(convert, [str(source), "--to", "nnunet", *output]) == 65
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["nnunet", "msd", "bids"])
@pytest.mark.parametrize("labelled", [False, True])
def test_cases_for_testing(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, *, labelled: bool) -> None:
    """Listed apart before, listed apart after, with the same voxels."""
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    test = content["training"].pop(0) | {"group": "a"}  # of a patient who is trained on, too
    del test["fold"]
    if not labelled:
        del test["label"]
    source.write_text(json.dumps(content | {"test": [test]}))
    output = tmp_path / "out"
    assert run_command(convert, [str(source), "--to", to, "--output", str(output)]) == 0
    assert "2 cases and 1 test case written" in capsys.readouterr().out
    found = data_set(output)
    assert len(found.cases) == 2
    (one,) = found.test
    assert (one.label is not None) == labelled
    before = load_manifest(source)
    values = list(found.labels.values())
    mine, theirs = (
        load_case(c, ["t1", "flair"], values if to != "nnunet" else range(5)) for c in (one, before.test[0])
    )
    assert np.allclose(mine.image, theirs.image, rtol=0, atol=1e-6)
    if labelled:
        assert mine.label is not None
        assert np.array_equal(mine.label > 0, theirs.label > 0)


def test_cases_without_a_label_map_are_test_cases_of_nnunet(tmp_path: Path) -> None:
    """Which would refuse them among those for training."""
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    del content["training"][1]["label"]
    source.write_text(json.dumps(content))
    assert run_command(convert, [str(source), "--to", "nnunet", "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 2
    found = load_manifest(tmp_path / "out")
    assert [case.name for case in found.cases] == ["case_0", "case_2"]
    assert [case.name for case in found.test] == ["case_1"]


# ---- COCO


def cells(folder: Path, count: int = 4) -> Path:
    """Pictures with numbered objects that touch, of which some have two parts; the last has none."""
    rng = np.random.default_rng(1)
    for i in range(count):
        numbers = np.zeros((14, 11), np.uint16)
        if i < count - 1:
            numbers[1:5, 1:5], numbers[5:9, 3:8], numbers[10, 0], numbers[12:, 6:] = 1, 2, 3, 3
        for part, pixels in (("images", rng.integers(0, 255, (14, 11)).astype(np.uint8)), ("instances", numbers)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / f"c{i}.png")
    return folder


def test_numbered_objects_as_coco(tmp_path: Path) -> None:
    """pycocotools reads each as it was, and we read the same numbers."""
    source, output = cells(tmp_path / "d"), tmp_path / "out"
    assert run_command(convert, [str(source), "--to", "coco", "--output", str(output)]) == 0
    theirs = COCO(str(output / "annotations/instances.json"))
    assert theirs.loadCats(theirs.getCatIds())[0]["name"] == "object"
    before = {case.name: case for case in data_set(source).cases}
    found = data_set(output)
    assert len(found.cases) == 4
    for case in found.cases:
        numbers, grid = load_instances(before[case.name])
        again, own = load_instances(case)
        assert own.equals(grid)
        np.testing.assert_array_equal(again, numbers)
        image = next(i for i in theirs.dataset["images"] if Path(i["file_name"]).stem == case.name)
        drawn = np.zeros((image["height"], image["width"]), int)
        for n, one in enumerate(theirs.loadAnns(theirs.getAnnIds(imgIds=image["id"])), 1):
            mask = theirs.annToMask(one)
            drawn += n * mask
            rows, columns = np.nonzero(mask)
            assert one["area"] == mask.sum()
            assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["iscrowd"] == 0
        np.testing.assert_array_equal(drawn, numbers[..., 0].T)
        assert (output / "images" / image["file_name"]).read_bytes() == (
            source / f"images/{case.name}.png"
        ).read_bytes()
    ids = [one["id"] for one in theirs.dataset["annotations"]]
    assert ids == list(range(1, 10))


def test_label_maps_as_coco(tmp_path: Path) -> None:
    """An annotation for each part of a label; patients, folds and test cases come back."""
    label = np.zeros((9, 8), np.uint8)
    label[0:2, 0:2], label[2, 2] = 1, 1  # which touch at a corner
    label[5:, 5:], label[5:7, 0:3] = 1, 4
    (tmp_path / "d").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (9, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"d/p{i}.jpg")
        Image.fromarray(label).save(tmp_path / f"d/m{i}.png")
    entries = [{"image": f"p{i}.jpg", "label": f"m{i}.png", "group": "x", "fold": i % 2} for i in range(4)]
    del entries[3]["label"]
    content = {"modality": ["red", "green", "blue"], "labels": {"0": "background", "1": "cell", "4": "dust"}}
    listed = content | {"training": entries[:2], "test": entries[2:]}
    (tmp_path / "d/list.json").write_text(json.dumps(listed))
    output = tmp_path / "out"
    assert run_command(convert, [str(tmp_path / "d/list.json"), "--to", "coco", "--output", str(output)]) == 0
    theirs = COCO(str(output / "annotations/instances.json"))
    assert {one["id"]: one["name"] for one in theirs.dataset["categories"]} == {1: "cell", 4: "dust"}
    notes = theirs.loadAnns(theirs.getAnnIds(imgIds=1))
    assert [(one["category_id"], one["area"]) for one in notes] == [(1, 5), (1, 12), (4, 6)]
    np.testing.assert_array_equal(sum(one["category_id"] * theirs.annToMask(one) for one in notes), label)
    found = find_dataset(output)
    assert [(case.name, case.group, case.fold) for case in found.cases] == [("p0", "x", 0), ("p1", "x", 1)]
    assert sorted((case.name, case.instances is not None) for case in found.test) == [("p2", True), ("p3", False)]
    assert found.channels == ["red", "green", "blue"]
    assert set(np.unique(load_instances(found.cases[0])[0])) == {0, 1, 2, 3}


def test_what_coco_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = original(tmp_path / "d"), tmp_path / "out"
    assert run_command(convert, [str(source), "--to", "coco", "--output", str(output)]) == 65
    said = capsys.readouterr().err
    assert "[E_NDIM] COCO holds 2D images" in said
    assert "fix: use --to nnunet, msd or bids" in said
    assert not output.exists()
    assert run_command(convert, [str(cells(tmp_path / "c")), "--to", "nnunet", "--output", str(output)]) == 65
    assert "--to coco for numbered objects" in capsys.readouterr().err
    frames = [Image.fromarray(np.full((6, 5), i, np.uint8)) for i in range(3)]
    for part in ("images", "instances"):
        (tmp_path / "pages" / part).mkdir(parents=True)
        frames[0].save(tmp_path / f"pages/{part}/a.tif", save_all=True, append_images=frames[1:])
    assert run_command(convert, [str(tmp_path / "pages"), "--to", "coco", "--output", str(output)]) == 65
    assert "the image has 3 pages" in capsys.readouterr().err
