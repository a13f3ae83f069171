"""BIDS data sets, as its specification writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.runs.recognition import data_set
from tests.helpers import save

IMAGE = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
LABEL = (np.arange(IMAGE.size).reshape(IMAGE.shape) % 3).astype(np.uint8)


def bids(folder: Path, *, derived: str = "dseg", subjects: int = 4, sessions: int = 1) -> Path:
    for i in range(subjects):
        for k in range(sessions):
            name, place = f"sub-{i:02d}", f"sub-{i:02d}/anat"
            if sessions > 1:
                name, place = f"{name}_ses-{k}", f"sub-{i:02d}/ses-{k}/anat"
            save(folder / f"{place}/{name}_T1w.nii.gz", IMAGE + 10 * i + k)
            if derived:
                save(folder / f"derivatives/manual/{place}/{name}_{derived}.nii.gz", LABEL)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "Hippocampi", "BIDSVersion": "1.9.0"}))
    return folder


def names(
    folder: Path, text: str = "index\tname\tabbreviation\n1\tLeft hippocampus\tLH\n2\tRight hippocampus\tRH\n"
) -> Path:
    table = folder / "derivatives/manual/dseg.tsv"
    table.write_text(text)
    return table


def test_names_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names(bids(tmp_path / "d"))
    assert run_command(init, [str(tmp_path / "d"), "--output", str(tmp_path / "o.yaml")]) == 0
    said = capsys.readouterr().out
    assert "Hippocampi, 4 cases of 4 patients" in said
    assert "dseg.tsv names the labels" in said
    assert data_set(tmp_path / "d").labels == {"background": 0, "left hippocampus": 1, "right hippocampus": 2}
    assert [case.name for case in cases_for_network(tmp_path / "d", ["t1"]).cases] == [f"sub-{i:02d}" for i in range(4)]


def test_without_names_the_question_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data_set(bids(tmp_path / "d"))
    assert caught.value.code == "E_CONVENTION"


@pytest.mark.parametrize(
    ("text", "said"),
    [("index\tname\n300\tx\n", "'300'"), ("index\tname\n1\t\n", "name ''"), ("index,name\n1,x\n", "index ''"),
     ("index\tname\n1\tx\n2\tx\n", "one name"), ("index\tname\n1\tx\n1\ty\n", "1 is 'y' here and 'x'")],
)  # fmt: skip
def test_tables_that_do_not_add_up(tmp_path: Path, text: str, said: str) -> None:
    names(bids(tmp_path / "d"), text)
    with pytest.raises(DataError) as caught:
        find_dataset(tmp_path / "d")
    assert caught.value.code == "E_MANIFEST"
    assert said in caught.value.why


def test_sessions_are_cases_of_one_patient(tmp_path: Path) -> None:
    names(bids(tmp_path / "d", sessions=2, subjects=2))
    found = data_set(tmp_path / "d")
    assert [(case.name, case.group) for case in found.cases] == [
        ("sub-00_ses-0", "sub-00"), ("sub-00_ses-1", "sub-00"), ("sub-01_ses-0", "sub-01"), ("sub-01_ses-1", "sub-01"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("derived", "labelled"), [("label-lesion_mask", True), ("desc-tumor_mask", True), ("desc-brain_mask", False)]
)
def test_masks_of_lesions(tmp_path: Path, derived: str, *, labelled: bool) -> None:
    found = find_dataset(bids(tmp_path / "d", derived=derived))
    assert {case.label is not None for case in found.cases} == {labelled}
    assert {case.mask is None for case in found.cases} == {labelled}


def test_classes_of_participants(tmp_path: Path) -> None:
    bids(tmp_path / "d", derived="")
    rows = ["sub-00\t61\tAD", "sub-01\t70\tCN", "sub-02\t55\tAD", "sub-03\t66\tn/a"]
    (tmp_path / "d/participants.tsv").write_text("\n".join(["participant_id\tage\tgroup", *rows]) + "\n")
    found = data_set(tmp_path / "d")
    assert found.classes == ("AD", "CN")
    assert [case.class_name for case in found.cases] == ["AD", "CN", "AD", ""]
