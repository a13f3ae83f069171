"""One mask for each structure, and splits by folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.sources import cases_for_network, find_dataset
from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.gate import load_case
from cmt_med.runs.recognition import data_set
from tests.data.made import IMAGE, LABEL, nifti

RNG = np.random.default_rng(0)


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def grey(path: Path) -> Path:
    return png(path, RNG.integers(0, 255, (12, 10)).astype(np.uint8))


def mask(path: Path, at: int, value: int = 255) -> Path:
    pixels = np.zeros((12, 10), np.uint8)
    pixels[at : at + 3, 2:6] = value
    return png(path, pixels)


def test_total_segmentator(tmp_path: Path) -> None:
    for i in range(3):
        nifti(tmp_path / f"set/s{i:04d}/ct.nii.gz")
        for k, name in enumerate(("liver", "spleen", "kidney_left")):
            nifti(
                tmp_path / f"set/s{i:04d}/segmentations/{name}.nii.gz", LABEL * (np.arange(5) % 3 == k)[:, None, None]
            )
    manifest = data_set(tmp_path / "set")
    assert manifest.labels == {"background": 0, "kidney_left": 1, "liver": 2, "spleen": 3}
    assert manifest.channels == ("ct",)
    loaded = load_case(manifest.cases[0], ["ct"], [0, 1, 2, 3])
    np.testing.assert_array_equal(loaded.image[0], IMAGE)
    np.testing.assert_array_equal(loaded.label, LABEL * np.array([2, 3, 1, 2, 3], np.uint8)[:, None, None])
    (case, *_) = cases_for_network(tmp_path / "set", ("ct",)).cases
    assert case.label is None


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        ("images/{stem}.png", "masks/{name}/{stem}.png"), ("images/{stem}.png", "masks/{stem}_{name}.png"),
        ("{stem}/{stem}.png", "{stem}/masks/{name}.png"), ("{stem}/images/{stem}.png", "{stem}/masks/{name}.png"),
    ],
)  # fmt: skip
def test_pictures(tmp_path: Path, image: str, layout: str) -> None:
    for stem in ("a1", "b2"):
        grey(tmp_path / "set" / image.format(stem=stem))
        for k, name in enumerate(("cup", "disc")):
            mask(tmp_path / "set" / layout.format(name=name, stem=stem), 4 * k)
    manifest = data_set(tmp_path / "set")
    assert manifest.labels == {"background": 0, "cup": 1, "disc": 2}
    assert [case.name for case in manifest.cases] == ["a1", "b2"]
    label = load_case(manifest.cases[0], manifest.channels, [0, 1, 2]).label
    assert label is not None
    expected = np.zeros((12, 10), np.uint8)
    expected[0:3, 2:6], expected[4:7, 2:6] = 1, 2
    np.testing.assert_array_equal(label[..., 0].T, expected)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    mask(tmp_path / "x_a.png", 0)
    mask(tmp_path / "x_b.png", 1)
    with pytest.raises(DataError, match="'a' and 'b' overlap") as raised:
        decode(tmp_path / "x_*.png", labels=True)
    assert raised.value.code == "E_LABEL"
    assert decode(tmp_path / "x_*.png", labels=True, segments={"a": 7, "b": 0}).array.max() == 7
    with pytest.raises(DataError, match="segment 'b' is not in the case list"):
        decode(tmp_path / "x_*.png", labels=True, segments={"a": 1})
    png(tmp_path / "x_b.png", np.full((4, 4), 255, np.uint8))
    with pytest.raises(DataError, match="different grids") as raised:
        decode(tmp_path / "x_*.png", labels=True)
    assert raised.value.code == "E_GRID"
    grey(tmp_path / "x_b.png")
    with pytest.raises(DataError, match="the mask has the values"):
        decode(tmp_path / "x_*.png", labels=True)
    with pytest.raises(DataError, match="no masks"):
        decode(tmp_path / "y_*.png", labels=True)


@pytest.mark.parametrize("layout", ["{split}/{kind}/{stem}.png", "{kind}/{split}/{stem}.png"])
@pytest.mark.parametrize("same", [False, True])
def test_splits_by_folder(tmp_path: Path, layout: str, same: bool) -> None:
    """What is held out stays held out; images of one name in two splits are two cases."""
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for i in range(count):
            stem = f"{i}" if same else f"{split[0]}{i}"
            grey(tmp_path / "set" / layout.format(split=split, kind="images", stem=stem))
            mask(tmp_path / "set" / layout.format(split=split, kind="labels", stem=stem), i)
    manifest = data_set(tmp_path / "set")
    assert len(manifest.cases) == 6
    assert [len([c for c in manifest.cases if c.fold == fold]) for fold in (0, 1)] == [2, 4]
    assert len(manifest.test) == 1
    assert manifest.test[0].label is not None
    assert all("val" in str(case.label) for case in manifest.cases if case.fold == 0)
    assert len({case.name for case in (*manifest.cases, *manifest.test)}) == 7


def test_classes_within_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("good", "bad"):
            for i in range(2):
                grey(tmp_path / f"set/{split}/{name}/{i}.png")
    found = find_dataset(tmp_path / "set")
    assert {case.class_name for case in found.cases} == {"good", "bad"}
    assert (len(found.cases), len(found.test)) == (4, 4)


def test_splits_that_have_different_structures(tmp_path: Path) -> None:
    """One numbering for all: what is 1 in a split of its own is not 1 in the whole."""
    for split, names in (("train", ("cup", "disc")), ("val", ("disc", "vein"))):
        for i in range(2):
            grey(tmp_path / f"set/{split}/images/{split}{i}.png")
            for k, name in enumerate(names):
                mask(tmp_path / f"set/{split}/masks/{name}/{split}{i}.png", 4 * k)
    manifest = data_set(tmp_path / "set")
    assert manifest.labels == {"background": 0, "cup": 1, "disc": 2, "vein": 3}
    seen = {case.name: set(np.unique(load_case(case, manifest.channels, range(4)).label)) for case in manifest.cases}
    assert seen == {"train0": {0, 1, 2}, "train1": {0, 1, 2}, "val0": {0, 2, 3}, "val1": {0, 2, 3}}


def test_splits_that_have_different_colours(tmp_path: Path) -> None:
    for split, colours in (("train", ("ff0000", "00ff00")), ("val", ("ff0000", "0000ff"))):
        for i in range(2):
            grey(tmp_path / f"set/{split}/images/{split}{i}.png")
            pixels = np.zeros((12, 10, 3), np.uint8)
            for k, colour in enumerate(colours):
                pixels[4 * k : 4 * k + 3, 2:5] = list(bytes.fromhex(colour))
            png(tmp_path / f"set/{split}/labels/{split}{i}.png", pixels)
    manifest = data_set(tmp_path / "set")
    names = {value: name for name, value in manifest.labels.items()}
    for case in manifest.cases:
        values = np.unique(load_case(case, manifest.channels, range(4)).label)
        other = "colour_00ff00" if case.name.startswith("train") else "colour_0000ff"
        assert {names[int(v)] for v in values} == {"background", "colour_ff0000", other}
