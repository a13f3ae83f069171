"""MONAI's datalists, read as MONAI reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from tests.helpers import save

ENTRIES = [{"image": "./a/1.nii.gz", "label": "b/1.nii.gz"}, {"image": "a/../a/2.nii.gz", "label": ["b/2.nii.gz"]}]
OTHERS = [{"image": "/data/3.nii.gz", "label": "/data/3_seg.nii.gz"}]


def as_monai(case: Case) -> dict[str, Any]:
    """A case in MONAI's form, without what it does not know."""
    files = [str(Path(file).resolve()) for file, _ in case.images.values()]
    label = {"label": str(case.label.resolve())} if case.label is not None else {}
    return {"image": files} | label | ({} if case.fold is None else {"fold": case.fold})


def theirs(path: Path, key: str) -> list[dict[str, Any]]:
    result = []
    for item in load_decathlon_datalist(str(path), True, key):
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        label = item.get("label")
        label = label[0] if isinstance(label, list) else label
        result.append(
            {"image": files} | ({"label": label} if label else {}) | {k: v for k, v in item.items() if k == "fold"}
        )
    return result


@pytest.mark.parametrize(
    "content",
    [
        {"training": ENTRIES, "testing": OTHERS},
        {"training": [entry | {"fold": i} for i, entry in enumerate(ENTRIES)], "testing": [{"image": "a/3.nii.gz"}]},
        {"training": ENTRIES, "test": ["a/3.nii.gz", "a/4.nii.gz"]},
        {"training": [{"image": ["t1/1.nii", "t2/1.nii"], "label": "1.nii"}, {"image": ["t1/2.nii", "t2/2.nii"]}]},
        {"training": [{"image": ["t1/1.nii"]}], "name": "x", "modality": {"0": "MRI"}},
        {"testing": OTHERS},
    ],
)
def test_lists_are_those_of_monai(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    manifest = load_manifest(path)
    for key in content.keys() & {"training", "testing", "test"}:
        cases = manifest.cases if key == "training" else manifest.test
        assert [as_monai(case) for case in cases] == theirs(path, key)


def test_validation_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": ENTRIES, "validation": OTHERS, "testing": ["a/4.nii.gz"]}))
    manifest = load_manifest(path)
    assert [(case.name, case.fold) for case in manifest.cases] == [("1", 1), ("2", 1), ("3", 0)]
    both = [as_monai(case) for case in manifest.cases]
    assert [{k: v for k, v in one.items() if k != "fold"} for one in both] == theirs(path, "training") + theirs(
        path, "validation"
    )
    assert [case.name for case in manifest.test] == ["4"]
    path.write_text(json.dumps({"training": [ENTRIES[0] | {"fold": 3}], "validation": OTHERS}))
    with pytest.raises(DataError, match=r"training\[0\] has a fold") as raised:
        load_manifest(path)
    assert raised.value.code == "E_MANIFEST"
    path.write_text(json.dumps({"training": ENTRIES, "validation": [{"image": "c/1.nii.gz"}]}))
    with pytest.raises(DataError) as raised:
        load_manifest(path)
    assert "validation[0]" in raised.value.fix


def test_lists_in_an_object_within(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(
        json.dumps({"labels": {"0": "background", "1": "x"}, "data": {"training": ENTRIES, "modality": ["CT"]}})
    )
    manifest = load_manifest(path)
    assert [case.name for case in manifest.cases] == ["1", "2"]
    assert manifest.labels == {"background": 0, "x": 1}
    assert manifest.channels == ("ct",)
    path.write_text(json.dumps({"a": {"training": ENTRIES}, "b": {"training": ENTRIES}}))
    with pytest.raises(DataError, match="'training' is missing"):
        load_manifest(path)


def test_channels_without_names(tmp_path: Path) -> None:
    """Nested keys name channels; lists alone number them, and all have as many."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": {"T1w": "a.nii", "T2w": "b.nii"}}]}))
    assert list(load_manifest(path).cases[0].images) == ["t1", "t2"]
    path.write_text(json.dumps({"training": [{"image": ["a.nii", "b.nii"]}, {"image": ["c.nii", "d.nii", "e.nii"]}]}))
    with pytest.raises(DataError, match=r"training\[1\] has 3 files"):
        load_manifest(path)
    path.write_text(json.dumps({"training": [{"image": ["a.nii", "b.nii"]}]}))
    assert load_manifest(path).channels == ("channel_0", "channel_1")


def test_sums_of_all_lists(tmp_path: Path) -> None:
    """``inspect --hash`` finds the files of every list."""
    for i in range(3):
        save(tmp_path / f"{i}.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5) + i)
    names = ("training", "validation", "testing")
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"data": {name: [{"image": f"{i}.nii.gz"}] for i, name in enumerate(names)}}))
    assert run_command(inspect, [str(path), "--hash", "--output", str(tmp_path / "out")]) == 0
    manifest = load_manifest(tmp_path / "out/list.sha256.json")
    assert [len(case.sha256) for case in (*manifest.cases, *manifest.test)] == [1, 1, 1]
