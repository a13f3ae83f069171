"""Volumes by the names of files and folders: every verb finds the same cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.sources import SOURCES, find_cases, find_dataset
from cmt_med.data.sources.dataset import leave_out_incomplete
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from tests.data.made import LABEL, nifti
from tests.data.volumes.test_dicom import series


def test_a_folder_of_bids_is_one_for_every_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """init saw one case and inspect three, when each had a way of its own to find them."""
    for i in ("01", "02", "03"):
        for word in ("T1w", "FLAIR"):
            nifti(tmp_path / f"bids/sub-{i}/anat/sub-{i}_{word}.nii.gz")
        nifti(tmp_path / f"bids/derivatives/manual/sub-{i}/anat/sub-{i}_dseg.nii.gz", LABEL)
        (tmp_path / f"bids/sub-{i}/anat/sub-{i}_T1w.json").write_text("{}")
    expected = [f"sub-{i}" for i in ("01", "02", "03")]
    found = find_dataset(tmp_path / "bids")
    assert [case.name for case in found.cases] == expected
    assert found.channels == ["t1", "flair"]
    assert all(case.label and case.label.name == f"{case.name}_dseg.nii.gz" for case in found.cases)
    assert [case.name for case in find_cases(tmp_path / "bids", ["t1", "flair"]).cases] == expected
    assert run_command(inspect, [str(tmp_path / "bids"), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert [case["name"] for case in seen["cases"]] == expected
    assert {file["role"] for file in seen["cases"][0]["files"]} == {"t1", "flair", "label"}
    assert seen["summary"]["other_files"] == {"a JSON text": 3}
    arguments = [str(tmp_path / "bids"), "--output", str(tmp_path / "my.yaml"), "--convention", "brats2021"]
    assert run_command(init, arguments) == 0
    assert [entry["id"] for entry in json.loads((tmp_path / "my.json").read_text())["training"]] == expected


def test_sessions_of_a_subject_are_one_patient(tmp_path: Path) -> None:
    for name in ("sub-01_ses-1", "sub-01_ses-2", "sub-010_ses-1", "sub-02"):
        nifti(tmp_path / f"{name[:6].rstrip('_')}/{name}_T1w.nii.gz")
    groups = {case.name: case.group for case in find_dataset(tmp_path).cases}
    assert groups == {
        "sub-01_ses-1": "sub-01",
        "sub-01_ses-2": "sub-01",
        "sub-010_ses-1": "sub-010",
        "sub-02": "sub-02",
    }


@pytest.mark.parametrize(
    ("image", "label"),
    [("imagesTr/{}_0000", "labelsTr/{}"), ("images/{}", "masks/{}"), ("{0}/image", "{0}/seg"), ("{}_ct", "{}_label"),
     ("{0}/{0}_img", "{0}/{0}_mask")],
)  # fmt: skip
def test_images_that_name_no_sequence(tmp_path: Path, image: str, label: str) -> None:
    for name in ("a1", "b2"):
        nifti(tmp_path / f"{image.format(name)}.nii.gz")
        nifti(tmp_path / f"{label.format(name)}.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["a1", "b2"]
    assert not found.problems
    assert not found.unmatched
    assert len(found.channels) == 1
    for case in found.cases:
        assert [file for file, _ in case.images.values()] == [tmp_path / f"{image.format(case.name)}.nii.gz"]
        assert case.label == tmp_path / f"{label.format(case.name)}.nii.gz"
        assert case.mask is None
    cases = find_cases(
        tmp_path, ["mri"]
    ).cases  # results have the names of the references, whatever the channel is called
    assert [(case.name, case.label) for case in cases] == [("a1", None), ("b2", None)]


def test_what_a_case_has_twice_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        nifti(tmp_path / f"{name}_t1.nii.gz")
        nifti(tmp_path / f"{name}_seg.nii.gz", LABEL)
    nifti(tmp_path / "a_t1w.nii.gz")
    nifti(tmp_path / "b_label.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["c"]
    assert [(problem.code, problem.what) for problem in found.problems] == [
        ("E_CHANNEL", "two files are channel t1 of case a"), ("E_LABEL", "two files are the label map of case b"),
    ]  # fmt: skip
    assert sorted(file.name[0] for file in found.unmatched) == ["a"] * 3 + ["b"] * 3  # inspect looks at each


def test_one_name_in_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two visits of one patient, or two patients: nobody guesses."""
    for place in ("one", "two"):
        nifti(tmp_path / f"data/{place}/p_t1.nii.gz")
        nifti(tmp_path / f"data/{place}/p_seg.nii.gz", LABEL)
    with pytest.raises(DataError, match="same name"):
        find_cases(tmp_path / "data", ["t1"])
    assert run_command(init, [str(tmp_path / "data"), "--output", str(tmp_path / "my.yaml")]) == 65
    assert "same name" in capsys.readouterr().err
    assert not list(tmp_path.glob("my.*"))
    assert run_command(inspect, [str(tmp_path / "data"), "--json"]) == 0
    assert [case["name"] for case in json.loads(capsys.readouterr().out)["cases"]] == ["one/p", "two/p"]


def test_volumes_of_another_kind_among_sequences(tmp_path: Path) -> None:
    for channel in ("t1", "t2", "seg"):
        nifti(tmp_path / f"p/p_{channel}.nii.gz", LABEL)
    nifti(tmp_path / "atlas.nii.gz")
    folder = series(tmp_path / "scout")
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["p"]
    assert found.unmatched == [tmp_path / "atlas.nii.gz", folder]
    assert "2 files are not read (atlas.nii.gz)" in found.notes[0]


def test_a_case_without_a_channel_that_others_have(tmp_path: Path) -> None:
    for name, channels in (("a", ("t1", "t2")), ("b", ("t1",))):
        for channel in channels:
            nifti(tmp_path / f"{name}_{channel}.nii.gz")
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["a", "b"]
    leave_out_incomplete(found)
    assert [case.name for case in found.cases] == ["a"]
    assert found.problems[0].what == "channel t2 is missing"


def test_every_format_has_a_row(tmp_path: Path) -> None:
    nifti(tmp_path / "v/a_t1.nii.gz")
    (tmp_path / "t.csv").write_text("id,t1\na,v/a_t1.nii.gz\n")
    (tmp_path / "l.json").write_text(json.dumps({"training": [{"id": "a", "image": {"t1": "v/a_t1.nii.gz"}}]}))
    for path in (tmp_path / "v", tmp_path / "t.csv", tmp_path / "l.json", tmp_path / "v/a_t1.nii.gz"):
        (case,) = find_dataset(path).cases
        assert (case.name, case.images) == ("a", {"t1": (tmp_path / "v/a_t1.nii.gz", None)})
    assert len({source.about for source in SOURCES}) == len(SOURCES)
