"""The cache of preprocessed cases: made once, checked before it is used, and held against the sums of a case list."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.preprocessing.cache import CachedCase, prepare
from cmt_med.data.preprocessing.fingerprint import fingerprint_of
from cmt_med.data.volumes.sums import volume_sum
from tests.data.made import IMAGE, LABEL, case_of, nifti

SETTINGS = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}


def entry_of(case: Case, folder: Path) -> CachedCase:
    return prepare(case, channels=["a"], labels={"background": 0, "x": 1}, settings=SETTINGS, folder=folder)


def made_case(folder: Path) -> Case:
    return case_of(nifti(folder / "i.nii.gz"), nifti(folder / "l.nii.gz", LABEL))


def test_sums_hold_also_where_the_content_is_known(tmp_path: Path) -> None:
    """A file that was exchanged is refused even if what stands there now was cached by another list."""
    case = made_case(tmp_path)
    listed = replace(case, sha256={path: volume_sum(path) for path in (case.images["a"][0], case.label) if path})
    entry_of(listed, tmp_path / "cache")
    for file, array in ((case.images["a"][0], IMAGE * 2), (case.label, LABEL * 0)):
        assert file is not None
        shutil.copy(file, tmp_path / "kept.nii.gz")
        nifti(file, array)
        entry_of(case, tmp_path / "cache")  # by a list without sums
        with pytest.raises(DataError) as raised:
            entry_of(listed, tmp_path / "cache")
        assert raised.value.code == "E_HASH"
        assert "case the-case" in raised.value.where
        shutil.copy(tmp_path / "kept.nii.gz", file)
        entry_of(listed, tmp_path / "cache")


def test_what_nobody_has_annotated_is_no_foreground(tmp_path: Path) -> None:
    """Its value stays in the label map, through another orientation and voxel size; no patch is centred on it."""
    label = np.zeros((8, 6, 6), np.uint8)
    label[:2], label[4:] = 1, 3
    turned = np.diag([-2.0, 2.0, 2.0, 1.0])
    rng = np.random.default_rng(0)
    case = case_of(
        nifti(tmp_path / "i.nii.gz", rng.normal(size=label.shape).astype(np.float32), turned),
        nifti(tmp_path / "l.nii.gz", label, turned),
    )
    with pytest.raises(DataError, match="label values 3"):
        entry_of(case, tmp_path / "cache")
    finer = SETTINGS | {"spacing": [1.0, 1.0, 1.0]}
    entry = prepare(
        replace(case, ignore=3),
        channels=["a"],
        labels={"background": 0, "x": 1},
        settings=finer,
        folder=tmp_path / "cache",
    )
    assert entry.values() == {1}
    assert set(np.unique(entry.label())) == {0, 1, 3}
    for other in (case, replace(case, ignore=4)):  # the entry is of that ignored value alone
        with pytest.raises(DataError, match="label values 3"):
            prepare(other, channels=["a"], labels={"background": 0, "x": 1}, settings=finer, folder=tmp_path / "cache")
    assert len(entry.points()) == 1
    assert all(entry.label()[0][tuple(point)] == 1 for point in entry.points()[0])
    shares = [(entry.label() == value).mean() for value in (0, 1, 3)]
    assert np.allclose(shares, [0.25, 0.25, 0.5], atol=0.08)


def test_labels_that_a_case_does_not_annotate_are_not_kept(tmp_path: Path) -> None:
    """They may be drawn in part: what is drawn of them changes nothing but the entry's key. Ignored voxels stay."""
    label = np.zeros((8, 6, 6), np.uint8)
    label[:2], label[2:4], label[4:6] = 1, 2, 3
    image = nifti(
        tmp_path / "i.nii.gz", np.random.default_rng(0).normal(size=label.shape).astype(np.float32), np.eye(4)
    )
    case = case_of(image, nifti(tmp_path / "l.nii.gz", label, np.eye(4)))

    def entry(annotated: tuple[int, ...] | None) -> CachedCase:
        known = replace(case, annotated=annotated, ignore=3)
        return prepare(
            known, channels=["a"], labels={"background": 0, "x": 1, "y": 2}, settings=SETTINGS, folder=tmp_path / "c"
        )

    whole, first = entry(None), entry((1,))
    assert (whole.values(), first.values()) == ({1, 2}, {1})
    assert set(np.unique(first.label())) == {0, 1, 3}
    assert first.annotated == (1,)
    assert len({whole.identity, first.identity, entry((2,)).identity}) == 3
    fingerprint = fingerprint_of([first.statistics(), entry((2,)).statistics()], {"x": [1], "y": [2], "both": [1, 2]})
    assert fingerprint.volumes_ml == {"x": pytest.approx((0.072, 0.072)), "y": pytest.approx((0.072, 0.072))}
    assert entry((1,)) == first


def _files(entry: CachedCase) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in entry.folder.iterdir()}


@given(
    name=st.sampled_from(["image.npy", "label.npy", "points.npy"]),
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
@settings(max_examples=40, deadline=None)
def test_one_bit_that_flips_is_noticed(name: str, at: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        case = made_case(Path(top))
        entry = entry_of(case, Path(top) / "cache")
        before = _files(entry)
        content = bytearray(before[name])
        content[int(at * len(content))] ^= 1 << bit
        (entry.folder / name).write_bytes(content)
        assert entry_of(case, Path(top) / "cache") == entry
        assert _files(entry) == before


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "points.npy", "meta.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff"])
def test_what_is_lost_or_damaged_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
) -> None:
    case = made_case(tmp_path)
    entry = entry_of(case, tmp_path / "cache")
    before = _files(entry)
    assert not caplog.records
    (entry.folder / name).unlink()
    if content is not None:
        (entry.folder / name).write_bytes(content)
    entry_of(case, tmp_path / "cache")
    assert _files(entry) == before
    if name != "meta.json" or content is not None:  # without it, the entry was only never finished
        assert "the-case" in caplog.text
        assert "made again" in caplog.text


def test_a_sound_entry_is_not_made_again(tmp_path: Path) -> None:
    case = made_case(tmp_path)
    entry = entry_of(case, tmp_path / "cache")
    before = {path.name: path.stat().st_ino for path in entry.folder.iterdir()}
    entry_of(case, tmp_path / "cache")
    assert {path.name: path.stat().st_ino for path in entry.folder.iterdir()} == before


@pytest.mark.fault(21)
def test_points_on_a_long_axis(tmp_path: Path) -> None:
    """Beyond voxel 32767, 16 bits would wrap to the other side of zero."""
    label = np.zeros((2, 33_000, 2), np.uint8)
    label[1, 32_990:] = 1
    for name, array in (("a", label.astype(np.float32)), ("l", label)):
        image = nib.Nifti2Image(array, np.eye(4))
        image.header.set_xyzt_units("mm")
        image.set_sform(np.eye(4), 1)
        nib.save(image, tmp_path / f"{name}.nii")
    (points,) = entry_of(case_of(tmp_path / "a.nii", tmp_path / "l.nii"), tmp_path / "cache").points()
    assert sorted({int(point[1]) for point in points}) == list(range(32_990, 33_000))
