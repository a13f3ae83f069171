"""Data sets that can be read in two ways, or contradict themselves: init asks or says what is wrong, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt_med.init import init
from cmt_med.launch.command import run_command
from tests.data.dicom_made import write_segmentation, write_series
from tests.data.made import IMAGE, LABEL, nifti

RNG = np.random.default_rng(0)


def pair(folder: Path, name: str, label: np.ndarray = LABEL, image: np.ndarray = IMAGE, labels: str = "labels") -> None:
    nifti(folder / f"images/{name}.nii.gz", image + RNG.normal(size=image.shape).astype(np.float32))
    nifti(folder / f"{labels}/{name}.nii.gz", label)


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(path: Path, size: tuple[int, int] = (12, 10)) -> None:
    png(path, RNG.integers(0, 255, size).astype(np.uint8))


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def listed(folder: Path, count: int = 2, **changes: Any) -> dict[str, Any]:
    """A case list that is in order, but for the changes."""
    for i in range(count):
        pair(folder, f"c{i}")
    entries = [{"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz"} for i in range(count)]
    labels = {"0": "background", "1": "thing"}
    return {"modality": {"0": "CT"}, "labels": labels, "training": entries} | changes


def nnunet(folder: Path, **changes: Any) -> dict[str, Any]:
    for i in range(2):
        nifti(folder / f"imagesTr/c{i}_0000.nii.gz", IMAGE + i)
        nifti(folder / f"labelsTr/c{i}.nii.gz", LABEL)
    return {"channel_names": {"0": "CT"}, "labels": {"background": 0, "thing": 1}, "numTraining": 2,
            "file_ending": ".nii.gz"} | changes  # fmt: skip


def bids(folder: Path) -> None:
    for s in ("01", "02"):
        nifti(folder / f"sub-{s}/anat/sub-{s}_T1w.nii.gz", IMAGE + int(s))
        nifti(folder / f"derivatives/a/sub-{s}/anat/sub-{s}_dseg.nii.gz", LABEL)
    written(folder / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.9.0"})


def series(folder: Path, patient: str = "p", description: str = "T1") -> list:
    values = RNG.integers(1, 900, (8, 7, 6)).astype(float)
    return write_series(folder, values, np.diag([1.0, 1.0, 3.0, 1.0]), patient=patient, description=description)


# ---- folders


def images_of_one_name_twice(d: Path) -> None:
    pair(d, "p1")
    nifti(d / "images/p1_image.nii.gz")


def label_map_twice(d: Path) -> None:
    for word in ("seg", "label"):
        nifti(d / f"p1_{word}.nii.gz", LABEL)
    nifti(d / "p1.nii.gz")


def one_or_255(d: Path) -> None:
    for i in range(4):
        pair(d, f"p{i}", LABEL * (1 if i % 2 else 255))


def half_without_a_channel(d: Path) -> None:
    for i in range(4):
        for channel in ("ct", "pet")[: 1 + i % 2]:
            nifti(d / f"p{i}/p{i}_{channel}.nii.gz", IMAGE + i)
        nifti(d / f"p{i}/p{i}_seg.nii.gz", LABEL)


def patients_across_folders(d: Path) -> None:
    for part in ("a", "b"):
        pair(d / part, "p1")


def names_that_differ_in_capitals(d: Path) -> None:
    pair(d, "P1")
    pair(d, "p1")


def ct_and_mr_half_and_half(d: Path) -> None:
    for i, kind in enumerate(("ct", "mr")):
        shift = np.array([[0, 0, 0, 9.0 * i], *[[0.0] * 4] * 3])
        nifti(d / f"x_{kind}_s.nii.gz", affine=np.eye(4) + shift)
        nifti(d / f"x_seg_{kind}.nii.gz", LABEL, np.eye(4) + shift)


def whose_labels(d: Path) -> None:
    for i in range(2):
        for name in ("t1", "t1ce", "t2", "flair"):
            nifti(d / f"p{i}/p{i}_{name}.nii.gz", IMAGE + i)
        nifti(d / f"p{i}/p{i}_seg.nii.gz", LABEL * 3)


def empty_label_maps(d: Path) -> None:
    pair(d, "p1", LABEL * 0)
    pair(d, "p2", LABEL * 0)


def label_maps_that_are_images(d: Path) -> None:
    pair(d, "p1", (IMAGE * 40).astype(np.int16))


def labels_with_fractions(d: Path) -> None:
    pair(d, "p1", LABEL * np.float32(0.37))


def other_grids(d: Path) -> None:
    nifti(d / "images/p1.nii.gz")
    nifti(d / "labels/p1.nii.gz", np.ones((4, 4, 4), np.uint8))


def labels_alone(d: Path) -> None:
    nifti(d / "p1_seg.nii.gz", LABEL)


def images_alone(d: Path) -> None:
    nifti(d / "p1.nii.gz")


def nothing(d: Path) -> None:
    written(d / "notes.txt", "nothing")


def broken_images(d: Path) -> None:
    pair(d, "p1", image=np.full_like(IMAGE, np.nan))


def structures_that_overlap(d: Path) -> None:
    for i in range(2):
        nifti(d / f"s{i}/ct.nii.gz", IMAGE + i)
        for name in ("liver", "spleen"):
            nifti(d / f"s{i}/segmentations/{name}.nii.gz", LABEL)


def two_descriptions(d: Path) -> None:
    bids(d)
    written(d / "dataset.json", listed(d))


# ---- 2D


def shades_between_labels(d: Path) -> None:
    for i in range(2):
        grey(d / f"images/{i}.png")
        png(d / f"labels/{i}.png", RNG.integers(0, 255, (12, 10)).astype(np.uint8))


def colours_that_are_not_listed(d: Path) -> None:
    for i in range(2):
        grey(d / f"images/{i}.png")
        pixels = np.zeros((12, 10, 3), np.uint8)
        pixels[2:5, 2:5] = (255, 0, 0)
        pixels[7:9, 2:5] = (0, 0, 255)
        png(d / f"labels/{i}.png", pixels)
    entries = [{"image": f"images/{i}.png", "label": f"labels/{i}.png"} for i in range(2)]
    written(
        d / "dataset.json", {"labels": {"0": "background", "1": "red"}, "colours": {"#ff0000": 1}, "training": entries}
    )


def masks_of_other_sizes(d: Path) -> None:
    grey(d / "images/1.png")
    png(d / "masks/1.png", np.full((5, 5), 255, np.uint8))


def classes_almost_alike(d: Path) -> None:
    for name in ("No Tumour", "no_tumour"):
        for i in range(2):
            grey(d / f"{name}/{i}.png")


def one_class(d: Path) -> None:
    for i in range(3):
        grey(d / f"healthy/{i}.png")


# ---- lists and tables


def table(d: Path, text: str) -> None:
    for i in range(2):
        pair(d, f"c{i}")
    written(d / "t.csv", text)


def label_maps_and_classes(d: Path) -> None:
    lines = "".join(f"c{i},images/c{i}.nii.gz,labels/c{i}.nii.gz,{'ab'[i]}\n" for i in range(2))
    table(d, f"id,image,label,class\n{lines}")


def two_columns_of_one_meaning(d: Path) -> None:
    table(d, "id,image,label,seg\nc0,images/c0.nii.gz,labels/c0.nii.gz,labels/c0.nii.gz\n")


def words_for_label_maps(d: Path) -> None:
    table(d, "id,image,label\nc0,images/c0.nii.gz,benign\nc1,images/c1.nii.gz,malignant\n")


def files_that_are_not_there(d: Path) -> None:
    table(d, "id,image,label\nc0,images/x.nii.gz,labels/x.nii.gz\n")


def ids_twice(d: Path) -> None:
    entries = [{"id": "c", "image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz"} for i in range(2)]
    written(d / "dataset.json", listed(d, training=entries))


def files_twice(d: Path) -> None:
    entries = [{"id": f"c{i}", "image": "images/c0.nii.gz", "label": f"labels/c{i}.nii.gz"} for i in range(2)]
    written(d / "dataset.json", listed(d, training=entries))


def values_named_twice(d: Path) -> None:
    written(d / "dataset.json", listed(d, labels={"background": 0, "thing": 1, "other": 1}))


def too_many_channels(d: Path) -> None:
    written(d / "dataset.json", listed(d, modality={"0": "CT", "1": "PET"}))


def annotated_by_no_name(d: Path) -> None:
    content = listed(d)
    content["training"][0]["annotated"] = ["lung"]
    written(d / "dataset.json", content)


def no_list_of_cases(d: Path) -> None:
    content = listed(d)
    del content["training"]
    written(d / "dataset.json", content)


def values_that_are_not_named(d: Path) -> None:
    content = listed(d)
    for i in range(2):
        pair(d, f"c{i}", LABEL * 7)
    written(d / "dataset.json", content)


# ---- nnU-Net and BIDS


def a_channel_without_a_name(d: Path) -> None:
    written(d / "dataset.json", nnunet(d))
    nifti(d / "imagesTr/c0_0001.nii.gz")


def regions_without_an_order(d: Path) -> None:
    written(d / "dataset.json", nnunet(d, labels={"background": 0, "whole": [1, 2], "core": [2]}))


def regions_with_a_wrong_order(d: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    written(d / "dataset.json", nnunet(d, labels=labels, regions_class_order=[1, 3]))


def folds_of_unknown_cases(d: Path) -> None:
    written(d / "dataset.json", nnunet(d))
    written(d / "splits_final.json", [{"train": ["c0"], "val": ["c9"]}])


def another_ending(d: Path) -> None:
    written(d / "dataset.json", nnunet(d, file_ending=".png"))


def ignored_below_a_label(d: Path) -> None:
    written(d / "dataset.json", nnunet(d, labels={"background": 0, "thing": 2, "ignore": 1}))


def names_that_contradict(d: Path) -> None:
    bids(d)
    for s, name in (("01", "left"), ("02", "right")):
        written(d / f"derivatives/a/sub-{s}/anat/sub-{s}_dseg.tsv", f"index\tname\n1\t{name}\n")


def two_derivatives(d: Path) -> None:
    bids(d)
    for s in ("01", "02"):
        nifti(d / f"derivatives/b/sub-{s}/anat/sub-{s}_dseg.nii.gz", LABEL)


# ---- DICOM


def two_series_of_one_name(d: Path) -> None:
    slices = series(d / "p/1", description="T1")
    series(d / "p/2", description="T1 again")
    write_segmentation(d / "p/seg.dcm", slices, RNG.integers(0, 2, (8, 7, 6)).astype(np.uint8), {1: "A"})


def two_segmentations(d: Path) -> None:
    slices = series(d / "p/1")
    for name in "ab":
        write_segmentation(d / f"p/{name}.dcm", slices, RNG.integers(0, 2, (8, 7, 6)).astype(np.uint8), {1: "A"})


def a_segmentation_of_another_series(d: Path) -> None:
    slices = series(d / "away", "of nobody here")
    write_segmentation(d / "p/seg.dcm", slices, RNG.integers(0, 2, (8, 7, 6)).astype(np.uint8), {1: "A"})
    shutil.rmtree(d / "away")
    series(d / "p/1", description="FLAIR")


def a_series_in_two_folders(d: Path) -> None:
    slices = series(d / "p/1")
    write_segmentation(d / "p/seg.dcm", slices, RNG.integers(0, 2, (8, 7, 6)).astype(np.uint8), {1: "A"})
    (d / "p/2").mkdir()
    for k in range(3):
        (d / f"p/1/IM000{k}.dcm").rename(d / f"p/2/IM000{k}.dcm")


def a_slice_that_is_missing(d: Path) -> None:
    slices = series(d / "p/1")
    write_segmentation(d / "p/seg.dcm", slices, RNG.integers(0, 2, (8, 7, 6)).astype(np.uint8), {1: "A"})
    (d / "p/1/IM0003.dcm").unlink()


SETS: list[tuple[Callable[[Path], None], str, str]] = [
    (images_of_one_name_twice, "E_CHANNEL", "two files are channel"),
    (label_map_twice, "E_LABEL", "two files are the label map"),
    (one_or_255, "E_LABEL", "foreground is 1 in 2 cases and 255 in 2"),
    (half_without_a_channel, "E_CHANNEL", "--missing zeros"),
    (patients_across_folders, "E_MANIFEST", "two cases have the same name"),
    (names_that_differ_in_capitals, "E_MANIFEST", "two cases have the same name"),
    (ct_and_mr_half_and_half, "E_CHANNEL", "different channels: 1 ct, 1 mri"),
    (whose_labels, "E_CONVENTION", "--convention"),
    (empty_label_maps, "E_LABEL", "all label maps are empty"),
    (label_maps_that_are_images, "E_LABEL", "label values"),
    (labels_with_fractions, "E_LABEL", "whole"),
    (other_grids, "E_GRID", "another grid"),
    (labels_alone, "E_CHANNEL", "has no image"),
    (images_alone, "E_LABEL", "no case has a label map"),
    (nothing, "E_IO", "there are no cases"),
    (broken_images, "E_NONFINITE", "p1"),
    (structures_that_overlap, "E_LABEL", "'liver' and 'spleen' overlap"),
    (two_descriptions, "E_MANIFEST", "two descriptions"),
    (shades_between_labels, "E_LABEL", "shades of grey"),
    (colours_that_are_not_listed, "E_LABEL", "#0000ff"),
    (masks_of_other_sizes, "E_GRID", "another grid"),
    (classes_almost_alike, "E_LABEL", "almost the same name"),
    (one_class, "E_LABEL", "no image has a label map or a class"),
    (label_maps_and_classes, "E_TASK", "--task segmentation or --task classification"),
    (two_columns_of_one_meaning, "E_MANIFEST", "two columns mean label"),
    (words_for_label_maps, "E_MANIFEST", "call a column of classes class"),
    (files_that_are_not_there, "E_IO", "images/x.nii.gz"),
    (ids_twice, "E_MANIFEST", "stands twice"),
    (files_twice, "E_MANIFEST", "are the same files"),
    (values_named_twice, "E_MANIFEST", "repeats a name or a value"),
    (too_many_channels, "E_NDIM", "3D"),
    (annotated_by_no_name, "E_MANIFEST", "lung"),
    (no_list_of_cases, "E_MANIFEST", "'training' is missing"),
    (values_that_are_not_named, "E_LABEL", "7"),
    (a_channel_without_a_name, "E_MANIFEST", "channel 0001"),
    (regions_without_an_order, "E_MANIFEST", "regions_class_order"),
    (regions_with_a_wrong_order, "E_MANIFEST", "regions_class_order"),
    (folds_of_unknown_cases, "E_MANIFEST", "'c9'"),
    (another_ending, "E_MANIFEST", "imagesTr/CASE_0000.png"),
    (ignored_below_a_label, "E_MANIFEST", "ignore"),
    (names_that_contradict, "E_MANIFEST", "'left'"),
    (two_derivatives, "E_LABEL", "two files are the label map"),
    (two_series_of_one_name, "E_CHANNEL", "2 series could be channel t1"),
    (two_segmentations, "E_LABEL", "2 segmentations of one study"),
    (a_segmentation_of_another_series, "E_DICOM", "belongs to"),
    (a_series_in_two_folders, "E_DICOM", "several folders"),
    (a_slice_that_is_missing, "E_DICOM", "missing"),
]


@pytest.mark.parametrize(("make", "code", "says"), SETS, ids=lambda item: getattr(item, "__name__", ""))
def test_init_asks_or_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[Path], None], code: str, says: str
) -> None:
    make(tmp_path / "set")
    path = tmp_path / "set/t.csv" if (tmp_path / "set/t.csv").exists() else tmp_path / "set"
    (tmp_path / "out").mkdir()
    status = run_command(init, [str(path), "--output", str(tmp_path / "out/my.yaml")])
    said = capfd.readouterr()
    assert code in said.err, said.out + said.err
    assert says in said.err
    assert status == 65
    assert not list((tmp_path / "out").iterdir())


def test_the_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a question offers works."""
    half_without_a_channel(tmp_path / "set")
    for answer, cases, code in (("drop", 2, 2), ("zeros", 4, 0)):
        output = tmp_path / f"{answer}.yaml"
        assert run_command(init, [str(tmp_path / "set"), "--output", str(output), "--missing", answer]) == code
        assert len(json.loads(output.with_suffix(".json").read_text())["training"]) == cases
        assert ("missing: zeros  " in output.read_text()) == (answer == "zeros")
    capfd.readouterr()
