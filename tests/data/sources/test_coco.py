"""Sets of COCO: where the images are, which of several files counts, and what is learned of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.runs.recognition import data_set
from tests.data.coco_made import annotation, coco_file, picture

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


@pytest.mark.parametrize("place", ["coco.json", "annotations/instances_train2017.json", "labels.json"])
def test_boxes(tmp_path: Path, place: str) -> None:
    """Images of which one is gone, and which nobody has drawn outlines in."""
    folder = {"coco.json": "images", "labels.json": "data"}.get(place, "train2017")
    picture(tmp_path / f"set/{folder}/a.png")
    file = coco_file(tmp_path / "set" / place, [annotation(1)], ("a.png", "gone.png"))
    for path in (tmp_path / "set", file):
        found = find_dataset(path)
        assert found.boxes == {"cell": 1}
        assert [(case.name, case.instances) for case in found.cases] == [("a", None)]
        assert "gone.png" in found.problems[0].message()
        manifest = data_set(path)
        assert (manifest.labels, [case.boxes for case in manifest.cases]) == ({"background": 0, "cell": 1}, [file])


def test_objects(tmp_path: Path) -> None:
    """Every image has the file of annotations, those without objects, too; in the case list, relative."""
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / f"set/some/where/{name}", value=i, colour=name == "c.png")
    annotations = [annotation(1, segmentation=SQUARE), annotation(2, 2, 8, segmentation=SQUARE, iscrowd=1)]
    annotations += [annotation(3, category=8, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]])]
    file = coco_file(tmp_path / "set/annotations.json", annotations, ("a.png", "b.png", "c.png"))
    found = find_dataset(tmp_path / "set")
    assert found.kind == "images with numbered objects (COCO)"
    assert [(case.name, case.instances) for case in found.cases] == [(name, file) for name in "abc"]
    assert found.channels == ["red", "green", "blue"]
    notes = " ".join(found.notes)
    assert "one kind" in notes
    assert "1 region of crowds" in notes
    assert run_command(init, [str(tmp_path / "set"), "--output", str(tmp_path / "my.yaml")]) == 0
    assert "\ntask: instances" in (tmp_path / "my.yaml").read_text()
    entries = json.loads((tmp_path / "my.json").read_text())["training"]
    assert [entry["instances"] for entry in entries] == ["set/annotations.json"] * 3
    assert [case.instances for case in load_manifest(tmp_path / "my.json").cases] == [file] * 3
    assert [case.name for case in cases_for_network(tmp_path / "set", found.channels).cases] == ["a", "b", "c"]


def test_what_init_and_inspect_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "set/a.png")
    picture(tmp_path / "set/b.png", value=9)
    inside = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]
    annotations = [annotation(1, segmentation=SQUARE), annotation(2, segmentation=inside), annotation(3, 2)]
    coco_file(tmp_path / "set/c.json", annotations, ("a.png", "b.png"))
    assert run_command(inspect, [str(tmp_path / "set")]) == 2
    printed = capsys.readouterr().out
    assert "2 objects, 20.0% of their voxels lie under a smaller object" in printed
    assert "annotation 3 has no 'segmentation'" in printed
    assert run_command(init, [str(tmp_path / "set"), "--output", str(tmp_path / "my.yaml")]) == 2
    printed = capsys.readouterr().out
    assert "objects overlap in 1 image" in printed
    assert "20.0% of the pixels" in printed
    assert "left out:   b" in printed
    assert "[E_MANIFEST] annotation 3 has no" in printed
    words = [str(tmp_path / "set"), "--output", str(tmp_path / "other.yaml"), "--task", "segmentation"]
    assert run_command(init, words) == 65
    assert "[E_TASK] the annotations of COCO are no label maps" in capsys.readouterr().err


def test_splits(tmp_path: Path) -> None:
    """Files for each split, in one folder; test images have no annotations, and keypoints are another's matter."""
    for i, split in enumerate(("train", "val", "test")):
        for name in ("a.png", f"{split}.png"):
            picture(tmp_path / f"{split}2017/{name}", value=7 * i + len(name))
        notes = [annotation(i, i, segmentation=SQUARE) for i in (1, 2)] if split != "test" else None
        name = "image_info_test2017" if split == "test" else f"instances_{split}2017"
        coco_file(tmp_path / f"annotations/{name}.json", notes, ("a.png", f"{split}.png"))
    coco_file(tmp_path / "annotations/person_keypoints_train2017.json", [], ("a.png",))
    (tmp_path / "annotations/captions_train2017.json").write_text('{"images": [], "annotations": []}')
    found = find_dataset(tmp_path)
    assert {case.name: case.fold for case in found.cases} == {"train_a": 1, "train": 1, "val_a": 0, "val": 0}
    assert {case.name: case.instances for case in found.test} == {"test_a": None, "test": None}
    assert found.cases[0].instances == tmp_path / "annotations/instances_train2017.json"
    assert found.boxes == {"cell": 4}
    assert any("person_keypoints_train2017.json" in note for note in found.notes)


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    """As Roboflow exports them."""
    for i, split in enumerate(("train", "valid")):
        picture(tmp_path / f"{split}/{split}.png", value=i)
        coco_file(tmp_path / f"{split}/_annotations.coco.json", [annotation(1, segmentation=SQUARE)], (f"{split}.png",))
    found = find_dataset(tmp_path)
    assert {case.name: case.fold for case in found.cases} == {"train": 1, "valid": 0}
    assert {case.instances for case in found.cases} == {
        tmp_path / f"{s}/_annotations.coco.json" for s in ("train", "valid")
    }
    assert found.boxes == {"cell": 2}


def test_two_files_of_one_image(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    for name in ("one.json", "two.json"):
        coco_file(tmp_path / name, [annotation(1)])
    with pytest.raises(DataError, match=r"'a.png' is in one.json, too") as raised:
        find_dataset(tmp_path)
    assert raised.value.code == "E_MANIFEST"
    coco_file(tmp_path / "two.json", [annotation(1)], ("b.png",))
    picture(tmp_path / "images/b.png")
    assert [case.name for case in find_dataset(tmp_path).cases] == ["a", "b"]


def test_names(tmp_path: Path) -> None:
    """Images of one name in two folders are two cases; a path that leads out of the set is not followed."""
    picture(tmp_path / "out.png")
    for folder in "xy":
        picture(tmp_path / f"set/{folder}/a.png")
    coco_file(tmp_path / "set/c.json", [], ("x/a.png", "y/a.png", "../out.png"))
    found = find_dataset(tmp_path / "set")
    assert [case.name for case in found.cases] == ["x_a", "y_a"]
    assert [problem.case for problem in found.problems] == ["out"]


def test_infer_says_what_is_wrong_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_file(tmp_path / "c.json", [annotation(1, 5)])
    assert run_command(inspect, [str(tmp_path)]) == 65
    assert "annotation 1 has the image_id 5, which is not there" in capsys.readouterr().err
    assert (
        run_command(infer, ["--model", str(tmp_path), "--input", str(tmp_path), "--output", str(tmp_path / "o")]) != 0
    )
