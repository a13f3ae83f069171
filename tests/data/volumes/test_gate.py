"""The gate: every kind of input that other tools pass silently, a row each of the table below, and how files fit together.

The table has an example of every row with its code and its advice; the rows' many variants are in the tests that stand in it.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.examine import examine
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.data.volumes.sums import volume_sum
from tests.data.made import AFFINE, IMAGE, LABEL, SHAPE, case_of, nifti, refusal
from tests.data.volumes.test_dicom import FAULTS, series
from tests.data.volumes.test_nifti import SHEARED


def changed(path: Path, change: Callable[[bytearray], object]) -> Path:
    """The file after its bytes were changed in place."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def spoilt(value: float) -> NDArray[np.float32]:
    image = IMAGE.copy()
    image[1, 2, 3] = value
    return image


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_label(folder: Path, label: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Case:
    return case_of(nifti(folder / "i.nii"), nifti(folder / "l.nii.gz", label, affine))


def without_a_slice(folder: Path) -> Path:
    (series(folder / "s") / "s3.dcm").unlink()
    return folder / "s"


MOVED = AFFINE + np.array([[0, 0, 0, 10], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
ROWS: dict[str, tuple[Callable[[Path], Case | Path], str, str, str]] = {
    # 1: readers/test_streams.py, bits that flip anywhere
    "1 flip": (lambda f: changed(nifti(f / "i.nii.gz"), lambda c: c.__setitem__(-6, c[-6] ^ 1)), "E_GZIP", "damaged", "again"),
    # 2: readers/test_streams.py, cut anywhere
    "2 cut .nii": (lambda f: changed(nifti(f / "i.nii"), lambda c: c.__delitem__(slice(-9, None))),
                   "E_TRUNCATED", "too early", "again"),
    "2 cut .nii.gz": (lambda f: changed(nifti(f / "i.nii.gz"), lambda c: c.__delitem__(slice(-9, None))),
                      "E_TRUNCATED", "too early", "again"),
    # 3 to 7: below
    "3 NaN": (lambda f: nifti(f / "i.nii", spoilt(np.nan)), "E_NONFINITE", "1 voxels", "make the image again"),
    "3 infinity": (lambda f: nifti(f / "i.nii", spoilt(-np.inf)), "E_NONFINITE", "1 voxels", "make the image again"),
    "4 1e30": (lambda f: nifti(f / "i.nii", spoilt(1e30)), "E_RANGE", "1e+30", "voxels"),
    "5 moved by 10 mm": (lambda f: with_label(f, LABEL, MOVED), "E_GRID", "another grid", "resample"),
    "5 another shape": (lambda f: with_label(f, LABEL[:-1]), "E_GRID", "another grid", "resample"),
    "5 a channel elsewhere": (
        lambda f: Case("the-case", {"b": (nifti(f / "b.nii"), None), "a": (nifti(f / "a.nii", IMAGE * 2, MOVED), None)}),
        "E_GRID", "another grid", "resample",
    ),
    "6 half labels": (lambda f: with_label(f, (LABEL * 0.5).astype(np.float32)), "E_LABEL", "whole", "nearest neighbour"),
    "7 outside the map": (lambda f: with_label(f, LABEL * np.uint8(3)), "E_LABEL", "3", "3 -> 1"),
    "7 above 2^24": (lambda f: with_label(f, LABEL * np.int32(2**24 + 1)), "E_LABEL", "16777217", "16777217 -> 1"),
    # 8 to 11: readers/test_nifti.py
    "8 qform apart": (lambda f: nifti(f / "i.nii", at_268=("f", 50.0)), "E_GEOMETRY", "qform and sform", "inspect --fix"),
    "8 no codes": (lambda f: nifti(f / "i.nii", codes=(0, 0)), "E_GEOMETRY", "both 0", "orientation"),
    "8 pixdim apart": (lambda f: nifti(f / "i.nii", codes=(0, 1), at_80=("f", 9.0)), "E_GEOMETRY", "pixdim", "inspect --fix"),
    "8 sheared": (lambda f: nifti(f / "i.nii", affine=SHEARED, codes=(0, 1)), "E_GEOMETRY", "sheared", "resample"),
    "8 singular": (lambda f: nifti(f / "i.nii", at_280=("4f", 0, 0, 0, 0)), "E_GEOMETRY", "singular", "convert"),
    "8 NaN": (lambda f: nifti(f / "i.nii", at_280=("f", np.nan)), "E_GEOMETRY", "NaN", "convert"),
    "9 slope 0": (lambda f: nifti(f / "i.nii", at_112=("ff", 0.0, 5.0)), "E_HEADER", "scl_slope", "convert"),
    "9 slope NaN": (lambda f: nifti(f / "i.nii", at_112=("ff", np.nan, 5.0)), "E_HEADER", "scl_slope", "convert"),
    "9 vox_offset 0": (lambda f: nifti(f / "i.nii", at_108=("f", 0.0)), "E_HEADER", "vox_offset", "convert"),
    "9 small dims": (lambda f: nifti(f / "i.nii", at_42=("h", 4)), "E_HEADER", "more voxels", "convert"),
    "10 complex": (lambda f: nifti(f / "i.nii", IMAGE.astype(np.complex64)), "E_DTYPE", "complex", "magnitude"),
    "10 RGB": (lambda f: nifti(f / "i.nii", at_70=("hh", 128, 24)), "E_DTYPE", "RGB", "grey values"),
    "10 4D": (lambda f: nifti(f / "i.nii", np.stack([IMAGE] * 2, -1)), "E_NDIM", "4D", "modality"),
    "10 4D label": (lambda f: with_label(f, np.stack([LABEL] * 2, -1)), "E_NDIM", "4D", "one volume alone"),
    "10 5D": (lambda f: nifti(f / "i.nii", np.stack([IMAGE] * 2, -1)[:, :, :, None]), "E_NDIM", "5D", "modality"),
    "10 empty": (lambda f: nifti(f / "i.nii", at_42=("h", 0)), "E_NDIM", "empty", "export"),
    "11 micrometres": (
        lambda f: nifti(f / "i.nii", affine=AFFINE * [[1000], [1000], [1000], [1]], at_123=("B", 3)), "E_UNITS",
        "micrometres", "inspect --fix",
    ),
    "11 metres": (
        lambda f: nifti(f / "i.nii", affine=AFFINE * [[1e-3], [1e-3], [1e-3], [1]], at_123=("B", 1)), "E_UNITS",
        "metres", "inspect --fix",
    ),
    "11 implausible": (lambda f: nifti(f / "i.nii", at_123=("B", 3)), "E_UNITS", "micrometres", "unit or numbers"),
    # 12, a flag: test_suspicious_images_are_flagged
    # 13: readers/test_streams.py, whatever else a file may be
    "13 git-LFS": (
        lambda f: written(f / "i.nii", b"version https://git-lfs.github.com/spec/v1\n"), "E_FORMAT", "git-LFS", "git lfs pull",
    ),
    "13 HTML": (lambda f: written(f / "i.nii.gz", b"<!DOCTYPE html><html>"), "E_FORMAT", "an HTML page", "fetch"),
    "13 empty": (lambda f: written(f / "i.nii.gz", b""), "E_FORMAT", "an empty file", "again"),
    "13 renamed": (lambda f: nifti(f / "i.nii").rename(f / "i.nii.gz"), "E_FORMAT", "another name", "rename"),
    # 14: readers/test_streams.py, with the memory that it takes
    "14 bomb": (lambda f: written(f / "i.nii.gz", gzip.compress(nifti(f / "i.nii").read_bytes() + bytes(20 << 20))),
                "E_SIZE", "beyond what its header claims", "do not open"),
    "14 2^40 voxels": (
        lambda f: nifti(f / "i.nii", at_40=("5h", 4, 1024, 1024, 1024, 1024)), "E_SIZE", "1099511627776", "crop",
    ),
    # 15: readers/test_streams.py, within two seconds; there also sockets and files without permission
    "15 FIFO": (lambda f: os.mkfifo(f / "i.nii") or f / "i.nii", "E_IO", "a FIFO", "image file"),
    "15 loop": (lambda f: (f / "i.nii").symlink_to("i.nii") or f / "i.nii", "E_IO", "back to itself", "replace the link"),
    "15 folder": (lambda f: (f / "i.nii").mkdir() or f / "i.nii", "E_IO", "no DICOM slices", "image file"),
    "15 not UTF-8": (lambda f: nifti(f / "i.nii").rename(os.fsdecode(bytes(f) + b"/\xe9.nii")), "E_IO", "UTF-8", "rename"),
    # 16: test_lists_that_would_overwrite_or_leave_their_folder; outputs over inputs: tests/inference/test_folder.py
    # 17: test_missing_parts; an extra channel and a copied one are flags: test_suspicious_images_are_flagged
    "17 missing": (
        lambda f: Case("the-case", {"b": (nifti(f / "b.nii"), None)}), "E_CHANNEL", "a is missing", "leave the case out",
    ),
    # 18: readers/test_dicom.py
    "18 missing slice": (without_a_slice, "E_DICOM", "1 slice", "fetch"),
    "18 gantry tilt": (lambda f: series(f / "s", FAULTS["gantry tilt"][0]), "E_DICOM", "gantry tilt", "dcm2niix"),
    "18 orientations": (
        lambda f: series(f / "s", FAULTS["mixed orientations"][0]), "E_DICOM", "mixed orientations", "folder of their own",
    ),
    "18 mixed series": (lambda f: series(f / "s", FAULTS["mixed series"][0]), "E_DICOM", "2 series", "folder of its own"),
    # 19, masks that are the same in every orientation: tests/inference/test_orientation.py
}  # fmt: skip


@pytest.mark.parametrize(("make", "code", "what", "fix"), ROWS.values(), ids=ROWS)
def test_every_row(tmp_path: Path, make: Callable[[Path], Case | Path], code: str, what: str, fix: str) -> None:
    error = refusal(make(tmp_path))
    assert error.code == code
    assert what in error.what
    assert fix in error.fix


def test_good_case(tmp_path: Path) -> None:
    case = case_of(nifti(tmp_path / "i.nii.gz"), nifti(tmp_path / "l.nii.gz", LABEL), nifti(tmp_path / "m.nii", LABEL))
    loaded = load_case(case, ("a",), (0, 1))
    assert np.array_equal(loaded.image[0], IMAGE)
    assert loaded.image.dtype == np.float32
    assert loaded.label is not None
    assert np.array_equal(loaded.label, LABEL)
    assert loaded.label.dtype == np.uint8
    assert loaded.mask is not None
    assert np.array_equal(loaded.mask, LABEL > 0)
    assert loaded.grid.spacing == (1.5, 1.25, 2)
    assert loaded.grid.axes == "LSA"
    np.testing.assert_array_equal(loaded.grid.affine, AFFINE)
    assert loaded.flags == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    image = IMAGE.copy()
    image[1, 2, 3] = bad
    error = refusal(nifti(tmp_path / "i.nii.gz", image))
    assert error.code == "E_NONFINITE"
    assert "1 voxels" in error.what
    assert refusal(nifti(tmp_path / "l.nii.gz", image), label=True).code == "E_NONFINITE"


@pytest.mark.parametrize("outlier", [1e30, -1e30, 1e39, 3e8, 1e13])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_voxel_that_takes_all_contrast(tmp_path: Path, outlier: float, dtype: type) -> None:
    image = IMAGE.astype(dtype)
    with np.errstate(over="ignore"):
        image[1, 2, 3] = outlier
    error = refusal(nifti(tmp_path / "i.nii.gz", image))
    assert error.code == ("E_NONFINITE" if dtype is np.float32 and outlier == 1e39 else "E_RANGE")
    assert "voxels" in error.fix or "image again" in error.fix


@pytest.mark.parametrize(
    ("outlier", "share", "code"),
    [
        (9e5, 1e-6, "E_RANGE"),
        (1e9, 300 / 216_000, "E_RANGE"),
        (-1e9, 0.04, "E_RANGE"),
        (5000, 0.001, "far"),
        (100, 0.001, ""),
    ],
)
def test_few_voxels_far_beyond_all_others(tmp_path: Path, outlier: float, share: float, code: str) -> None:
    image = np.random.default_rng(0).normal(size=(60, 60, 60)).astype(np.float32)  # as after z-scoring
    image.ravel()[: max(1, round(share * image.size))] = outlier
    case = case_of(nifti(tmp_path / "i.nii", image))
    if code == "E_RANGE":
        assert refusal(case).code == code
    else:
        (report,) = examine(case, ("a",), None).files
        assert report.flags == list(load_case(case, ("a",)).flags)
        assert (f"a reaches {outlier / 2.58:.0f}"[:11] in "".join(report.flags)) == (code == "far")


def test_ranges_that_are_real(tmp_path: Path) -> None:
    sparse = np.zeros(SHAPE, np.float32)
    sparse[2, 3, 4] = 1  # one bright voxel is no outlier by itself
    pet = IMAGE * 1e4
    fading = np.exp(-np.square(np.indices((40, 40, 40)) - 20.0).sum(0)).astype(np.float32)  # a map of probabilities
    load_case(case_of(nifti(tmp_path / "i.nii", fading)), ("a",))
    for image in (sparse, pet, IMAGE.astype(np.uint16), IMAGE - 1000, (IMAGE * 2e7).astype(np.uint32)):
        load_case(case_of(nifti(tmp_path / "i.nii", image)), ("a",))
    for image in (
        IMAGE * 1e-9,
        IMAGE.astype(np.float64) * 1e-6 + 5000,
        IMAGE.astype(np.float64) * 1e15,
    ):  # ADC in m²/s; no contrast left; overflow
        assert refusal(nifti(tmp_path / "i.nii", image)).code == "E_RANGE"


def test_other_grid(tmp_path: Path) -> None:
    image = nifti(tmp_path / "i.nii.gz")
    error = refusal(case_of(image, nifti(tmp_path / "l.nii.gz", LABEL[:-1])))
    assert error.code == "E_GRID"
    assert "(4, 6, 7)" in error.why
    assert "resample" in error.fix
    for moved_by, expected in ((10.0, "E_GRID"), (0.01, "E_GRID"), (1e-8, None), (0.001, None)):
        moved = AFFINE.copy()
        moved[0, 3] += moved_by
        for part in ("label", "mask"):
            file = nifti(tmp_path / "l.nii.gz", LABEL, moved)
            case = case_of(image, **{part: file})
            if expected is None:
                load_case(case, ("a",), (0, 1))
            else:
                error = refusal(case)
                assert error.code == expected
                assert "l.nii.gz" in error.where
        case = Case("the-case", {"a": (image, None), "b": (nifti(tmp_path / "b.nii", IMAGE * 2, moved), None)})
        if expected is None:
            load_case(case, ("a", "b"))
        else:
            with pytest.raises(DataError, match=expected):
                load_case(case, ("a", "b"))


def test_labels_are_rounded_a_little_and_no_more(tmp_path: Path) -> None:
    for factor in (0.9999, 1.0009):
        nearly = load_labels(nifti(tmp_path / "l.nii.gz", (LABEL * factor).astype(np.float32)), "c", (0, 1))[0]
        assert np.array_equal(nearly, LABEL)
    scaled = nifti(tmp_path / "l.nii.gz", LABEL * np.uint8(100), at_112=("f", 0.009999))
    assert np.array_equal(load_labels(scaled, "c", (0, 1))[0], LABEL)
    error = refusal(nifti(tmp_path / "l.nii.gz", (LABEL * 0.5).astype(np.float32)), label=True)
    assert error.code == "E_LABEL"
    assert "nearest neighbour" in error.fix


@pytest.mark.parametrize(
    ("values", "allowed", "named", "advice"),
    [
        ((0, 1, 2, 3), (0, 1, 2, 4), "3", "3 -> 4"),  # BraTS 2023 in a list for 2021
        ((0, 1, 2, 255), (0, 1, 2), "255", '"255"'),
        ((0, 255), (0, 1), "255", "255 -> 1"),
        ((0, 1000, 1), (0, 1), "1000", "0 to 255"),
        ((0, 2**24 + 1), (0, 1), "16777217", "16777217 -> 1"),
        ((0, -1, 1), (0, 1), "-1", "renumber"),
        ((0, 256, 1), (0, 1), "256", "renumber"),  # would be 0 in eight bits
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_values_outside_the_map(
    tmp_path: Path, values: tuple[int, ...], allowed: tuple[int, ...], named: str, advice: str, dtype: type
) -> None:
    label = np.resize(np.array(values, dtype=dtype), SHAPE)
    image = nifti(tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(label, AFFINE, dtype=dtype), tmp_path / "l.nii")
    case = case_of(image, tmp_path / "l.nii")
    with pytest.raises(DataError) as raised:
        load_case(case, ("a",), allowed)
    assert raised.value.code == "E_LABEL"
    assert named in raised.value.what
    assert ", ".join(str(v) for v in sorted(values)) in raised.value.why
    assert advice in raised.value.fix


def test_missing_parts(tmp_path: Path) -> None:
    case = case_of(nifti(tmp_path / "i.nii"))
    with pytest.raises(DataError) as raised:
        load_case(case, ("a", "t1ce"))
    assert raised.value.code == "E_CHANNEL"
    assert "t1ce" in raised.value.what
    assert "leave the case out" in raised.value.fix
    with pytest.raises(DataError) as raised:
        load_case(case, ("a",), (0, 1), need_label=True)
    assert raised.value.code == "E_LABEL"
    assert "add 'label'" in raised.value.fix
    empty = case_of(nifti(tmp_path / "i.nii"), mask=nifti(tmp_path / "m.nii", LABEL * 0))
    assert refusal(empty).code == "E_MASK"
    assert "correct the mask" in refusal(empty).fix


def test_zeros_for_a_channel_that_is_missing(tmp_path: Path) -> None:
    case = Case("x", {"b": (nifti(tmp_path / "b.nii.gz"), None)})
    with pytest.raises(DataError, match=r"E_CHANNEL.*channel a, c is missing"):
        load_case(case, ["a", "b", "c"])
    found = load_case(case, ["a", "b", "c"], zeros=True)
    assert found.missing == ("a", "c")
    assert np.array_equal(found.image[1], load_case(case, ["b"]).image[0])
    assert not found.image[[0, 2]].any()
    assert found.flags == ("channel a is missing, and 0 in its place", "channel c is missing, and 0 in its place")
    with pytest.raises(DataError, match="E_CHANNEL"):
        load_case(case, ["a", "c"], zeros=True)


def test_suspicious_images_are_flagged(tmp_path: Path) -> None:
    files = {
        "a": nifti(tmp_path / "a.nii"),
        "b": nifti(tmp_path / "b.nii", IMAGE * 2),
        "copy": nifti(tmp_path / "copy.nii.gz"),
        "zero": nifti(tmp_path / "zero.nii", IMAGE * 0),
        "flat": nifti(tmp_path / "flat.nii", np.full(SHAPE, 7, np.int16)),
        "extra": nifti(tmp_path / "extra.nii", IMAGE * 3),
    }
    case = Case("the-case", {name: (path, None) for name, path in files.items()})
    flags = load_case(case, ("a", "b", "copy", "zero", "flat")).flags
    assert flags == (
        "zero is constant (all zero)", "flat is constant", "a and copy are the same image", "channel extra is not used",
    )  # fmt: skip
    twice = Case("the-case", {"a": (files["a"], None), "b": (files["a"], None)})
    assert load_case(twice, ("a", "b")).flags == ("a and b are the same image",)


def test_channels_of_a_4d_file_go_by_name(tmp_path: Path) -> None:
    four = nifti(tmp_path / "4.nii.gz", np.stack([IMAGE, 2 * IMAGE], -1))
    swapped = load_case(Case("the-case", {"a": (four, 0), "b": (four, 1)}), ("b", "a"))
    assert np.array_equal(swapped.image[0], 2 * IMAGE)
    error = refusal(Case("the-case", {"a": (four, 0), "b": (four, 1), "c": (four, 2)}))
    assert error.code == "E_NDIM"
    assert "modality" in error.fix
    assert refusal(Case("the-case", {"a": (nifti(tmp_path / "3.nii"), 0)})).code == "E_NDIM"


@pytest.mark.parametrize(
    ("entries", "what", "fix"),
    [
        (
            [{"image": "a.nii", "id": "x"}, {"image": "b.nii", "id": "x"}],
            "stands twice",
            "training[0] or training[1] an id",
        ),
        ([{"image": "a.nii"}, {"image": "b/a.nii"}], "stands twice", "training[0] or training[1] an id"),
        ([{"image": "a.nii", "id": "x"}, {"image": "a.nii", "id": "y"}], "the same files", "each image once"),
        ([{"image": "../a.nii"}], "leads out", "absolute path"),
        ([{"image": "b/../../a.nii"}], "leads out", "absolute path"),
        ([{"image": "a.nii", "label": "../../etc/passwd"}], "leads out", "absolute path"),
        ([{"image": "a.nii", "mask": "../m.nii"}], "leads out", "absolute path"),
        ([{"image": {"t1": "../a.nii"}}], "leads out", "absolute path"),
        ([{"image": "a.nii", "sha256": {"../b.nii": "0" * 64}}], "leads out", "absolute path"),
        ([{"image": "a.nii", "id": "../x"}], "case name", "letters, digits"),
        ([{"image": "a.nii", "id": "x/y"}], "case name", "letters, digits"),
        ([{"image": "a.nii", "id": "-rf"}], "case name", "letters, digits"),
        ([{"image": "a.nii", "id": "x\n"}], "case name", "letters, digits"),
        ([{"image": "a\0.nii"}], "file is expected", "as text"),
        ([{"image": "a.nii", "sha256": {"a.nii": "123"}}], "sha256", "inspect --hash"),
        ([{"image": "a.nii", "sha256": {"b.nii": "0" * 64}}], "none of its files", "inspect --hash"),
    ],
)
def test_lists_that_would_overwrite_or_leave_their_folder(
    tmp_path: Path, entries: list[object], what: str, fix: str
) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"labels": {"0": "background"}, "training": entries}))
    with pytest.raises(DataError) as raised:
        load_manifest(path)
    assert raised.value.code == "E_MANIFEST"
    assert what in raised.value.what
    assert fix in raised.value.fix


def test_sums_of_a_list_are_checked_on_reading(tmp_path: Path) -> None:
    image, label = nifti(tmp_path / "i.nii.gz"), nifti(tmp_path / "l.nii", LABEL)
    entry = {
        "image": "i.nii.gz",
        "label": "l.nii",
        "sha256": {"i.nii.gz": volume_sum(image), "l.nii": volume_sum(label)},
    }
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"modality": {"0": "a"}, "labels": {"0": "background", "1": "x"}, "training": [entry]}))
    case = load_manifest(path).cases[0]
    load_case(case, ("a",), (0, 1))
    for file in (image, label):
        kept = file.read_bytes()
        shutil.copy(nifti(tmp_path / "other" / file.name, LABEL * 0), file)
        with pytest.raises(DataError) as raised:
            load_case(case, ("a",), (0, 1))
        assert raised.value.code == "E_HASH"
        assert file.name in raised.value.where
        file.write_bytes(kept)


def test_real_cases(real_data: Path) -> None:
    manifest = load_manifest(real_data / "hippocampus" / "dataset.json")
    for case in manifest.cases:
        loaded = load_case(case, ("mri",), (0, 1, 2), need_label=True)
        assert loaded.label is not None
        assert set(np.unique(loaded.label)) == {0, 1, 2}
        assert loaded.flags == ()
    for path in sorted((real_data / "brats2013_two_channel").glob("*")):
        images = {n: (path / f"{f}_subtrMeanDivStd.nii.gz", None) for n, f in (("flair", "Flair"), ("t1ce", "T1c"))}
        case = Case(path.name, images, path / "OTMultiClass.nii.gz", path / "brainmask.nii.gz")
        loaded = load_case(case, ("flair", "t1ce"), range(5))
        assert loaded.label is not None
        assert loaded.mask is not None
        assert set(np.unique(loaded.label)) == {0, 1, 2, 3, 4}
        assert loaded.mask.sum() > 1e6


@pytest.mark.fault(7)
def test_images_that_there_is_no_room_for_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    volume = np.zeros((512, 512, 256), np.uint8)  # 67 MB, in a file of 0.1 MB
    path = nifti(tmp_path / "i.nii.gz", volume)
    case = case_of(path)
    needed = volume.size * (1 + 4)  # as stored, and as 32-bit floats
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as raised:
            load_case(case, ("a",), room=needed - 1)
        assert tracemalloc.get_traced_memory()[1] < volume.nbytes / 10
    finally:
        tracemalloc.stop()
    assert raised.value.code == "E_MEMORY"
    assert raised.value.where == f"case the-case: {path}"
    assert "0.34 GB" in raised.value.why
    assert load_case(case, ("a",), room=needed).image.shape == (1, *volume.shape)
    four = Case("the-case", {"a": (path, None), "b": (nifti(tmp_path / "b.nii.gz", volume), None)})
    with pytest.raises(DataError, match="E_MEMORY"):  # what has been read of the case counts
        load_case(four, ("a", "b"), room=volume.size * (1 + 4 * 2))
