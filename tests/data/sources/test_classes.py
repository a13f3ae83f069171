"""A folder for each class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.sources import cases_for_network, find_dataset, table
from cmt_med.data.sources.classes import class_folders


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6)).save(path)


def test_names_of_cases(tmp_path: Path) -> None:
    for name in ("benign/a (1).png", "benign/a(1).png", "benign/b.png", "malignant/b.png", "malignant/c.png"):
        picture(tmp_path / name)
    found = find_dataset(tmp_path)
    assert [(case.name, case.class_name) for case in found.cases] == [
        ("benign_a_1", "benign"), ("benign_a_1_2", "benign"), ("benign_b", "benign"), ("malignant_b", "malignant"),
        ("c", "malignant"),
    ]  # fmt: skip
    assert [case.name for case in cases_for_network(tmp_path, ["image"]).cases] == [case.name for case in found.cases]


@pytest.mark.parametrize(
    "names", [["images/a.png", "masks/a.png"], ["train/a.png", "test/b.png"], ["one/a.png"], ["x/a.png", "y/b.png", "c.png"],
              ["x/deep/a.png", "y/b.png"]],
)  # fmt: skip
def test_other_folders_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        picture(tmp_path / name)
    assert not class_folders(tmp_path)


def test_folders_of_volumes_are_patients(tmp_path: Path) -> None:
    for name in ("p1/p1_t1.nii.gz", "p2/p2_t1.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert not class_folders(tmp_path)
    assert [case.class_name for case in cases_for_network(tmp_path, ["t1"]).cases] == ["", ""]


def test_in_a_case_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    entries = [{"image": "a.png", "class": "b"}, {"image": "c.png", "class": "a"}, {"image": "d.png"}]
    path.write_text(json.dumps({"training": entries}))
    manifest = load_manifest(path)
    assert manifest.classes == ("a", "b")
    assert [case.class_name for case in manifest.cases] == ["b", "a", ""]
    path.write_text(json.dumps(manifest_content(manifest, manifest.cases) | {"classes": ["b", "a", "c"]}))
    assert load_manifest(path).classes == ("b", "a", "c")
    for wrong in ({"classes": ["a"]}, {"classes": ["a", "b", "b"]}, {"classes": "ab"}, {"classes": [1, 2]}):
        path.write_text(json.dumps({"training": entries} | wrong))
        with pytest.raises(DataError) as caught:
            load_manifest(path)
        assert caught.value.code == "E_MANIFEST"


def test_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("id,t1,diagnosis\np1,a.nii.gz,glioma\np2,b.nii.gz,none\n")
    assert [(case.name, case.class_name) for case in table.read(path).cases] == [("p1", "glioma"), ("p2", "none")]
