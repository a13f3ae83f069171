"""What is shown of a case, and where."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.reports.gallery import worst_and_best
from cmt_med.reports.listing import CaseFiles, Listing, read_listing, write_listing
from cmt_med.reports.planes import colour_of, three_planes
from cmt_med.reports.volumes import (
    Shown,
    coarsened,
    largest_error,
    load_shown,
    nifti_bytes,
    paint,
    reduced,
)
from tests.helpers import save

TARGETS = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}


def shown(predicted: np.ndarray | None, reference: np.ndarray | None, spacing: tuple[float, ...] = (1, 1, 1)) -> Shown:
    shape = next(a.shape for a in (predicted, reference, np.zeros((20, 22, 24))) if a is not None)
    return Shown(np.zeros(shape, np.float32), predicted, reference, np.diag([*spacing, 1.0]))


def test_regions_are_painted_from_the_widest_to_the_narrowest() -> None:
    labels = np.array([[[0, 1, 2, 4, 7]]], np.uint8)
    assert paint(labels, TARGETS).tolist() == [[[0, 2, 1, 3, 0]]]
    assert paint(labels, dict(reversed(TARGETS.items()))).tolist() == [[[0, 2, 3, 1, 0]]]


def test_the_largest_error_is_the_deepest_voxel_of_the_largest_part() -> None:
    reference = np.zeros((20, 22, 24), np.uint8)
    reference[2:7, 3:8, 4:9] = 1  # a cube of 5, missed
    predicted = np.zeros_like(reference)
    predicted[15:17, 15:17, 15:17] = 1  # a cube of 2, false
    assert largest_error(shown(predicted, reference)) == (4, 5, 6)
    # depth is in millimetres: every slice of thick voxels is as deep as the middle one
    assert largest_error(shown(predicted, reference, (1, 1, 5))) == (4, 5, 4)


def test_what_nobody_has_annotated_is_not_wrong(tmp_path: Path) -> None:
    """Of three predicted slices the reference ignores the first, and knows nothing of the second's label."""
    reference, predicted = np.zeros((6, 5, 4), np.uint8), np.zeros((6, 5, 4), np.uint8)
    reference[0] = 9
    predicted[0], predicted[2], predicted[4] = 1, 2, 1
    files = CaseFiles(
        "x", save(tmp_path / "p.nii.gz", predicted), save(tmp_path / "r.nii.gz", reference), ignore=9, unscored=("b",)
    )
    write_listing(tmp_path, Listing((files,), {"a": [1], "b": [2]}, {"a": [1], "b": [2]}))
    (again,) = read_listing(tmp_path).cases
    assert (again.ignore, again.unscored) == (9, ("b",))
    for one in (files, again):
        found = load_shown(one, {"a": [1], "b": [2]}, {"a": [1], "b": [2]})
        assert found.wrong is not None
        assert found.wrong.any((1, 2)).tolist() == [False, False, False, False, True, False]
        assert found.predicted is not None
        assert found.predicted.any((1, 2)).tolist() == [True, False, True, False, True, False], (
            "it is shown all the same"
        )


def test_where_nothing_is_wrong_the_label_is_shown() -> None:
    labels = np.zeros((20, 22, 24), np.uint8)
    labels[10:13, 4:7, 2:5] = 1
    i, j, k = largest_error(shown(labels, labels.copy()))
    assert labels[i, j, k] == 1
    empty = np.zeros_like(labels)
    assert largest_error(shown(empty, empty)) == (10, 11, 12)


def test_a_part_keeps_its_place_in_the_patient() -> None:
    labels = np.zeros((40, 50, 60), np.uint8)
    labels[20, 30, 40] = 1
    labels[22, 34, 44] = 2
    full = Shown(np.zeros(labels.shape, np.float32), labels, None, np.diag([2.0, 2.0, 2.0, 1.0]))
    part = reduced(full, 100, margin_mm=4)
    assert part.image.shape == (7, 9, 9)
    at = np.argwhere(part.predicted == 2)[0]
    assert (part.affine @ [*at, 1])[:3].tolist() == [44, 68, 88]
    coarse = reduced(full, 5, margin_mm=4)
    assert max(coarse.image.shape) <= 5
    assert coarse.spacing == (4, 4, 4)
    assert coarsened(full, 20_000).image.size <= 20_000
    assert coarsened(full, 10**6).image.shape == labels.shape


def test_volumes_are_turned_to_the_patients_axes(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    array[0, 1, 2] = 1
    affine = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 6], [0, 3, 0, 7], [0, 0, 0, 1]])
    path = save(tmp_path / "x.nii.gz", array, affine)
    found = load_shown(CaseFiles("x", path), {"a": [1]}, {"a": [1]})
    assert found.predicted is not None
    assert found.predicted.shape == (6, 4, 5)
    assert found.spacing == (2, 1, 3)
    at = np.argwhere(found.predicted == 1)[0]
    assert np.allclose(found.affine @ [*at, 1], affine @ [0, 1, 2, 1])


def test_references_may_number_their_labels_otherwise(tmp_path: Path) -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2:4, 2:4, 2:4] = 4
    files = CaseFiles("x", save(tmp_path / "p.nii.gz", labels), save(tmp_path / "r.nii.gz", labels // 4 * 3))
    found = load_shown(files, {"ET": [4]}, {"ET": [3]})
    assert found.wrong is not None
    assert not found.wrong.any()


def test_other_grids_are_refused(tmp_path: Path) -> None:
    files = CaseFiles(
        "x",
        save(tmp_path / "p.nii.gz", np.ones((4, 4, 4), np.uint8)),
        save(tmp_path / "r.nii.gz", np.ones((4, 4, 5), np.uint8)),
    )
    with pytest.raises(DataError, match="E_GRID"):
        load_shown(files, {"a": [1]}, {"a": [1]})


def test_the_listing_moves_with_its_run(tmp_path: Path) -> None:
    for name in ("p", "r"):
        save(tmp_path / f"run/validation/{name}.nii.gz", np.ones((4, 4, 4), np.uint8))
    folder = tmp_path / "run/validation"
    listing = Listing((CaseFiles("x", folder / "p.nii.gz", folder / "r.nii.gz"),), {"a": [1]}, {"a": [2]})
    write_listing(tmp_path / "run/report", listing)
    (tmp_path / "run").rename(tmp_path / "moved")
    found = read_listing(tmp_path / "moved/report")
    assert found.reference_targets == {"a": [2]}
    assert found.cases[0].prediction is not None
    assert found.cases[0].prediction.is_file()
    (tmp_path / "moved/report/volumes.json").write_text('{"cases": 3}')
    with pytest.raises(DataError, match="E_REPORT"):
        read_listing(tmp_path / "moved/report")


def test_the_picture_has_both_outlines() -> None:
    reference = np.zeros((30, 30, 30), np.uint8)
    reference[8:20, 8:20, 8:20] = 1
    png = three_planes(shown(np.roll(reference, 3, axis=0), reference), np.array([9.0, 14, 14]))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16)
    for colour in (colour_of(0), (245, 192, 153)):
        assert (np.abs(pixels - colour).max(axis=-1) < 20).sum() > 200
    nothing = three_planes(shown(None, np.zeros((9, 9, 9), np.uint8)), np.zeros(3))
    assert nothing.startswith(b"\x89PNG")


@pytest.mark.parametrize(("cases", "expected"), [(3, "abc"), (4, "abcd"), (7, "abfg")])
def test_worst_and_best(cases: int, expected: str) -> None:
    assert "".join(worst_and_best("abcdefg"[:cases], 4)) == expected


@pytest.mark.fault(21)
def test_an_axis_that_no_browser_shows_is_coarsened() -> None:
    labels = np.zeros((3, 33_000, 4), np.uint8)
    labels[:, -2000:] = 1
    full = Shown(labels.astype(np.float32), labels, None, np.eye(4))
    part = coarsened(full, 10**7)
    assert part.image.shape == (3, 1942, 4)
    assert part.spacing == (1, 17, 1)
    assert nib.Nifti1Image.from_bytes(nifti_bytes(part.image, part.affine)).shape == part.image.shape
    at = np.argwhere(part.predicted == 1)[0]
    assert 31_000 <= (part.affine @ [*at, 1])[1] < 31_017
