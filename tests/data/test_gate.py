"""The gate: cases whose files are sound alone or not at all, and how they fit together (rows 3 to 7, 12, 16, 17 of the table)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmt_med.data.examine import examine
from cmt_med.data.gate import load_case, load_labels
from cmt_med.data.manifest import Case, load_manifest
from cmt_med.data.sums import volume_sum
from cmt_med.errors import DataError
from tests.data.made import AFFINE, IMAGE, LABEL, SHAPE, case_of, nifti, refusal


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
    with pytest.raises(DataError, match="E_LABEL"):
        load_case(case, ("a",), (0, 1), need_label=True)
    empty = case_of(nifti(tmp_path / "i.nii"), mask=nifti(tmp_path / "m.nii", LABEL * 0))
    assert refusal(empty).code == "E_MASK"


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
    ("entries", "what"),
    [
        ([{"image": "a.nii", "id": "x"}, {"image": "b.nii", "id": "x"}], "stands twice"),
        ([{"image": "a.nii", "id": "x"}, {"image": "a.nii", "id": "y"}], "the same files"),
        ([{"image": "../a.nii"}], "leads out"),
        ([{"image": "b/../../a.nii"}], "leads out"),
        ([{"image": "a.nii", "label": "../../etc/passwd"}], "leads out"),
        ([{"image": "a.nii", "mask": "../m.nii"}], "leads out"),
        ([{"image": {"t1": "../a.nii"}}], "leads out"),
        ([{"image": "a.nii", "id": "../x"}], "case name"),
        ([{"image": "a.nii", "id": "x/y"}], "case name"),
        ([{"image": "a.nii", "id": "-rf"}], "case name"),
        ([{"image": "a\0.nii"}], "file is expected"),
        ([{"image": "a.nii", "sha256": {"a.nii": "123"}}], "sha256"),
    ],
)
def test_lists_that_would_overwrite_or_leave_their_folder(tmp_path: Path, entries: list[object], what: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"labels": {"0": "background"}, "training": entries}))
    with pytest.raises(DataError) as raised:
        load_manifest(path)
    assert raised.value.code == "E_MANIFEST"
    assert what in raised.value.what
    assert raised.value.fix != DataError.usual_fix


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
