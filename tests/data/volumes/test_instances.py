"""Label images with a number for each object, through the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.instances import load_instances
from tests.helpers import save


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pictures_of_8_and_16_bits(tmp_path: Path, kind: type) -> None:
    pixels = np.array([[0, 3, 3], [9, 9, np.iinfo(kind).max]], kind)
    numbers, grid = load_instances(Case("a", {}, instances=picture(tmp_path / "a.png", pixels)))
    assert numbers[..., 0].T.tolist() == pixels.tolist()
    assert grid.shape == (3, 2, 1)


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.float32])
def test_volumes_of_32_bits(tmp_path: Path, kind: type) -> None:
    stored = (np.arange(24).reshape(2, 3, 4) * 1000).astype(kind)
    numbers, _ = load_instances(Case("a", {}, instances=save(tmp_path / "a.nii.gz", stored)))
    assert (numbers == stored).all()


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [
        (70_000, "E_LABEL", "65535"),
        (-1, "E_LABEL", "from -1"),
        (1.5, "E_LABEL", "whole"),
        (np.nan, "E_NONFINITE", "NaN"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path: Path, value: float, code: str, said: str) -> None:
    stored = np.array([[[0, 1, value]]], np.float32 if value != int(value or 0) or value != value else np.int32) \
        if value == value else np.array([[[0, 1, value]]], np.float32)  # fmt: skip
    with pytest.raises(DataError, match=said) as caught:
        load_instances(Case("a", {}, instances=save(tmp_path / "a.nii.gz", stored)))
    assert caught.value.code == code


def test_colours_number_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    with pytest.raises(DataError, match="numbered from 0") as caught:
        load_instances(Case("a", {}, instances=picture(tmp_path / "a.png", pixels)))
    assert caught.value.code == "E_LABEL"


def test_another_grid_is_refused(tmp_path: Path) -> None:
    case = Case("a", {}, instances=save(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.uint8)))
    _, grid = load_instances(case)
    other = Case("b", {}, instances=save(tmp_path / "b.nii.gz", np.ones((2, 3, 5), np.uint8)))
    with pytest.raises(DataError) as caught:
        load_instances(other, grid)
    assert caught.value.code == "E_GRID"
    with pytest.raises(DataError, match="no numbered objects"):
        load_instances(Case("c", {}))


def test_a_mask_for_each_object(tmp_path: Path) -> None:
    """In the order of their names; of two that overlap the smaller lies on top."""
    large, small = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    large[:, :3], small[1, 1:] = 255, 255
    picture(tmp_path / "masks/b.png", large)
    picture(tmp_path / "masks/a.png", small)
    numbers, _ = load_instances(Case("a", {}, instances=tmp_path / "masks/*.png"))
    assert numbers[..., 0].T.tolist() == [[2, 2, 2, 0, 0], [2, 1, 1, 1, 1], [2, 2, 2, 0, 0], [2, 2, 2, 0, 0]]
