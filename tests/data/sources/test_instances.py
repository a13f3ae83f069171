"""Folders of images with numbered objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.data.sources import find_dataset
from tests.helpers import save


def picture(path: Path, value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((6, 8), np.uint8)
    pixels[1:3, 1:4] = value
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("folder", ["instances", "instance_masks", "InstanceMaps"])
def test_two_folders(tmp_path: Path, folder: str) -> None:
    for name in ("b", "a"):
        picture(tmp_path / f"images/{name}.png")
        picture(tmp_path / f"{folder}/{name}.png")
    picture(tmp_path / f"{folder}/c.png")
    found = find_dataset(tmp_path)
    assert [(case.name, case.instances) for case in found.cases] == [(n, tmp_path / f"{folder}/{n}.png") for n in "ab"]
    assert found.channels == ["image"]
    assert any("not read (c)" in note for note in found.notes)


def test_volumes(tmp_path: Path) -> None:
    for part in ("images", "instances"):
        save(tmp_path / f"{part}/x.nii.gz", np.ones((3, 4, 5), np.uint16))
    (case,) = find_dataset(tmp_path).cases
    assert case.instances == tmp_path / "instances/x.nii.gz"


def test_splits_by_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / f"images/{split}1.png")
        picture(tmp_path / split / f"instances/{split}1.png")
    found = find_dataset(tmp_path)
    assert {case.name: case.fold for case in found.cases} == {"train1": 1, "val1": 0}
    assert all(case.instances for case in found.cases)


def test_the_data_science_bowl(tmp_path: Path) -> None:
    for name in ("0a", "1b", "2c"):
        picture(tmp_path / f"{name}/images/{name}.png")
        for mask in ("x", "y"):
            picture(tmp_path / f"{name}/masks/{name}{mask}.png", 255)  # every object has a name of its own
    found = find_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["0a", "1b", "2c"]
    assert found.cases[1].instances == tmp_path / "1b/masks/*.png"


def test_label_maps_are_no_instances(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/train.png")
    picture(tmp_path / "train/masks/train.png")
    picture(tmp_path / "val/images/val.png")
    picture(tmp_path / "val/masks/val.png")
    assert all(case.label and not case.instances for case in find_dataset(tmp_path).cases)
