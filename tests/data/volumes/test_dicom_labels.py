"""Label maps from SEG and RTSTRUCT: on their series' slices, equal to what other readers make of them, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.decoder import decode
from tests.data.dicom_made import write_segmentation, write_series, write_structures

COLUMNS, ROWS, SLICES = 12, 9, 6
AFFINE = np.array([[0.5, 0, 0, -3], [0, 0.75, 0, 7], [0, 0, 2.5, 40], [0, 0, 0, 1]])
SEGMENTS = {1: "Liver", 2: "Spleen"}


def numbers() -> np.ndarray:
    rng = np.random.default_rng(3)
    found = rng.integers(0, 3, (COLUMNS, ROWS, SLICES)).astype(np.uint8)
    found[..., [0, SLICES - 1]] = 0  # slices without a label have no frame in a SEG
    return found


def made(folder: Path, patient: str = "p") -> list:
    values = np.random.default_rng(0).integers(0, 900, (COLUMNS, ROWS, SLICES)).astype(float)
    return write_series(folder, values, AFFINE, patient=patient, description="T1")


def labels(path: Path, **table: int) -> np.ndarray:
    return decode(path, labels=True, segments=table).array


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("place", ["series/seg.dcm", "seg.dcm", "SEG/seg", "series/below/seg.dcm"])
def test_segmentations_of_every_kind(tmp_path: Path, kind: str, place: str) -> None:
    slices = made(tmp_path / "series")
    write_segmentation(tmp_path / place, slices[::-1], numbers()[..., ::-1], SEGMENTS, kind)
    np.testing.assert_array_equal(labels(tmp_path / place), numbers())
    swapped = labels(tmp_path / place, Liver=2, Spleen=0)
    np.testing.assert_array_equal(swapped, np.array([0, 2, 0], np.uint8)[numbers()])
    image, label = (
        decode(tmp_path / "series") if place != "series/seg.dcm" else None,
        decode(tmp_path / place, labels=True),
    )
    if image is not None:
        np.testing.assert_allclose(image.stored.affine, label.stored.affine)


def test_what_a_segmentation_cannot_be_read_for(tmp_path: Path) -> None:
    slices = made(tmp_path / "series", "of nobody else")
    seg = tmp_path / "seg.dcm"
    write_segmentation(seg, slices, numbers(), SEGMENTS)
    with pytest.raises(DataError, match="'Spleen' is not in the case list") as raised:
        labels(seg, Liver=1)
    assert raised.value.code == "E_LABEL"
    with pytest.raises(DataError, match="not a slice of a volume") as raised:
        decode(seg)  # an image is asked for
    assert raised.value.code == "E_DICOM"
    for file in (tmp_path / "series").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="images that the segmentation belongs to") as raised:
        labels(seg)
    assert raised.value.code == "E_DICOM"


def test_a_segmentation_on_another_grid_is_refused(tmp_path: Path) -> None:
    slices = made(tmp_path / "series")
    for slice_ in slices:
        slice_.ImagePositionPatient = [slice_.ImagePositionPatient[0] + 0.25, *slice_.ImagePositionPatient[1:]]
    write_segmentation(tmp_path / "seg.dcm", slices, numbers(), SEGMENTS)
    with pytest.raises(DataError, match="another grid") as raised:
        labels(tmp_path / "seg.dcm")
    assert raised.value.code == "E_GRID"


def test_contours_against_matplotlib(tmp_path: Path) -> None:
    """Voxels whose centre lies within a contour; a contour within another is a hole; the body's outline is none."""
    slices = made(tmp_path / "series")
    outer = np.array([[1.3, 1.2], [9.7, 0.7], [10.4, 7.3], [4.2, 7.8]])
    inner = np.array([[4.3, 2.6], [7.4, 2.7], [6.6, 5.2]])
    whole = np.array([[-0.4, -0.4], [11.4, -0.4], [11.4, 8.4], [-0.4, 8.4]])

    def in_mm(shape: np.ndarray, at: int) -> np.ndarray:
        return np.c_[shape, np.full(len(shape), at), np.ones(len(shape))] @ AFFINE[:3].T

    file = tmp_path / "rt.dcm"
    contours = {
        "GTV": [in_mm(outer, 2), in_mm(inner, 2), in_mm(inner, 4)],
        "Body": [in_mm(whole, k) for k in range(SLICES)],
    }
    write_structures(file, slices, contours, {"Body": "EXTERNAL"})
    centres = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij"), -1).reshape(-1, 2)
    expected = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    inside = [Outline(shape).contains_points(centres).reshape(COLUMNS, ROWS) for shape in (outer, inner)]
    expected[..., 2], expected[..., 4] = inside[0] ^ inside[1], inside[1]
    assert expected[..., 2].sum() > 20
    np.testing.assert_array_equal(labels(file), expected)
    write_structures(file, slices, {**contours, "Organ": [in_mm(outer, 2)]}, {"Body": "EXTERNAL"})
    with pytest.raises(DataError, match="'GTV' and 'Organ' overlap") as raised:
        labels(file)
    assert raised.value.code == "E_LABEL"
    np.testing.assert_array_equal(labels(file, GTV=5, Organ=0), 5 * expected)
    write_structures(file, slices, {"GTV": [in_mm(outer, 2.5)]})
    with pytest.raises(DataError, match="another grid"):
        labels(file)


@pytest.mark.data
def test_published_segmentations_equal_their_label_maps(real_data: Path) -> None:
    """SEG and NRRD of the same segmentation, as dcmqi's tests have them."""
    folder = real_data / "odd_files/dcmqi/data/segmentations"
    for seg, nrrd in (
        ("liver.dcm", "liver_seg.nrrd"), ("24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
        ("23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd"),
    ):  # fmt: skip
        mine, theirs = decode(folder / seg, labels=True), decode(folder / nrrd, labels=True)
        same = np.array_equal(mine.array, theirs.array) or np.array_equal(mine.array, theirs.array[..., ::-1])
        assert same, seg
    with pytest.raises(DataError, match="overlap"):
        decode(folder / "partial_overlaps.dcm", labels=True)
