"""The same cases in every format that can hold them: equal arrays, grids, label values, patients and splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cmt_med.config.data import Split
from cmt_med.data.manifest import Manifest, load_manifest
from cmt_med.data.preprocessing.pipeline import as_dictionary, preprocessing
from cmt_med.data.splits import split_cases
from cmt_med.data.volumes.gate import load_case
from cmt_med.runs.recognition import data_set
from tests.data.dicom_made import study, write_segmentation

CASES = 12
SETTINGS = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": [0.5, 99.5]}


def copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def decathlon(original: Manifest, folder: Path) -> Path:
    for case in original.cases:
        copied(case.images["mri"][0], folder / f"imagesTr/{case.name}.nii.gz")
        copied(case.label or Path(), folder / f"labelsTr/{case.name}.nii.gz")
    training = [
        {"image": f"./imagesTr/{c.name}.nii.gz", "label": f"./labelsTr/{c.name}.nii.gz"} for c in original.cases
    ]
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels, "training": training}))
    return folder


def nnunet(original: Manifest, folder: Path) -> Path:
    for case in original.cases:
        copied(case.images["mri"][0], folder / f"imagesTr/{case.name}_0000.nii.gz")
        copied(case.label or Path(), folder / f"labelsTr/{case.name}.nii.gz")
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def bids(original: Manifest, folder: Path) -> Path:
    for case in original.cases:
        name = f"sub-{case.name.rpartition('_')[2]}"
        copied(case.images["mri"][0], folder / f"{name}/anat/{name}_acq-mri_MRI.nii.gz")
        copied(case.label or Path(), folder / f"derivatives/manual/{name}/anat/{name}_acq-mri_dseg.nii.gz")
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "hippocampus", "BIDSVersion": "1.9.0"}))
    return folder


def pairs(original: Manifest, folder: Path, *, labels: str = "labels", affix: str = "") -> Path:
    for case in original.cases:
        copied(case.images["mri"][0], folder / f"images/{case.name}.nii.gz")
        copied(case.label or Path(), folder / f"{labels}/{case.name}{affix}.nii.gz")
    return folder


def masks(original: Manifest, folder: Path) -> Path:
    return pairs(original, folder, labels="masks", affix="_mask")


def annotations(original: Manifest, folder: Path) -> Path:
    return pairs(original, folder, labels="annotations")


def patients(original: Manifest, folder: Path) -> Path:
    for case in original.cases:
        copied(case.images["mri"][0], folder / f"{case.name}/image.nii.gz")
        copied(case.label or Path(), folder / f"{case.name}/mask.nii.gz")
    return folder


def side_by_side(original: Manifest, folder: Path) -> Path:
    for case in original.cases:
        copied(case.images["mri"][0], folder / f"{case.name}.nii.gz")
        copied(case.label or Path(), folder / f"{case.name}_seg.nii.gz")
    return folder


def table(original: Manifest, folder: Path) -> Path:
    lines = [f"{c.name},{c.images['mri'][0].absolute()},{(c.label or Path()).absolute()}" for c in original.cases]
    folder.mkdir()
    (folder / "list.csv").write_text("\n".join(["id,image,label", *lines]) + "\n")
    return folder / "list.csv"


def rounded(original: Manifest, folder: Path) -> Manifest:
    """The same cases with whole numbers, which are what DICOM stores."""
    folder.mkdir()
    cases = []
    for case in original.cases:
        image = nibabel.load(case.images["mri"][0])
        file = folder / f"{case.name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).round().astype(np.int16), image.affine), file)
        cases.append(replace(case, images={"mri": (file, None)}))
    return replace(original, cases=tuple(cases))


def dicom(original: Manifest, folder: Path) -> Path:
    """Slices and segmentation of a patient in one folder, as they leave an archive."""
    for case in original.cases:
        target = folder / case.name
        study(target, case.images["mri"][0], case.label, names={1: "Anterior", 2: "Posterior"}, patient=case.name)
    return folder


def dicom_apart(original: Manifest, folder: Path) -> Path:
    """Series and segmentations in folders of their own; segments numbered in another order in half of the files."""
    for i, case in enumerate(original.cases):
        image, seg = folder / f"{case.name}/T1", folder / f"{case.name}/SEG/1.dcm"
        slices = study(image, case.images["mri"][0], patient=case.name)
        numbers = np.asarray(nibabel.load(case.label or Path()).dataobj).round().astype(np.uint8)
        names = {1: "Anterior", 2: "Posterior"}
        if i % 2:
            numbers, names = np.array([0, 2, 1], np.uint8)[numbers], {1: "Posterior", 2: "Anterior"}
        write_segmentation(seg, slices, numbers, names)
    return folder


@pytest.mark.data
@pytest.mark.parametrize(
    "make",
    [decathlon, nnunet, bids, pairs, masks, annotations, patients, side_by_side, table, dicom, dicom_apart],
    ids=lambda make: make.__name__,
)
def test_the_same_cases(real_data: Path, tmp_path: Path, make: Callable[[Manifest, Path], Path]) -> None:
    whole = load_manifest(real_data / "hippocampus/dataset.json")
    original = Manifest(whole.path, "", whole.cases[:CASES], whole.channels, whole.labels)
    if make in (dicom, dicom_apart):
        original = rounded(original, tmp_path / "rounded")
    found = data_set(make(original, tmp_path / "set"))
    short = {case.name: case.name.rpartition("_")[2] for case in original.cases}
    alike = {case.name.rpartition("_")[2].removeprefix("sub-"): case for case in found.cases}
    if make is bids:
        alike = {case.name.partition("_")[0].removeprefix("sub-"): case for case in found.cases}
    assert sorted(alike) == sorted(short.values())
    assert sorted(found.labels.values()) == [0, 1, 2]
    assert len(found.channels) == 1
    assert len({case.group for case in found.cases}) == CASES
    split = Split(by="fold", fold=1, folds=4)
    held = split_cases(list(found.cases), split, 0)[1]
    assert {name for name, case in alike.items() if case in held} == {
        short[case.name] for case in split_cases(list(original.cases), split, 0)[1]
    }
    transform = preprocessing(SETTINGS, with_label=True)
    for case in original.cases:
        mine = transform(as_dictionary(load_case(alike[short[case.name]], found.channels, [0, 1, 2], need_label=True)))
        theirs = transform(as_dictionary(load_case(case, original.channels, [0, 1, 2], need_label=True)))
        for key in ("image", "label"):
            assert np.array_equal(mine[key].numpy(), theirs[key].numpy())
            assert np.array_equal(mine[key].affine.numpy(), theirs[key].affine.numpy())
