"""The gate, on files made here and on real ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cmt_med.data.gate import load_case, load_labels
from cmt_med.data.manifest import Case, load_manifest
from cmt_med.errors import DataError
from tests.helpers import save

SHAPE = (5, 6, 7)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
LABEL = (IMAGE > 0).astype(np.uint8)


def code_of(case: Case, channels: tuple[str, ...] = ("a",), labels: tuple[int, ...] = (0, 1)) -> str:
    with pytest.raises(DataError) as raised:
        load_case(case, channels, labels)
    assert case.name in str(raised.value)
    assert raised.value.exit_code == 65
    return raised.value.code


def make(tmp_path: Path, image: np.ndarray = IMAGE, label: np.ndarray = LABEL, name: str = "i.nii.gz") -> Case:
    return Case("the-case", {"a": (save(tmp_path / name, image), None)}, label=save(tmp_path / "l.nii.gz", label))


def test_good_case(tmp_path: Path) -> None:
    loaded = load_case(make(tmp_path), ("a",), (0, 1))
    assert np.array_equal(loaded.image[0], IMAGE)
    assert loaded.label is not None
    assert np.array_equal(loaded.label, LABEL)
    assert loaded.grid.spacing == (1, 1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    image = IMAGE.copy()
    image[1, 2, 3] = bad
    assert code_of(make(tmp_path, image)) == "E_NONFINITE"


def test_other_shape_and_other_place(tmp_path: Path) -> None:
    assert code_of(make(tmp_path, label=LABEL[:-1])) == "E_GRID"
    case = make(tmp_path)
    moved = np.eye(4)
    moved[0, 3] = 10
    save(tmp_path / "l.nii.gz", LABEL, moved)
    assert code_of(case) == "E_GRID"
    moved[0, 3] = 1e-8
    save(tmp_path / "l.nii.gz", LABEL, moved)
    load_case(case, ("a",), (0, 1))


def test_dimensions(tmp_path: Path) -> None:
    assert code_of(make(tmp_path, np.stack([IMAGE, IMAGE], -1))) == "E_NDIM"
    assert code_of(make(tmp_path, IMAGE[0])) == "E_NDIM"
    assert load_case(make(tmp_path, IMAGE[..., None]), ("a",)).image.shape == (1, *SHAPE)
    four = save(tmp_path / "4.nii.gz", np.stack([IMAGE, 2 * IMAGE], -1))
    swapped = load_case(Case("the-case", {"a": (four, 0), "b": (four, 1)}), ("b", "a"))
    assert np.array_equal(swapped.image[0], 2 * IMAGE)
    assert code_of(Case("the-case", {"a": (four, 0), "b": (four, 1), "c": (four, 2)}), ("a",)) == "E_NDIM"


def test_labels(tmp_path: Path) -> None:
    assert code_of(make(tmp_path, label=LABEL * 3)) == "E_LABEL"
    assert code_of(make(tmp_path, label=(LABEL * 0.5).astype(np.float32))) == "E_LABEL"
    nearly = load_case(make(tmp_path, label=(LABEL * 0.9999).astype(np.float32)), ("a",), (0, 1)).label
    assert nearly is not None
    assert np.array_equal(nearly, LABEL)


@pytest.mark.parametrize("name", ["i.nii", "i.nii.gz"])
def test_truncated(tmp_path: Path, name: str) -> None:
    case = make(tmp_path, name=name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-60])
    assert code_of(case) == "E_TRUNCATED"


def test_bit_flip_is_found_by_the_checksum(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    case = make(tmp_path)
    path = tmp_path / "i.nii.gz"
    content = path.read_bytes()
    for _ in range(40):
        flipped = bytearray(content)
        flipped[rng.integers(20, len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        assert code_of(case) in ("E_GZIP", "E_TRUNCATED")


def test_what_is_not_nifti(tmp_path: Path) -> None:
    case = make(tmp_path)
    (tmp_path / "i.nii.gz").write_bytes(gzip.compress(b"<html>not found</html>"))
    assert code_of(case) == "E_FORMAT"
    (tmp_path / "i.nii.gz").unlink()
    assert code_of(case) == "E_IO"
    assert code_of(make(tmp_path), ("a", "b")) == "E_CHANNEL"


def test_real_cases(real_data: Path) -> None:
    manifest = load_manifest(real_data / "hippocampus" / "dataset.json")
    for case in manifest.cases[::10]:
        loaded = load_case(case, ("mri",), (0, 1, 2), need_label=True)
        assert loaded.label is not None
        assert set(np.unique(loaded.label)) == {0, 1, 2}
    labels, _ = load_labels(real_data / "brats2013_two_channel/brats_2013_pat0001_1/OTMultiClass.nii.gz", "p")
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
