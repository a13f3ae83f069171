"""Every year's folder as downloaded, made by the phantom: recognised, or asked about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.conventions.brats import CONVENTIONS, labels_by_name, patient_of, standard_regions
from cmt_med.data.conventions.signs import Signs, recognise
from cmt_med.data.phantom import CHANNELS, make_head
from cmt_med.data.phantom_years import write_as_downloaded, year_labels
from cmt_med.data.preprocessing.survey import survey
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.data.sources.dataset import Dataset, leave_out_incomplete
from cmt_med.data.volumes.gate import load_labels

OLD = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
NEW = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
EXPECTED = {
    "brats2013": {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4},
    "brats2017": OLD, "brats2018": OLD, "brats2019": OLD, "brats2020": OLD, "brats2021": OLD,
    "brats2023-gli": NEW, "brats2023-men": NEW, "brats2023-met": NEW, "brats2023-ped": NEW, "brats2023-ssa": NEW,
    "brats2024-gli": NEW | {"RC": 4},
    "brats2024-men-rt": {"background": 0, "GTV": 1},
    "msd": {"background": 0, "ED": 1, "NCR": 2, "ET": 3},
}  # fmt: skip


def scan(path: Path) -> Dataset:
    """What init takes."""
    found = find_dataset(path)
    leave_out_incomplete(found)
    return found


def signs_of(folder: Path) -> tuple[Dataset, Signs]:
    found = scan(folder)
    seen = survey(found.cases, found.channels)
    assert not found.problems
    assert not seen.problems
    return found, Signs(
        [case.name for case in found.cases], found.suffixes, set(seen.values), found.labels, seen.values_in
    )


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_a_download_is_recognised(name: str, tmp_path: Path) -> None:
    write_as_downloaded(tmp_path / "download", name, heads=2, spacing=8.0)
    found, signs = signs_of(tmp_path / "download")
    style, reasons = recognise(signs)
    assert (style.name, style.labels) == (name, EXPECTED[name])
    assert reasons
    # Every channel is the phantom's, whatever the file is called and wherever it stands in a 4D file.
    head = make_head(0, 8.0)
    case = found.cases[0]
    assert set(case.images) == ({"t1ce"} if name == "brats2024-men-rt" else set(CHANNELS))
    for channel, (path, position) in case.images.items():
        values = np.asarray(nib.load(path).dataobj)
        values = values if position is None else values[..., position]
        np.testing.assert_array_equal(values, head.image[CHANNELS.index(channel)])
    assert case.label is not None
    label, _ = load_labels(case.label, case.name)
    assert set(np.unique(label)) == set(EXPECTED[name].values())
    np.testing.assert_array_equal(label, year_labels(head.label, style))


def test_regions_of_each_year() -> None:
    def of(name: str) -> dict[str, list[int]]:
        labels = CONVENTIONS[name].labels
        return {r.name: sorted(labels[label] for label in r.labels) for r in standard_regions(labels)}

    assert of("brats2021") == {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    assert of("brats2023-gli") == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
    assert of("brats2024-gli") == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}
    assert of("msd") == {"WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}
    assert of("brats2013") == {"WT": [1, 2, 3, 4], "TC": [1, 3, 4], "NET": [3], "ET": [4]}
    assert of("brats2024-men-rt") == {"GTV": [1]}


@pytest.mark.parametrize(
    ("name", "case", "patient"),
    [("brats2018", "Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB"), ("brats2020", "BraTS20_Training_001", "BraTS20_Training_001"),
     ("brats2021", "BraTS2021_00000", "BraTS2021_00000"), ("brats2024-gli", "BraTS-GLI-02062-101", "BraTS-GLI-02062"),
     ("brats2024-men-rt", "BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"), ("msd", "BRATS_001", "BRATS_001")],
)  # fmt: skip
def test_patient_of_a_case(name: str, case: str, patient: str) -> None:
    assert patient_of(case, CONVENTIONS[name]) == patient


def test_label_numbers_by_name() -> None:
    assert labels_by_name(["BraTS-GLI-00001-000"]) == NEW | {"RC": 4}
    assert labels_by_name(["BraTS2021_00001", "BraTS2021_00002"]) == OLD
    assert labels_by_name(["one", "other"]) is None
    assert labels_by_name(["BraTS-GLI-00001-000", "BraTS-MEN-00001-000"]) == NEW | {"RC": 4}
    for mixed in (
        ["BraTS2021_00001", "other"],
        ["other", "BraTS-GLI-00001-000"],
        ["BraTS2021_00001", "BraTS-GLI-00001-000"],
        ["BRATS_001", "BraTS20_Training_001"],
        ["BraTS-MEN-RT-0001-1", "BraTS-GLI-00001-000"],
    ):
        with pytest.raises(DataError, match="number their labels differently") as error:
            labels_by_name(mixed)
        assert error.value.code == "E_CONVENTION"
        assert "--convention" in error.value.fix


def test_other_names_are_patients_of_their_own() -> None:
    assert patient_of("UCSF-001", CONVENTIONS["brats2023-gli"]) == "UCSF-001"
    assert patient_of("patient_000", CONVENTIONS["brats2018"]) == "patient_000"


# ---- folders with the faults that real downloads have


def test_the_misnamed_mask_of_2020_is_found(tmp_path: Path) -> None:
    names = write_as_downloaded(tmp_path, "brats2020", heads=2, spacing=12.0)
    case = tmp_path / names[1]
    (case / f"{names[1]}_seg.nii.gz").rename(case / "W39_1998.09.19_Segm.nii.gz")
    found = scan(tmp_path)
    assert found.cases[1].label == case / "W39_1998.09.19_Segm.nii.gz"
    assert "W39_1998.09.19_Segm.nii.gz" in found.notes[0]


def test_missing_and_copied_channels_are_named(tmp_path: Path) -> None:
    names = write_as_downloaded(tmp_path, "brats2021", heads=3, spacing=12.0)
    (tmp_path / names[0] / f"{names[0]}_t2.nii.gz").unlink()
    shutil.copy(tmp_path / names[1] / f"{names[1]}_t1.nii.gz", tmp_path / names[1] / f"{names[1]}_t1ce.nii.gz")
    found = scan(tmp_path)
    assert [case.name for case in found.cases] == names[1:]
    assert found.problems[0].code == "E_CHANNEL"
    assert names[0] in found.problems[0].where
    assert survey(found.cases, found.channels).copies == {names[1]: [("t1", "t1ce")]}


def test_brats_2013_names_as_distributed(tmp_path: Path) -> None:
    names = write_as_downloaded(tmp_path, "brats2013", heads=1, spacing=12.0)
    case = tmp_path / names[0]
    for word, new in (("T1", "O.MR_T1.1"), ("T1c", "O.MR_T1c.2"), ("T2", "O.MR_T2.3"), ("Flair", "O.MR_Flair.4"),
                      ("OTMultiClass", "O.OT.5")):  # fmt: skip
        folder = case / f"VSD.Brain.XX.{new}"
        folder.mkdir()
        (case / f"{word}.nii.gz").rename(folder / f"VSD.Brain.XX.{new}.nii.gz")
    found = scan(tmp_path)
    assert [case.name for case in found.cases] == names
    assert set(found.cases[0].images) == set(CHANNELS)
    assert found.cases[0].label is not None


def test_a_table_of_files(tmp_path: Path) -> None:
    names = write_as_downloaded(tmp_path, "brats2023-ped", heads=2, spacing=12.0)
    lines = ["id,T1Gd,FLAIR,seg,patient,fold,age"]
    lines += [f"p{i},{n}/{n}-t1c.nii.gz,{n}/{n}-t2f.nii.gz,{n}/{n}-seg.nii.gz,same,0,7" for i, n in enumerate(names)]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    found = scan(tmp_path / "cases.csv")
    assert [(c.name, c.group, c.fold) for c in found.cases] == [("p0", "same", 0), ("p1", "same", 0)]
    assert found.channels == ["t1ce", "flair"]
    assert [case.name for case in cases_for_network(tmp_path / "cases.csv", ["t1ce", "flair"]).cases] == ["p0", "p1"]
    twice = [*lines, lines[1].replace("p0", "again")]
    (tmp_path / "twice.csv").write_text("\n".join(twice))
    found = scan(tmp_path / "twice.csv")
    assert [case.name for case in found.cases] == ["p0", "p1"]
    assert "files of case p0" in found.problems[0].what
    twice = [lines[0], lines[1], lines[2].replace("p1", "p0"), lines[2]]  # a line that is refused owns no files
    (tmp_path / "twice.csv").write_text("\n".join(twice))
    assert [case.name for case in scan(tmp_path / "twice.csv").cases] == ["p0", "p1"]
    assert found.cases[0].images["t1ce"][0] == tmp_path / f"{names[0]}/{names[0]}-t1c.nii.gz"
    assert "age" in found.notes[0]
    for content, code in (("id,age\n1,2", "E_MANIFEST"), ("id,t1,t1w\na,b,c", "E_MANIFEST"), ("", "E_MANIFEST"),
                          ("id,t1,t1\na,b,c", "E_MANIFEST"), ("id,t1,age,age\na,b,c,d", "E_MANIFEST"), ("id,t1\n", "E_MANIFEST"),
                          ("id,t1\n../up,x.nii.gz", "E_MANIFEST")):  # fmt: skip
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(DataError) as caught:
            scan(tmp_path / "bad.csv")
        assert caught.value.code == code


def test_real_data_by_one_look(real_data: Path) -> None:
    for folder, name, channels in (
        ("brats_crops", "msd", ["flair", "t1", "t1ce", "t2"]),
        ("brats2013_two_channel", "brats2013", ["t1ce", "flair"]),
    ):
        found, signs = signs_of(real_data / folder)
        assert recognise(signs)[0].name == name
        assert found.channels == channels
    masks = [case.mask for case in scan(real_data / "brats2013_two_channel").cases]
    assert all(mask is not None and mask.name == "brainmask.nii.gz" for mask in masks)


def test_the_decathlon_s_own_list_is_read(tmp_path: Path) -> None:
    write_as_downloaded(tmp_path, "msd", heads=1, spacing=12.0)
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["labels"]["1"] == "edema"
    assert scan(tmp_path).labels == EXPECTED["msd"]
