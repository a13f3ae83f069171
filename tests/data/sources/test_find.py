"""Cases by what a user points at: files, series and folders, matched to channels by name."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from cmt_med.base.errors import ConfigError, DataError, OutputError
from cmt_med.data.phantom_years import write_as_downloaded
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.data.sources.by_channel import case_of_channels
from cmt_med.data.sources.predicted import label_maps_in
from cmt_med.data.volumes.gate import load_case
from cmt_med.inference.results import require_own
from tests.data.made import LABEL, nifti
from tests.data.volumes.test_dicom import series

FOUR = ("t1", "t1ce", "t2", "flair")


@pytest.mark.parametrize("year", ["brats2021", "brats2024-gli", "msd"])
def test_downloads_are_read_as_they_are(year: str, tmp_path: Path) -> None:
    """At any depth; the decathlon's 4D files by its dataset.json. The same volumes as ``init`` finds."""
    write_as_downloaded(tmp_path / "a/b", year, heads=2, spacing=12.0)
    folder = tmp_path / "a/b" if year == "msd" else tmp_path
    cases = cases_for_network(folder, FOUR).cases
    expected = find_dataset(folder).cases
    assert [(c.name, dict(c.images)) for c in cases] == [(c.name, dict(c.images)) for c in expected]


def test_masks_and_old_folders_are_the_same_cases_as_init_finds(tmp_path: Path) -> None:
    """A network that was trained inside masks must get the same masks."""
    for name in ("one/p1_t1", "one/p1_brainmask", "one/p1_seg", "one/p2_t1", "two/T1_x", "two/mask"):
        nifti(tmp_path / f"{name}.nii.gz", LABEL)
    for word in ("MR_T1.1", "OT.2"):
        nifti(tmp_path / f"three/VSD.Brain.XX.O.{word}/VSD.Brain.XX.O.{word}.nii.gz", LABEL)
    cases, expected = cases_for_network(tmp_path, ("t1",)).cases, find_dataset(tmp_path).cases
    seen = [[(c.name, dict(c.images), c.mask) for c in sorted(of, key=lambda c: c.name)] for of in (cases, expected)]
    assert seen[0] == seen[1]
    assert [mask.name if mask else None for *_, mask in seen[0]] == ["p1_brainmask.nii.gz", None, None, "mask.nii.gz"]
    # without a sequence's name, a mask may as well be the label map
    (case,) = cases_for_network(nifti(tmp_path / "ct/q.nii.gz").parent, ("ct",)).cases
    nifti(tmp_path / "ct/q_mask.nii.gz", LABEL)
    assert cases_for_network(tmp_path / "ct", ("ct",)).cases == [case]


def test_other_formats_and_series(tmp_path: Path) -> None:
    image = SimpleITK.ReadImage(nifti(tmp_path / "x.nii.gz"))
    for name in ("one/p_t1.nrrd", "one/p_t2.mha", "one/p_seg.nrrd", "one/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("") if name.endswith("txt") else SimpleITK.WriteImage(image, tmp_path / name)
    (case,) = cases_for_network(tmp_path / "one", ("t1", "t2")).cases
    assert (case.name, set(case.images)) == ("p", {"t1", "t2"})
    folder = series(tmp_path / "scans" / "patient1")
    for given in (folder, tmp_path / "scans"):
        (case,) = cases_for_network(given, ("ct",)).cases
        assert (case.name, case.images) == ("patient1", {"ct": (folder, None)})
    assert load_case(case, ("ct",)).image.shape[0] == 1
    two = [series(tmp_path / "study" / "anna" / word) for word in ("T1w", "FLAIR")]  # a series for each channel
    (case,) = cases_for_network(tmp_path / "study", ("t1", "flair")).cases
    assert (case.name, case.images) == ("anna", {"t1": (two[0], None), "flair": (two[1], None)})


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "one/p_t1.nii.gz")
    nifti(tmp_path / "two/p_t1.nii.gz")
    nifti(tmp_path / "other/p_adc.nii.gz")
    for path, channels, code in (
        (tmp_path, ("t1",), "E_MANIFEST"),  # two cases of one name
        (tmp_path / "other", ("t1", "t2"), "E_CHANNEL"),
        (tmp_path / "one/p_t1.nii.gz", ("t2",), "E_CHANNEL"),
        (tmp_path / "nothing", ("t1",), "E_IO"),
    ):
        with pytest.raises(DataError) as caught:
            cases_for_network(path, channels)
        assert caught.value.code == code
    shutil.copy(tmp_path / "one/p_t1.nii.gz", tmp_path / "one/p_t1w.nii.gz")
    with pytest.raises(DataError, match="two files are channel t1 of case p"):
        cases_for_network(tmp_path / "one", ("t1",))
    with pytest.raises(DataError, match="cannot be a case name"):
        case_of_channels({"t1": tmp_path / "patient 3_t1.nii.gz"}, ("t1",))
    with pytest.raises(ConfigError, match="no channel adc"):
        case_of_channels({"adc": tmp_path / "x.nii.gz"}, ("t1",))


def test_label_maps_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_prob.nii.gz", ".hidden.nii", "b.nii"):
        nifti(tmp_path / name, LABEL)
    (tmp_path / "a.json").write_text("{}")
    assert label_maps_in(tmp_path) == {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.nii"}
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match="two label maps are of case 'a'"):
        label_maps_in(tmp_path)


def test_files_that_no_channel_names_are_noted(tmp_path: Path) -> None:
    for name in ("c1_t1", "c1_fl", "c1_seg"):
        nifti(tmp_path / "c1" / f"{name}.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert found.channels == ["t1"]
    assert "c1_fl.nii.gz" in found.notes[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, for whom permissions bind")
def test_folders_that_must_not_be_read_are_problems() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nifti(folder / "p_t1.nii.gz")
        (folder / "locked").mkdir()
        (folder / "listed").mkdir()
        nifti(folder / "listed/q_t1.nii.gz")
        for path, mode in ((folder, 0o755), (folder / "locked", 0), (folder / "listed", 0o444)):
            path.chmod(mode)
        os.seteuid(65534)
        try:
            found = cases_for_network(folder, ("t1",))
            with pytest.raises(DataError, match="no permission"):
                cases_for_network(folder / "locked", ("t1",))
            with pytest.raises(DataError, match="no permission"):
                cases_for_network(folder / "locked/below", ("t1",))
        finally:
            os.seteuid(0)
    assert [case.name for case in found.cases] == ["p"]
    assert sorted((Path(p.where).name, p.code) for p in found.problems) == [("locked", "E_IO"), ("q_t1.nii.gz", "E_IO")]


def test_a_table_names_the_network_s_own_channels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,ct,flair,age\na,a_ct.nii.gz,a_fl.nii.gz,3\nb,b_ct.nii.gz,,4\nc,,c_fl.nii.gz,5\n"
    )
    found = cases_for_network(tmp_path / "t.csv", ("ct",))
    assert [(case.name, case.images) for case in found.cases] == [
        (name, {"ct": (tmp_path / f"{name}_ct.nii.gz", None)}) for name in "ab"
    ]
    assert len(found.problems) == 1  # c
    assert "flair, age" in found.notes[0]


@pytest.mark.parametrize("cell", ["../../x.nii.gz", "x\0.nii.gz"])
def test_a_table_leads_nowhere_else(tmp_path: Path, cell: str) -> None:
    (tmp_path / "t.csv").write_text(f"id,t1\na,{cell}\n")
    with pytest.raises(DataError) as caught:
        cases_for_network(tmp_path / "t.csv", ("t1",))
    assert caught.value.code == "E_MANIFEST"


def test_a_table_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError) as caught:
        cases_for_network(tmp_path / "t.csv", ("t1",))
    assert caught.value.code == "E_IO"


@pytest.mark.fault(9)
def test_a_series_beside_whose_slices_something_else_lies_is_not_left_out(tmp_path: Path) -> None:
    """The reader refuses it by name; to pass over the folder would lose a patient in silence."""
    for name, uid in (("anna", "1.2"), ("bert", "1.3")):

        def of_patient(slice_: Dataset, _: int, uid: str = uid) -> None:
            slice_.PatientID, slice_.StudyInstanceUID, slice_.SeriesInstanceUID = uid, f"{uid}.1", f"{uid}.1.1"

        series(tmp_path / "scans" / name, of_patient)
    (tmp_path / "scans/bert/AAA").write_text("notes")  # the first of its files, by name
    assert [case.name for case in cases_for_network(tmp_path / "scans", ("ct",)).cases] == ["anna", "bert"]
    with pytest.raises(DataError, match="AAA") as raised:
        load_case(cases_for_network(tmp_path / "scans/bert", ("ct",)).cases[0], ("ct",))
    assert raised.value.code == "E_FORMAT"


@pytest.mark.fault(21)
@pytest.mark.parametrize("name", ["s.nii.gz", "s.hdr", "s"])
def test_the_result_of_a_folder_with_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    """OUTPUT/s.nii.gz, not OUTPUT/s.nii.gz.nii.gz; and never the folder itself."""
    folder = series(tmp_path / "scans" / name)
    for found in (cases_for_network(folder, ("ct",)), cases_for_network(tmp_path / "scans", ("ct",))):
        assert [(case.name, case.images["ct"][0]) for case in found.cases] == [("s", folder)]
        if name == "s.nii.gz":
            with pytest.raises(OutputError, match="overwrite an input"):
                require_own(tmp_path / "scans", found.cases)
    assert case_of_channels({"ct": folder}, ("ct",)).name == "s"


@pytest.mark.parametrize(
    ("channels", "said", "example"),
    [
        (("t1", "flair"), "1 × .csv, 1 × .nii.gz, 1 × .png", "(p7_flair.nii.gz)"),
        (("image",), "1 × .csv", "(CASE.png)"),
    ],
)
def test_no_cases_say_what_is_there(tmp_path: Path, channels: tuple[str, ...], said: str, example: str) -> None:
    (tmp_path / "notes.csv").write_text("x")
    if len(channels) > 1:
        nifti(tmp_path / "p7_ct.nii.gz")
        (tmp_path / "preview.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no cases found") as raised:
        cases_for_network(tmp_path, channels)
    assert raised.value.code == "E_CHANNEL"
    assert said in raised.value.why
    assert example in raised.value.fix
