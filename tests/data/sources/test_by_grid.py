"""Label maps paired with images by their grids, and volumes that count the same voxels in another order."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.sources import find_dataset
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.data.volumes.grid import Grid
from cmt_med.runs.recognition import data_set
from tests.data.made import AFFINE, IMAGE, LABEL, nifti


@given(st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_reordering_is_what_nibabel_does(order: list[int], flips: list[bool]) -> None:
    image = nibabel.Nifti1Image(IMAGE, AFFINE)
    turned = image.as_reoriented(np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)]))
    there = Grid(turned.shape, turned.affine)
    found = there.reordering(Grid(IMAGE.shape, AFFINE))
    assert found is not None
    back = np.flip(np.asarray(turned.dataobj).transpose(found[0]), found[1])
    np.testing.assert_array_equal(back, IMAGE)


def test_other_voxels_are_not_reordered() -> None:
    grid = Grid(IMAGE.shape, AFFINE)
    for change in (
        np.diag([-1.0, 1, 1, 1]) @ AFFINE,  # the patient mirrored: other places
        AFFINE + np.array([[0, 0, 0, 0.1], *[[0.0] * 4] * 3]),
        AFFINE @ np.diag([2.0, 1, 1, 1]),
    ):
        assert Grid(IMAGE.shape, change).reordering(grid) is None


def test_a_label_map_whose_rows_are_turned(tmp_path: Path) -> None:
    """As dcm2niix turns them; the label of a voxel is that of its place."""
    image = nifti(tmp_path / "a.nii.gz")
    turned = nibabel.Nifti1Image(LABEL, AFFINE).as_reoriented(np.array([[0, 1], [1, -1], [2, 1]]))
    nibabel.save(turned, tmp_path / "b.nii.gz")
    case = Case("c", {"t1": (image, None)}, tmp_path / "b.nii.gz")
    loaded = load_case(case, ["t1"], [0, 1])
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.label, LABEL)
    labels, grid = load_labels(tmp_path / "b.nii.gz", "c", like=loaded.grid)
    np.testing.assert_array_equal(labels, LABEL)
    assert grid.equals(loaded.grid)


def test_paired_by_grid(tmp_path: Path) -> None:
    for i, (image, label) in enumerate(
        (("x_ct_small", "x_seg"), ("x_ct_other", "x_seg_other"), ("x_mr_small", "x_seg_mr"))
    ):
        affine = AFFINE + np.array([[0, 0, 0, 10.0 * i], *[[0.0] * 4] * 3])
        nifti(tmp_path / f"set/{image}.nii.gz", affine=affine)
        nifti(tmp_path / f"set/{label}.nii.gz", LABEL, affine)
    found = find_dataset(tmp_path / "set")
    assert {case.name: case.label and case.label.name for case in found.cases} == {
        "x_ct_small": "x_seg.nii.gz", "x_ct_other": "x_seg_other.nii.gz", "x_mr_small": "x_seg_mr.nii.gz",
    }  # fmt: skip
    assert any("paired by shape" in note for note in found.notes)
    manifest = data_set(tmp_path / "set")  # two of CT, one of MR
    assert manifest.channels == ("ct",)
    assert {case.name for case in manifest.cases} == {"x_ct_small", "x_ct_other"}


def test_equal_grids_pair_nothing(tmp_path: Path) -> None:
    for name in ("x_ct_small", "x_ct_other"):
        nifti(tmp_path / f"set/{name}.nii.gz")
    for name in ("x_seg", "x_seg_other"):
        nifti(tmp_path / f"set/{name}.nii.gz", LABEL)
    with pytest.raises(DataError):
        data_set(tmp_path / "set")


def test_as_many_of_either_modality_is_a_question(tmp_path: Path) -> None:
    for i, kind in enumerate(("ct", "mr")):
        affine = AFFINE + np.array([[0, 0, 0, 10.0 * i], *[[0.0] * 4] * 3])
        nifti(tmp_path / f"set/x_{kind}_s.nii.gz", affine=affine)
        nifti(tmp_path / f"set/x_seg_{kind}.nii.gz", LABEL, affine)
    with pytest.raises(DataError, match="1 ct, 1 mri") as raised:
        data_set(tmp_path / "set")
    assert raised.value.code == "E_CHANNEL"
