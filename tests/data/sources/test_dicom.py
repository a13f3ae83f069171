"""DICOM studies as archives export them: patients, studies and series in any folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.conventions.series import channel_of_series
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.data.volumes.gate import load_case
from cmt_med.runs.recognition import data_set
from tests.data.dicom_made import write_segmentation, write_series, write_structures

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
RNG = np.random.default_rng(5)


def one(folder: Path, patient: str, description: str, affine: np.ndarray = AFFINE, slices: int = 5) -> list:
    values = RNG.integers(1, 900, (8, 7, slices)).astype(float)
    return write_series(folder, values, affine, patient=patient, description=description)


def numbers(slices: int = 5) -> np.ndarray:
    return RNG.integers(0, 3, (8, 7, slices)).astype(np.uint8)


def poured(parts: Path, flat: Path) -> None:
    """All files under ``parts`` in one folder."""
    flat.mkdir()
    for i, file in enumerate(sorted(path for path in parts.rglob("*") if path.is_file())):
        shutil.copy(file, flat / f"I{i:05d}")


@pytest.mark.parametrize("flat", [False, True])
def test_a_study_of_several_sequences(tmp_path: Path, flat: bool) -> None:
    folder = tmp_path / "tree"
    first = one(folder / "a/1", "anna", "t1_mprage_sag")
    one(folder / "a/2", "anna", "t1_mprage post gd")
    one(folder / "a/3", "anna", "FLAIR dark fluid")
    one(folder / "a/4", "anna", "localizer", slices=2)
    thick = one(folder / "a/5", "anna", "ax T2 tse", np.diag([1, 1, 6.0, 1]))
    write_segmentation(folder / "a/seg.dcm", first, numbers(), {1: "Lesion A", 2: "Lesion B"})
    one(folder / "b/1", "bert", "t1 mprage")
    one(folder / "b/2", "bert", "T1 +C")
    one(folder / "b/3", "bert", "flair")
    if flat:
        poured(folder, tmp_path / "flat")
        folder = tmp_path / "flat"
    found = find_dataset(folder)
    assert not found.problems
    assert found.channels == ["t1", "t1ce", "flair"]
    names = ["study_001", "study_002"] if flat else ["a", "b"]
    assert [case.name for case in found.cases] == names
    anna = next(case for case in found.cases if case.label)
    assert set(anna.images) == {"t1", "t1ce", "flair"}  # the thick T2 lies on other slices
    assert any("ax T2 tse" in note for note in found.notes)
    assert len(thick) == 5
    assert found.labels == {"background": 0, "lesion a": 1, "lesion b": 2}
    assert len({case.group for case in found.cases}) == 2
    assert "anna" not in str([case.group for case in found.cases])
    loaded = load_case(anna, found.channels, list(found.labels.values()))
    assert loaded.label is not None
    assert set(np.unique(loaded.label)) == {0, 1, 2}


def test_two_studies_of_a_patient_stay_together(tmp_path: Path) -> None:
    for visit, date in (("v1", "20200101"), ("v2", "20210101")):
        slices = one(tmp_path / f"set/{visit}", "anna", "T1")
        for i, slice_ in enumerate(slices):
            slice_.StudyInstanceUID = slice_.SeriesInstanceUID = f"1.2.{date}"
            slice_.StudyDate = date
            slice_.save_as(tmp_path / f"set/{visit}/IM{i:04d}.dcm")
    found = find_dataset(tmp_path / "set")
    assert [case.name for case in found.cases] == ["v1", "v2"]
    assert len({case.group for case in found.cases}) == 1


def test_two_series_of_one_name_are_a_question(tmp_path: Path) -> None:
    one(tmp_path / "set/a/1", "anna", "T1")
    one(tmp_path / "set/a/2", "anna", "t1 again")
    found = find_dataset(tmp_path / "set")
    assert not found.cases
    assert found.problems[0].code == "E_CHANNEL"
    assert "T1 (5 files), t1 again (5 files)" in found.problems[0].message()


def test_two_segmentations_are_a_question(tmp_path: Path) -> None:
    slices = one(tmp_path / "set/a/1", "anna", "T1")
    for name in ("x", "y"):
        write_segmentation(tmp_path / f"set/a/{name}.dcm", slices, numbers(), {1: "A", 2: "B"})
    found = find_dataset(tmp_path / "set")
    assert [problem.code for problem in found.problems] == ["E_LABEL"]


def test_a_segmentation_of_another_series(tmp_path: Path) -> None:
    slices = one(tmp_path / "away", "anna", "T1")
    write_segmentation(tmp_path / "set/a/seg.dcm", slices, numbers(), {1: "A", 2: "B"})
    one(tmp_path / "set/a/1", "anna", "FLAIR")
    (problem,) = find_dataset(tmp_path / "set").problems
    assert problem.code == "E_DICOM"
    assert "the images that the segmentation belongs to" in problem.message()


def test_a_series_in_two_folders(tmp_path: Path) -> None:
    one(tmp_path / "set/a/1", "anna", "T1", slices=8)
    (tmp_path / "set/a/2").mkdir()
    for k in range(4):
        (tmp_path / f"set/a/1/IM000{k}.dcm").rename(tmp_path / f"set/a/2/IM000{k}.dcm")
    (problem,) = find_dataset(tmp_path / "set").problems
    assert problem.code == "E_DICOM"
    assert "several folders" in problem.message()


def test_names_of_segments_go_before_their_numbers(tmp_path: Path) -> None:
    """Regions of interest are numbered as they were drawn: the label is that of the name."""
    square = np.array([[1, 1], [5, 1], [5, 5], [1, 5.0]])
    for patient, order in (("anna", ("Heart", "Lung")), ("bert", ("Lung", "Heart"))):
        slices = one(tmp_path / f"set/{patient}/ct", patient, "T1")
        shapes = {name: [np.c_[square, np.full(4, 3.0 * (1 + (name == "Lung")))]] for name in order}
        write_structures(tmp_path / f"set/{patient}/rt.dcm", slices, shapes)
    manifest = data_set(tmp_path / "set")
    assert manifest.labels == {"background": 0, "heart": 1, "lung": 2}
    for case in manifest.cases:
        label = load_case(case, manifest.channels, [0, 1, 2]).label
        assert label is not None
        assert set(np.unique(label[..., 1])) == {0, 1}
        assert set(np.unique(label[..., 2])) == {0, 2}


def test_one_series_for_a_network_of_one_channel(tmp_path: Path) -> None:
    one(tmp_path / "set/a/x", "anna", "T1 mprage")
    one(tmp_path / "set/b/x", "bert", "ax thing")
    (anna, bert) = cases_for_network(tmp_path / "set", ("mri",)).cases
    assert (set(anna.images), set(bert.images)) == ({"mri"}, {"mri"})
    with pytest.raises(DataError, match="has no flair"):
        cases_for_network(tmp_path / "set/a", ("flair",))


@pytest.mark.parametrize(
    ("said", "channel"),
    [
        (("MR", "t1_mpr_ns_sag_p2_iso"), "t1"), (("MR", "AX T1 POST"), "t1ce"), (("MR", "T1pre_reg"), "t1"),
        (("MR", "Ax T2 FLAIR"), "flair"), (("MR", "Sag T1 FLAIR"), "t1"), (("MR", "ep2d_diff_ADC"), "adc"),
        (("MR", "ep2d_diff_b1000"), "dwi"), (("MR", "T2* gre"), "t2star"), (("MR", "SWI_Images"), "swi"),
        (("MR", "t2_tse_tra"), "t2"), (("MR", "Series 5", "B Ax T1 +C"), "t1ce"), (("CT", "T1 vertebra"), "ct"),
        (("PT", "WB AC"), "pet"), (("MR", "DCE perfusion"), "dce_perfusion"),
    ],
)  # fmt: skip
def test_channels_by_description(said: tuple[str, ...], channel: str) -> None:
    assert channel_of_series(*said) == channel


def test_channels_by_timing() -> None:
    assert channel_of_series("MR", "x", inverted=True, inversion=2500, echo=90, repetition=9000) == "flair"
    assert channel_of_series("MR", "x", echo=9, repetition=500) == "t1"
    assert channel_of_series("MR", "x", echo=9, repetition=500, contrast=True) == "t1ce"
    assert channel_of_series("MR", "x", echo=95, repetition=4000) == "t2"
    assert channel_of_series("MR", "") == "mri"


@pytest.mark.data
def test_the_glioma_study(real_data: Path) -> None:
    found = find_dataset(real_data / "dicom_glioma")
    assert [case.name for case in found.cases] == ["dicom_glioma"]
    assert found.channels == ["t1", "t1ce", "t2", "flair"]
    assert not found.problems
