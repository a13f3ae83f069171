"""DICOM volumes: a folder with the slices of one series, or one multi-frame file.

Headers are read with pydicom and checked here, because stacking is where volumes go wrong silently: a missing slice, a tilted
gantry or a second series in the folder changes the geometry, and common readers only average over it.

Source: DICOM PS3.3, C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups).
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

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.dicom_header import (
    TIMES_OF_SLICES,
    acquisition_of,
    dicom_fault,
    guarded,
    read_header,
)
from cmt_med.data.volumes.dicom_pixels import frame_values, is_native, stored_type
from cmt_med.data.volumes.dicom_series import files_of_series
from cmt_med.data.volumes.dicom_stack import Plane, stack_affine
from cmt_med.data.volumes.grid import check_matrix
from cmt_med.data.volumes.header import Opened, VolumeHeader, as_tuples, check_shape
from cmt_med.data.volumes.streams import readable_name


@dataclass(frozen=True)
class Frame:
    """One slice: its place, file and number within the file, how stored values become real ones, how it was acquired."""

    plane: Plane
    path: Path
    header: Dataset
    number: int
    slope: float
    intercept: float
    acquisition: Mapping[str, tuple[str | float, ...]]


def read_series(folder: Path) -> Opened:
    """The volume whose slices are the files of a folder.

    Raises:
        DataError: E_DICOM for slices that do not make up one volume; E_FORMAT for a file among them that is not DICOM; E_IO,
            E_SIZE, E_TRUNCATED, E_DTYPE, E_GEOMETRY.
    """
    return guarded(lambda: _series(folder, readable_name(folder)), readable_name(folder))


def read_file(path: Path) -> Opened:
    """The volume in one multi-frame file.

    Raises:
        DataError: as :func:`read_series`; E_DICOM for a single slice.
    """
    return guarded(lambda: _multiframe(path, readable_name(path)), readable_name(path))


def frames_of_series(paths: Sequence[Path]) -> list[Frame]:
    """The slices of a series, in no order: one a file, or the frames of one file.

    Raises:
        DataError: as :func:`read_series`.
    """
    header = read_header(paths[0])
    if len(paths) == 1 and "PerFrameFunctionalGroupsSequence" in header:
        return _frames_of_file(paths[0], header)
    return [_frame_of_slice(path, read_header(path)) for path in paths]


def _series(folder: Path, where: str) -> Opened:
    frames, strange = [], []
    paths = files_of_series(folder)
    for path in paths:
        try:
            header = read_header(path)
        except DataError as error:
            if error.code != "E_FORMAT":
                raise
            strange.append(error)
            continue
        if "PerFrameFunctionalGroupsSequence" in header:
            if len(paths) == 1:
                return read_file(path)
            raise dicom_fault(
                "the folder holds multi-frame files", where, f"{path.name} is a volume of its own", "give that file"
            )
        frames.append(_frame_of_slice(path, header))
    if not frames:
        raise DataError("the folder holds no DICOM slices", where=where, why="a folder is a volume only as a DICOM series",
                        fix="give the path of the image file", code="E_IO")  # fmt: skip
    if strange:
        raise strange[0]
    _require_one_series(frames, where)
    return _opened(frames, where)


def _multiframe(path: Path, where: str) -> Opened:
    header = read_header(path)
    if "PerFrameFunctionalGroupsSequence" not in header:
        _require_one_frame(header, where)
        raise dicom_fault(
            "one slice of a series",
            where,
            "a volume needs all of them",
            "give the folder that holds the slices of the series",
        )
    if not is_native(header):
        raise dicom_fault(
            "a compressed multi-frame file", where, "its frames cannot be matched to their places with certainty",
            "decompress it (gdcmconv --raw), or convert it (dcm2niix)",
        )  # fmt: skip
    return _opened(_frames_of_file(path, header), where)


def _frame_of_slice(path: Path, header: Dataset) -> Frame:
    def build() -> Frame:
        _require_one_frame(header, readable_name(path))
        plane = _plane(readable_name(path), header, header, header, header)
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        return Frame(plane, path, header, 0, slope, intercept, acquisition_of([header]))

    return guarded(build, readable_name(path))


def _require_one_frame(header: Dataset, where: str) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise dicom_fault(
            f"the file holds {header.NumberOfFrames} frames and does not say where each of them lies", where,
            "all but the first would be lost", "export it as an enhanced multi-frame file or as single slices, or convert it",
        )  # fmt: skip


def _frames_of_file(path: Path, header: Dataset) -> list[Frame]:
    shared = header.SharedFunctionalGroupsSequence[0] if header.get("SharedFunctionalGroupsSequence") else Dataset()
    frames = []
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != int(header.NumberOfFrames):
        raise ValueError(f"NumberOfFrames is {header.NumberOfFrames}, {len(groups)} are described")
    for number, group in enumerate(groups):

        def item(name: str, group: Dataset = group) -> Dataset:
            found = group.get(name) or shared.get(name)
            return found[0] if found else Dataset()

        place, turned = item("PlanePositionSequence"), item("PlaneOrientationSequence")
        plane = _plane(
            f"{readable_name(path)} frame {number + 1}", header, place, turned, item("PixelMeasuresSequence")
        )
        values = item("PixelValueTransformationSequence")
        slope, intercept = _rescale_of_frame(header, values, plane.name)
        described = acquisition_of([*_described(shared), *_described(group)])
        frames.append(Frame(plane, path, header, number, slope, intercept, described))
    if len({bool(group.get("PixelValueTransformationSequence") or shared.get("PixelValueTransformationSequence"))
            for group in groups}) > 1:  # fmt: skip
        raise _fault_of_mixed_rescales(readable_name(path))
    return frames


def _described(group: Dataset) -> list[Dataset]:
    """The descriptions in a functional group: of echoes, diffusion, place in time and others."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def _rescale_of_frame(header: Dataset, values: Dataset, name: str) -> tuple[float, float]:
    inner = float(values.get("RescaleSlope", 1)), float(values.get("RescaleIntercept", 0))
    outer = float(header.get("RescaleSlope", inner[0])), float(header.get("RescaleIntercept", inner[1]))
    if inner != outer:
        raise dicom_fault(
            "RescaleSlope and RescaleIntercept of the file are not those of its frames", name,
            "some readers apply the ones and some the others", "export the series again, or as single slices",
        )  # fmt: skip
    return inner


def _plane(name: str, header: Dataset, place: Dataset, turned: Dataset, measures: Dataset) -> Plane:
    for source, keyword in (
        (place, "ImagePositionPatient"),
        (turned, "ImageOrientationPatient"),
        (measures, "PixelSpacing"),
    ):
        if not source.get(keyword):
            raise dicom_fault(
                f"the slice has no {keyword}", name, "it has no place in the patient", "export the series again"
            )

    def numbers(source: Dataset, keyword: str, count: int) -> tuple[float, ...]:
        found = tuple(float(v) for v in source[keyword].value)
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(f"{keyword} is {found}")
        return found

    spacing = measures.get("SpacingBetweenSlices", header.get("SpacingBetweenSlices"))
    thickness = measures.get("SliceThickness", header.get("SliceThickness"))
    number = header.get("InstanceNumber") if place is header else None
    return Plane(
        name=name,
        position=numbers(place, "ImagePositionPatient", 3),
        orientation=numbers(turned, "ImageOrientationPatient", 6),
        pixel=numbers(measures, "PixelSpacing", 2),
        shape=(int(header.Columns), int(header.Rows)),
        between=float(spacing) if spacing else None,
        thickness=float(thickness) if thickness else None,
        instance=str(header.get("SOPInstanceUID", "")) if place is header else name,
        number=None if number in (None, "") else int(number),
    )


def _require_one_series(frames: Sequence[Frame], where: str) -> None:
    series: dict[str, list[Frame]] = {}
    for frame in frames:
        series.setdefault(str(frame.header.get("SeriesInstanceUID", "")), []).append(frame)
    if len(series) > 1:
        listed = "; ".join(
            f"{members[0].header.get('SeriesDescription', 'no description')} ({len(members)} slices, e.g. {members[0].path.name})"
            for members in list(series.values())[:8]
        )
        raise dicom_fault(
            f"the folder holds {len(series)} series", where, f"their slices would be mixed into one volume: {listed}",
            "put each series into a folder of its own",
        )  # fmt: skip
    if len({str(frame.header.get("PatientID", "")) for frame in frames}) > 1:  # which are not repeated in the message
        raise dicom_fault("the slices are of several patients", where, "they differ in PatientID",
                          "put each series into a folder of its own")  # fmt: skip
    for keyword in ("FrameOfReferenceUID", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "Modality"):
        values = {str(frame.header.get(keyword, "missing")) for frame in frames}
        if len(values) > 1:
            raise dicom_fault(f"the slices differ in {keyword}: {', '.join(sorted(values)[:4])}", where,
                         "they do not belong to one volume", "put each series into a folder of its own")  # fmt: skip


def _require_one_acquisition(frames: Sequence[Frame], where: str) -> None:
    """Raise where slices that lie behind each other belong to several volumes, or one slice lies at two places."""
    for keyword in sorted({keyword for frame in frames for keyword in frame.acquisition}):
        found: dict[tuple[str | float, ...], Frame] = {}
        for frame in frames:
            found.setdefault(frame.acquisition.get(keyword, ("missing",)), frame)
        if keyword in TIMES_OF_SLICES and 2 * len(found) > len(frames):
            continue  # one slice after the other, as scanners note it for a single volume
        if len(found) > 1:
            listed = "; ".join(
                f"{', '.join(f'{v:g}' if isinstance(v, float) else v for v in values)} ({frame.plane.name})"
                for values, frame in list(found.items())[:4]
            )
            raise dicom_fault(
                f"the slices differ in {keyword}", where,
                f"{listed}{' and others' if len(found) > 4 else ''}: several echoes, time points or acquisitions in one series",
                "put the slices of each into a folder of its own",
            )  # fmt: skip
    places: dict[str, Plane] = {}
    for plane in (frame.plane for frame in frames):
        other = places.setdefault(plane.instance, plane) if plane.instance else plane
        if not np.allclose(other.position, plane.position, atol=0.01):
            raise dicom_fault(
                f"one SOPInstanceUID is at two places: {plane.instance}", where, f"{other.name} and {plane.name}; it names one "
                "slice, so one of the two was changed", "fetch the series again",
            )  # fmt: skip


def _opened(frames: Sequence[Frame], where: str) -> Opened:
    _require_one_acquisition(frames, where)
    affine, order = stack_affine([frame.plane for frame in frames], where)
    frames = [frames[i] for i in order]
    shape = (*frames[0].plane.shape, len(frames))
    rescales = {(frame.slope, frame.intercept) for frame in frames}
    if len({("RescaleSlope" in f.header, "RescaleIntercept" in f.header) for f in frames}) > 1:
        raise _fault_of_mixed_rescales(where)
    if not np.isfinite(list(rescales)).all() or any(slope == 0 for slope, _ in rescales):
        raise dicom_fault("a slice has no valid RescaleSlope and RescaleIntercept", where, f"there is {sorted(rescales)[:3]}",
                     "export the series again")  # fmt: skip
    raw = len(rescales) == 1 and all(is_native(frame.header) for frame in frames)
    dtype = stored_type(frames[0].header) if raw else "<f4"
    check_shape(shape, int(dtype[-1]), where)
    check_matrix(affine, shape, where, "stack of slices")
    slope, intercept = rescales.pop() if raw else (1.0, 0.0)
    notes = tuple(
        {"the pixels were compressed with loss" for f in frames if f.header.get("LossyImageCompression") == "01"}
    )
    stored = VolumeHeader("DICOM", shape, dtype, as_tuples(affine), slope, intercept, notes=notes)
    return Opened(stored, _pixels(frames, dtype, raw=raw))


def _fault_of_mixed_rescales(where: str) -> DataError:
    return dicom_fault("some slices have RescaleSlope and RescaleIntercept, some have not", where,
                       "their values would not be comparable", "export the series again")  # fmt: skip


def _pixels(frames: Sequence[Frame], dtype: str, *, raw: bool) -> Iterator[bytes]:
    opened: tuple[Path, Any] | None = None
    for frame in frames:
        where = readable_name(frame.path)
        if opened is None or opened[0] != frame.path:  # the frames of one file share it
            opened = (frame.path, guarded(lambda path=frame.path: pydicom.dcmread(path), where))  # type: ignore[misc]
        dataset = opened[1]
        values: NDArray[Any] = guarded(lambda d=dataset, f=frame: frame_values(d, f.path, f.number), where)  # type: ignore[misc]
        if not raw and is_native(frame.header):
            values = values.astype(np.float64) * frame.slope + frame.intercept
        yield np.ascontiguousarray(values, dtype=dtype).tobytes()
