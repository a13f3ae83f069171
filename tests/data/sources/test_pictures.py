"""Folders of 2D images, and what is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.case import COLOURS
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.data.sources.classes import class_folders
from cmt_med.data.sources.pictures import labelled_pictures, recognises
from cmt_med.data.sources.predicted import label_maps_in
from cmt_med.data.volumes.formats import is_series

RNG = np.random.default_rng(0)


def picture(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (9, 12), np.uint8) if array is None else array).save(path)
    return path


def mask(path: Path, *values: int) -> Path:
    array = np.zeros((9, 12), np.uint8)
    for i, value in enumerate(values):
        array[2 * i : 2 * i + 2] = value
    return picture(path, array)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}.png", "masks/{}.png"), ("images/{}.jpg", "labels/{}.png"), ("{}.png", "{}_mask.png"),
        ("img/{}_training.tif", "1st_manual/{}_manual1.gif"), ("x/{}.bmp", "groundTruth/{}.bmp"),
        ("train/images/im{}.png", "train/SegmentationClass/gt{}.png"),
        ("images/{} a.png", "labels/{} a.png"),
    ],
)  # fmt: skip
def test_masks_are_found(tmp_path: Path, image: str, label: str) -> None:
    for i in (21, 22, 30):
        picture(tmp_path / image.format(i))
        mask(tmp_path / label.format(i), 0, 255)
    found = labelled_pictures(tmp_path)
    assert not found.problems
    assert len(found.cases) == 3
    assert found.labels == {"background": 0, "foreground": 255}
    for case in found.cases:
        number = next(n for n in ("21", "22", "30") if n in case.name)
        assert case.label == tmp_path / label.format(number)
        assert case.images == {"image": (tmp_path / image.format(number), None)}
        assert case.mask is None


def test_the_field_of_view_beside_label_maps(tmp_path: Path) -> None:
    """As DRIVE has them; of the label maps of two people those of the first are taken."""
    for i in ("21", "22"):
        picture(tmp_path / f"images/{i}_test.tif", RNG.integers(0, 255, (9, 12, 3), np.uint8))
        mask(tmp_path / f"1st_manual/{i}_manual1.gif", 0, 255)
        mask(tmp_path / f"2nd_manual/{i}_manual2.gif", 0, 255)
        mask(tmp_path / f"mask/{i}_test_mask.gif", 0, 255)
    mask(tmp_path / "mask/21_test_mask .gif", 255, 0)  # a copy that went wrong, as DRIVE has nine
    found = labelled_pictures(tmp_path)
    assert not found.problems
    assert found.channels == list(COLOURS)
    assert [(c.name, c.label.name, c.mask.name) for c in found.cases if c.label and c.mask] == [
        ("21_test", "21_manual1.gif", "21_test_mask.gif"), ("22_test", "22_manual1.gif", "22_test_mask.gif"),
    ]  # fmt: skip
    assert any("not read: 2nd_manual" in note for note in found.notes)
    assert any("21_test_mask .gif" in note for note in found.notes)
    assert cases_for_network(tmp_path, COLOURS).cases[0].mask == tmp_path / "mask/21_test_mask.gif"
    assert [c.mask for c in cases_for_network(tmp_path / "images", COLOURS).cases] == [None, None]
    assert find_dataset(tmp_path).labels == {"background": 0, "foreground": 255}


def test_masks_alone_are_label_maps_and_never_an_input(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", 0, 1, 2)
    assert labelled_pictures(tmp_path).labels == {"background": 0, "label_1": 1, "label_2": 2}
    assert cases_for_network(tmp_path, ["image"]).cases[0].mask is None


def test_two_label_maps_of_one_picture(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "labels/a.png", 0, 1)
    mask(tmp_path / "labels/a.bmp", 1, 0)
    found = labelled_pictures(tmp_path)
    assert [problem.code for problem in found.problems] == ["E_MANIFEST"]
    assert [case.label for case in found.cases] == [None], "none of the two is chosen"
    picture(tmp_path / "images/a.bmp")
    assert labelled_pictures(tmp_path).cases == []


def test_pictures_beside_volumes_are_previews(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert recognises(tmp_path)
    (tmp_path / "a_t1.nii.gz").write_bytes(b"")
    assert not recognises(tmp_path)
    assert cases_for_network(tmp_path, ["t1"]).cases[0].images["t1"][0].name == "a_t1.nii.gz"


def test_pictures_beside_label_volumes_are_previews(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    assert list(label_maps_in(tmp_path)) == ["a", "b"]
    (tmp_path / "a.nii.gz").write_bytes(b"")
    assert {name: path.name for name, path in label_maps_in(tmp_path).items()} == {"a": "a.nii.gz"}


@pytest.mark.data
def test_a_series_with_a_preview_is_a_series(tmp_path: Path, real_data: Path) -> None:
    source = next(path for path in (real_data / "dicom_glioma").rglob("*") if path.is_dir() and is_series(path))
    for patient in ("p1", "p2"):
        shutil.copytree(source, tmp_path / patient / "s")
        picture(tmp_path / patient / "s/preview.png")
        shutil.copytree(source, tmp_path / "flat" / patient)
        picture(tmp_path / "flat" / patient / "preview.png")
    assert not recognises(tmp_path / "p1/s")
    assert not recognises(tmp_path)
    assert not class_folders(tmp_path / "flat")


def test_colours_are_numbered_and_kept(tmp_path: Path) -> None:
    colours = np.zeros((9, 12, 3), np.uint8)
    colours[:3], colours[3:5] = (255, 0, 0), (0, 0, 255)
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "labels/a.png", colours)
    found = find_dataset(tmp_path)
    assert found.labels == {"background": 0, "colour_0000ff": 1, "colour_ff0000": 2}
    assert found.colours == {0: 0, 0x0000FF: 1, 0xFF0000: 2}
    listed = tmp_path / "list.json"
    content = {
        "modality": {"0": "image"}, "labels": {"0": "background", "1": "blue", "2": "red"},
        "colours": {"#0000ff": 1, "#ff0000": 2}, "training": [{"image": "images/a.png", "label": "labels/a.png"}],
    }  # fmt: skip
    listed.write_text(json.dumps(content))
    manifest = load_manifest(listed)
    assert manifest.colours == manifest.cases[0].colours == found.colours
    assert manifest_content(manifest, manifest.cases, tmp_path)["colours"] == {"#000000": 0} | content["colours"]
    for wrong in ({"red": 1}, {"#ff0000": 7}, {"#ff0000": "1"}, [1]):
        listed.write_text(json.dumps(content | {"colours": wrong}))
        with pytest.raises(DataError, match="colour") as caught:
            load_manifest(listed)
        assert caught.value.code == "E_MANIFEST"


def test_many_colours_are_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "labels/a.png", RNG.integers(0, 255, (9, 12, 3), np.uint8))
    with pytest.raises(DataError, match="colours") as caught:
        labelled_pictures(tmp_path)
    assert caught.value.code == "E_LABEL"


def test_numbered_instances_are_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "instances/labels/a.png", RNG.integers(0, 900, (9, 12)).astype(np.uint16))
    with pytest.raises(DataError, match="up to") as caught:
        labelled_pictures(tmp_path)
    assert caught.value.code == "E_LABEL"
    seen = find_dataset(tmp_path)
    assert [case.name for case in seen.cases] == ["a"]
    assert [problem.code for problem in seen.problems] == ["E_LABEL"]


def test_channels_by_name(tmp_path: Path) -> None:
    """Grey pictures of one case, for a network with several channels that are no colours."""
    for channel in ("t1", "t2"):
        picture(tmp_path / f"p1_{channel}.png")
    case = cases_for_network(tmp_path, ["t1", "t2"]).cases[0]
    assert case.name == "p1"
    assert {name: file.name for name, (file, _) in case.images.items()} == {"t1": "p1_t1.png", "t2": "p1_t2.png"}
