"""Volumes by the names of files and folders: every verb finds the same cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.sources import SOURCES, cases_for_network, find_dataset
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
    assert [case.name for case in cases_for_network(tmp_path / "bids", ["t1", "flair"]).cases] == expected
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
    cases = cases_for_network(tmp_path, ["image"]).cases  # results have the names of the references
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
    assert [file.name for file in found.duplicates] == ["a_t1w.nii.gz", "b_seg.nii.gz"]  # inspect looks at each
    assert [case.name for case in found.doubtful] == ["a", "b"]


def test_one_name_in_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two visits of one patient, or two patients: nobody guesses."""
    for place in ("one", "two"):
        nifti(tmp_path / f"data/{place}/p_t1.nii.gz")
        nifti(tmp_path / f"data/{place}/p_seg.nii.gz", LABEL)
    with pytest.raises(DataError, match="same name"):
        cases_for_network(tmp_path / "data", ["t1"])
    assert run_command(init, [str(tmp_path / "data"), "--output", str(tmp_path / "my.yaml")]) == 65
    assert "same name" in capsys.readouterr().err
    assert not list(tmp_path.glob("my.*"))
    assert run_command(inspect, [str(tmp_path / "data"), "--json"]) == 0
    assert [case["name"] for case in json.loads(capsys.readouterr().out)["cases"]] == ["one/p", "two/p"]


def files(folder: Path, *names: str) -> Path:
    for name in names:
        nifti(folder / f"{name}.nii.gz", LABEL)
    return folder


@pytest.mark.parametrize("mask", ["p1_mask", "p1_brainmask"])
def test_a_mask_beside_an_image_that_names_no_channel(tmp_path: Path, mask: str) -> None:
    (case,) = cases_for_network(files(tmp_path, "p1", mask), ["t1"]).cases
    assert (case.name, case.images, case.mask) == (
        "p1", {"t1": (tmp_path / "p1.nii.gz", None)}, tmp_path / f"{mask}.nii.gz",
    )  # fmt: skip


def test_a_brain_mask_is_no_label_map(tmp_path: Path) -> None:
    (case,) = find_dataset(files(tmp_path, "p1", "p1_brainmask")).cases
    assert (case.label, case.mask) == (None, tmp_path / "p1_brainmask.nii.gz")


def test_modalities_are_channels_of_their_own(tmp_path: Path) -> None:
    files(tmp_path, "p1_ct", "p1_mri", "p2_ct", "p2_mri", "p1_seg", "p2_seg")
    assert find_dataset(tmp_path).channels == ["ct", "mri"]
    for channel in ("ct", "mri"):
        found = cases_for_network(tmp_path, [channel])
        assert [case.images[channel][0].name for case in found.cases] == [f"p{i}_{channel}.nii.gz" for i in (1, 2)]
        assert not found.problems
    files(tmp_path / "more", "q1_ct", "q1")
    (case,) = cases_for_network(tmp_path / "more", ["ct"]).cases
    assert case.images["ct"][0].name == "q1_ct.nii.gz"


@pytest.mark.parametrize("folder", ["segmentation", "masks", "label", "images"])
def test_the_folder_that_is_given_may_have_any_name(tmp_path: Path, folder: str) -> None:
    (case,) = cases_for_network(files(tmp_path / folder, "p1"), ["ct"]).cases
    assert case.name == "p1"


@pytest.mark.parametrize("given", [".", "imagesTs", "imagesTs/p1_0000.nii.gz"])
def test_numbered_images_have_the_names_of_their_label_maps(tmp_path: Path, given: str) -> None:
    files(tmp_path / "imagesTs", "p1_0000")
    assert [case.name for case in cases_for_network(tmp_path / given, ["ct"]).cases] == ["p1"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files(tmp_path / "anna", "ct"))
    for path in (Path("ct.nii.gz"), Path(), tmp_path / "anna", tmp_path):
        assert [case.name for case in cases_for_network(path, ["ct"]).cases] == ["anna"]


def test_label_maps_of_another_folder_are_not_taken(tmp_path: Path) -> None:
    files(tmp_path, "siteA/p1/t1", "siteB/p1/seg", "siteA/p2/t1", "siteA/p2/seg")
    found = find_dataset(tmp_path)
    assert {case.name: case.label is not None for case in found.cases if case.images} == {"p1": False, "p2": True}


def test_of_two_misnamed_label_maps_none_is_taken(tmp_path: Path) -> None:
    files(tmp_path, "p/p_t1", "p/p_t2", "p/W39_Segm", "p/W40_Segm")
    found = find_dataset(tmp_path)
    assert [case.label for case in found.cases] == [None]
    assert len(found.unmatched) == 2


def test_probabilities_are_looked_at_and_never_an_input(tmp_path: Path) -> None:
    files(tmp_path, "p1", "p1_prob", "heart_prob_01")
    assert [case.name for case in cases_for_network(tmp_path, ["ct"]).cases] == ["heart_prob_01", "p1"]
    assert len(find_dataset(tmp_path / "p1_prob.nii.gz").cases) == 1


@pytest.mark.parametrize("names", [["image_001", "image_002"], ["ct_train_1_image", "ct_train_2_image"]])
def test_names_that_begin_with_the_channel(tmp_path: Path, names: list[str]) -> None:
    channel = names[0].split("_")[0]
    expected = [name.removesuffix("_image") for name in names]
    assert [case.name for case in find_dataset(files(tmp_path, *names)).cases] == expected
    assert [case.name for case in cases_for_network(tmp_path, [channel]).cases] == expected


def test_what_is_left_out_has_the_name_of_its_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(tmp_path / "d", "a_t1", "a_t1w", "a_seg", "b_t1", "b_seg", "c_t1", "c_seg")
    arguments = [str(tmp_path / "d"), "--output", str(tmp_path / "my.yaml"), "--convention", "brats2021"]
    assert run_command(init, arguments) == 2
    assert [item["case"] for item in json.loads((tmp_path / "failures.json").read_text())] == ["a"]
    assert "left out:   a: [E_CHANNEL]" in capsys.readouterr().out
    assert run_command(inspect, [str(tmp_path / "d"), "--json"]) == 2
    cases = {case["name"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert set(cases) == {"a", "b", "c", "a_t1w"}
    assert [file["role"] for file in cases["a"]["files"]] == ["t1", "label"]


def test_names_in_inspect_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nifti(tmp_path / "p1_t1.nii")
    files(tmp_path, "p1_t1")
    assert run_command(inspect, [str(tmp_path), "--json"]) == 2
    names = [case["name"] for case in json.loads(capsys.readouterr().out)["cases"]]
    assert len(set(names)) == 2


def test_label_maps_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(tmp_path / "labelsTr", "a", "b")
    assert run_command(init, [str(tmp_path / "labelsTr"), "--output", str(tmp_path / "my.yaml")]) == 65
    assert "E_CHANNEL" in capsys.readouterr().err


def test_other_organs_are_not_asked_for_a_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(tmp_path / "d", "a_ct", "a_seg", "b_ct", "b_seg")
    arguments = [str(tmp_path / "d"), "--output", str(tmp_path / "my.yaml")]
    assert run_command(init, [*arguments, "--convention", "brats2021"]) == 64
    assert not list(tmp_path.glob("my.*"))
    assert run_command(init, arguments) == 0
    assert "nothing names the labels" in capsys.readouterr().out


def test_a_table_of_other_channels(tmp_path: Path) -> None:
    files(tmp_path, "a", "b")
    (tmp_path / "t.csv").write_text("id,CT,seg,age\n1,a.nii.gz,b.nii.gz,7\n2,b.nii.gz,a.nii.gz,8\n")
    found = find_dataset(tmp_path / "t.csv")
    assert found.channels == ["ct"]
    assert [case.images["ct"][0].name for case in found.cases] == ["a.nii.gz", "b.nii.gz"]
    assert "age" in found.notes[0]


def test_volumes_of_another_kind_among_sequences(tmp_path: Path) -> None:
    for channel in ("t1", "t2", "seg"):
        nifti(tmp_path / f"p/p_{channel}.nii.gz", LABEL)
    nifti(tmp_path / "atlas.nii.gz")
    folder = series(tmp_path / "scout")
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["p"]
    assert found.unmatched == [tmp_path / "atlas.nii.gz", folder]
    assert found.notes == ["of no case, and not read: 2 files (atlas.nii.gz)"]


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
    for name, about in (("v", "volumes named by channel"), ("t.csv", "a CSV table"), ("l.json", "a case list"),
                        ("v/a_t1.nii.gz", "volumes named by channel")):  # fmt: skip
        (case,) = find_dataset(tmp_path / name).cases
        assert (case.name, case.images) == ("a", {"t1": (tmp_path / "v/a_t1.nii.gz", None)})
        assert next(source.about for source in SOURCES if source.recognises(tmp_path / name)) == about
