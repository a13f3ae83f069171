"""Label maps from DICOM: SEG objects (binary, fractional and label maps) and the contours of RTSTRUCT, on their series' grid.

The label of a voxel is what the case list's table ``segments`` says of the segment's name; without a table it is the segment's
number. Segments that overlap are refused: one voxel has one label.

Source: DICOM PS3.3, A.51 and C.8.20 (Segmentation), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.dicom import Frame, frames_of_series
from cmt_med.data.volumes.dicom_header import guarded
from cmt_med.data.volumes.dicom_pixels import is_native
from cmt_med.data.volumes.dicom_series import SEGMENTATIONS, STRUCTURES, Tags, read_tags, series_beside
from cmt_med.data.volumes.dicom_stack import stack_affine
from cmt_med.data.volumes.header import Opened, VolumeHeader, as_tuples, check_shape
from cmt_med.data.volumes.painting import Painted, values_of
from cmt_med.data.volumes.streams import readable_name

OFF_GRID = 0.05
"""Of a voxel: how far a frame may lie from the slices of its series; real ones are off by less than 0.001."""
OFF_SLICE = 0.25
"""Of the distance between slices: how far a contour may lie from one, since planning systems round positions."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_OUTLINES = ("EXTERNAL", "SUPPORT", "FIXATION", "BOLUS", "MARKER", "ISOCENTER", "REGISTRATION")
"""Kinds of RT structures that are no targets of a segmentation: the body's outline, and what lies around it."""

Slices = list[tuple[int, NDArray[np.bool_]]]


@dataclass(frozen=True)
class Segment:
    """A segment or a region of interest: its number in the file, and its name."""

    number: int
    name: str


def is_labels(path: Path) -> bool:
    """Tell whether a DICOM file is a segmentation or a set of structures."""
    tags = read_tags(path)
    return tags is not None and tags.storage in (*SEGMENTATIONS, STRUCTURES)


def segments_of(path: Path) -> list[Segment]:
    """The segments that a file describes, but for the body's outline.

    Raises:
        DataError: E_DICOM, E_IO.
    """
    where = readable_name(path)
    return guarded(lambda: _segments(pydicom.dcmread(path, stop_before_pixels=True)), where)


def series_of_labels(path: Path) -> tuple[str, frozenset[str]]:
    """The SeriesInstanceUID that a segmentation was made on, or "", and the instances that it refers to."""
    return guarded(lambda: _source(pydicom.dcmread(path, stop_before_pixels=True)), readable_name(path))


def read(path: Path, table: Mapping[str, int]) -> Opened:
    """The label map of a SEG or RTSTRUCT file on the grid of its series.

    Args:
        path: of the file; the series is searched in its folder, below it and below the folder above.
        table: name of a segment -> label value, 0 for those that are left out; empty for the segments' own numbers.

    Raises:
        DataError: E_DICOM, also if the series is not found; E_GRID for frames or contours off its slices; E_LABEL for
            overlapping segments and for names that the table does not have.
    """
    return guarded(lambda: _read(path, table), readable_name(path))


def _read(path: Path, table: Mapping[str, int]) -> Opened:
    where = readable_name(path)
    dataset = pydicom.dcmread(path)
    uid, instances = _source(dataset)
    slices = series_beside(path, lambda tags: _is_source(tags, uid, instances))
    frames = frames_of_series(slices)
    affine, order = stack_affine([frame.plane for frame in frames], where)
    frames = [frames[i] for i in order]
    columns, rows = frames[0].plane.shape
    check_shape((columns, rows, len(frames)), 1, where)
    grid = _SliceGrid(frames, np.linalg.inv(_LPS @ affine).astype(np.float64), where)
    segments = _segments(dataset)
    values = values_of([segment.name for segment in segments], table, where, [segment.number for segment in segments])
    of_number = {segment.number: (value, segment.name) for segment, value in zip(segments, values, strict=True)}
    painted = Painted(np.zeros((len(frames), rows, columns), np.uint8), where)
    contours = str(dataset.SOPClassUID) == STRUCTURES
    for number, at, mask in _contours(dataset, grid) if contours else _frames(dataset, grid):
        value, name = of_number.get(number, (0, ""))  # 0: left out, or the body's outline
        if value:
            painted.paint(painted.array[at], mask, value, name)
    kind = "DICOM RTSTRUCT" if contours else "DICOM SEG"
    stored = VolumeHeader(kind, (columns, rows, len(frames)), "<u1", as_tuples(affine))
    return Opened(stored, iter([painted.array.tobytes()]))


def _segments(dataset: Dataset) -> list[Segment]:
    if str(dataset.SOPClassUID) == STRUCTURES:
        kinds = {
            int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "").upper()
            for item in dataset.get("RTROIObservationsSequence", [])
        }
        return [
            Segment(int(item.ROINumber), str(item.get("ROIName") or f"ROI {item.ROINumber}").strip())
            for item in dataset.StructureSetROISequence
            if kinds.get(int(item.ROINumber)) not in _OUTLINES
        ]
    found = []
    for item in dataset.get("SegmentSequence", []):
        coded = item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
        name = item.get("SegmentLabel") or coded[0].get("CodeMeaning") or f"segment {item.SegmentNumber}"
        if int(item.SegmentNumber):  # a label map may describe its background
            found.append(Segment(int(item.SegmentNumber), str(name).strip()))
    return found


# ---- the series


def _source(dataset: Dataset) -> tuple[str, frozenset[str]]:
    instances: set[str] = set()
    if str(dataset.SOPClassUID) == STRUCTURES:
        series = [
            item
            for frame in dataset.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for item in study.get("RTReferencedSeriesSequence", [])
        ]
        for item in series:
            instances |= {str(image.ReferencedSOPInstanceUID) for image in item.get("ContourImageSequence", [])}
    else:
        series = list(dataset.get("ReferencedSeriesSequence", []))
        for group in (
            *dataset.get("SharedFunctionalGroupsSequence", []),
            *dataset.get("PerFrameFunctionalGroupsSequence", []),
        ):
            for derived in group.get("DerivationImageSequence", []):
                instances |= {str(image.ReferencedSOPInstanceUID) for image in derived.get("SourceImageSequence", [])}
        for item in series:
            instances |= {str(image.ReferencedSOPInstanceUID) for image in item.get("ReferencedInstanceSequence", [])}
    named = {str(item.SeriesInstanceUID) for item in series if item.get("SeriesInstanceUID")}
    return (named.pop() if len(named) == 1 else ""), frozenset(instances)


def _is_source(tags: Tags, uid: str, instances: frozenset[str]) -> bool:
    if tags.storage in (*SEGMENTATIONS, STRUCTURES):
        return False
    return (bool(uid) and tags.series == uid) or tags.instance in instances


class _SliceGrid:
    """The slices of a series, and the places of frames and contours among them.

    Args:
        frames: of the series, in order.
        to_voxels: from millimetres (DICOM's coordinates) to column, row, slice.
        where: the segmentation, for messages.
    """

    def __init__(self, frames: Sequence[Frame], to_voxels: NDArray[np.float64], where: str) -> None:
        self.columns, self.rows = frames[0].plane.shape
        self.count, self.to_voxels, self.where = len(frames), to_voxels, where
        self.first = frames[0].plane

    def voxels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (n, 3) in mm as column, row and slice."""
        return points @ self.to_voxels[:3, :3].T + self.to_voxels[:3, 3]

    def slice_of(self, depths: NDArray[np.float64]) -> int:
        """The slice on which all of these depths lie."""
        at = round(float(depths.mean()))
        off = float(np.abs(depths - at).max())
        if off > OFF_SLICE or not 0 <= at < self.count:
            raise self.off(f"a contour lies at slice {depths.mean() + 1:.2f} of {self.count}")
        return at

    def place(self, position: NDArray[np.float64], orientation: Sequence[float], pixel: Sequence[float]) -> int:
        """The slice of a frame, which must be the series' own pixels."""
        turned = np.abs(np.subtract(orientation, self.first.orientation)).max()
        if turned > 1e-3 or not np.allclose(pixel, self.first.pixel, rtol=1e-3):
            raise self.off("its frames are turned, or have pixels of another size")
        column, row, depth = self.voxels(position[None])[0]
        at = round(float(depth))
        if max(abs(column), abs(row), abs(depth - at)) > OFF_GRID or not 0 <= at < self.count:
            raise self.off(f"a frame begins at column {column:.2f}, row {row:.2f} of slice {depth + 1:.2f}")
        return at

    def off(self, why: str) -> DataError:
        """Make the error for what does not lie on the slices."""
        return DataError(
            "the segmentation lies on another grid than its series", where=self.where, why=why,
            fix="resample it to the series, or convert both to .nii.gz", code="E_GRID",
        )  # fmt: skip


# ---- SEG


def _frames(dataset: Dataset, grid: _SliceGrid) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Segment number, slice and mask (rows, columns) of every frame."""
    if (int(dataset.Columns), int(dataset.Rows)) != (grid.columns, grid.rows):
        raise grid.off(f"frames of {dataset.Columns} × {dataset.Rows} pixels, slices of {grid.columns} × {grid.rows}")
    shared = dataset.SharedFunctionalGroupsSequence[0] if dataset.get("SharedFunctionalGroupsSequence") else Dataset()
    groups = dataset.PerFrameFunctionalGroupsSequence
    kind = str(dataset.get("SegmentationType", "BINARY")).upper()
    for index, group in enumerate(groups):

        def item(name: str, group: Dataset = group) -> Dataset:
            found = group.get(name) or shared.get(name)
            return found[0] if found else Dataset()

        at = grid.place(
            np.array(item("PlanePositionSequence").ImagePositionPatient, np.float64),
            [float(v) for v in item("PlaneOrientationSequence").ImageOrientationPatient],
            [float(v) for v in item("PixelMeasuresSequence").PixelSpacing],
        )
        values = _frame_values(dataset, index, len(groups))
        if kind == "LABELMAP":
            for number in np.unique(values[values != 0]):
                yield int(number), at, values == number
        else:
            number = int(item("SegmentIdentificationSequence").ReferencedSegmentNumber)
            most = float(dataset.MaximumFractionalValue) if kind == "FRACTIONAL" else 1.0
            yield number, at, values >= 0.5 * most


def _frame_values(dataset: Dataset, index: int, count: int) -> NDArray[Any]:
    """The pixels of one frame (rows, columns); bits are packed without a gap between frames."""
    size = int(dataset.Rows) * int(dataset.Columns)
    if int(dataset.BitsAllocated) == 1 and is_native(dataset):
        if len(dataset.PixelData) * 8 < size * count:
            raise DataError("the segmentation ends too early", where="", why="its last frames are missing",
                            fix="copy or fetch the file again", code="E_TRUNCATED")  # fmt: skip
        begin = index * size
        packed = np.frombuffer(dataset.PixelData, np.uint8, (begin + size + 7) // 8 - begin // 8, begin // 8)
        bits = np.unpackbits(packed, bitorder="little")[begin % 8 : begin % 8 + size]
        return bits.reshape(int(dataset.Rows), int(dataset.Columns))
    values: NDArray[Any] = pixel_array(dataset, index=index, raw=True)
    return values


# ---- RTSTRUCT


def _contours(dataset: Dataset, grid: _SliceGrid) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Number of the structure, slice and mask of all its contours there; a contour within another is a hole."""
    from skimage.draw import polygon2mask  # scikit-image is slow to import

    for roi in dataset.get("ROIContourSequence", []):
        masks: dict[int, NDArray[np.bool_]] = {}
        for contour in roi.get("ContourSequence", []):
            if not str(contour.get("ContourGeometricType", "")).startswith("CLOSED"):
                continue  # points and lines have no inside
            points = grid.voxels(np.array(contour.ContourData, np.float64).reshape(-1, 3))
            at = grid.slice_of(points[:, 2])
            inside = polygon2mask((grid.rows, grid.columns), points[:, 1::-1])
            masks[at] = np.logical_xor(masks[at], inside) if at in masks else inside
        for at, mask in masks.items():
            yield int(roi.ReferencedROINumber), at, mask
