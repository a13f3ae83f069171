"""DICOM studies made of NIfTI files: an MR series with its segmentation, by highdicom, or with contours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import highdicom
import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def study(
    folder: Path, image: Path, label: Path | None = None, *, names: Mapping[int, str] | None = None, patient: str = "p",
    description: str = "T1w", series: str = "", segmentation: Path | None = None, storage: str = MR,
) -> list[Dataset]:  # fmt: skip
    """Write a series into ``folder``, and its segmentation to ``segmentation``, by default ``folder/seg.dcm``."""
    volume = nibabel.load(image)
    values = np.asarray(volume.dataobj).astype(np.float64)
    affine = LPS @ volume.affine
    slices = write_series(
        folder, values, affine, patient=patient, description=description, series=series, storage=storage
    )
    if label is not None and names is not None:
        numbers = np.asarray(nibabel.load(label).dataobj).round().astype(np.uint8)
        target = segmentation or folder / "seg.dcm"
        write_segmentation(target, slices, numbers, names)
    return slices


def write_series(
    folder: Path, values: NDArray[np.float64], affine: NDArray[np.float64], *, patient: str, description: str,
    series: str = "", storage: str = MR,
) -> list[Dataset]:  # fmt: skip
    """Slices along the last axis; values are whole numbers, ``affine`` leads to DICOM's millimetres."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    turned = affine[:3, :3] / spacing
    name = series or description
    uids = {kind: generate_uid(entropy_srcs=[kind, patient, name if kind == "series" else ""]) for kind in
            ("study", "series", "frame")}  # fmt: skip
    made = []
    for k in range(values.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = storage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, name, str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        slice_.SOPClassUID, slice_.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = uids["study"], uids["series"]
        slice_.FrameOfReferenceUID, slice_.Modality = uids["frame"], "MR" if storage == MR else "CT"
        slice_.PatientID, slice_.PatientName, slice_.SeriesDescription = patient, "nobody", description
        slice_.PatientBirthDate = slice_.PatientSex = slice_.StudyTime = slice_.AccessionNumber = slice_.StudyID = ""
        slice_.ReferringPhysicianName, slice_.StudyDate, slice_.PositionReferenceIndicator = "", "20200101", ""
        slice_.InstanceNumber, slice_.SeriesNumber, slice_.SamplesPerPixel = k + 1, 1, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 1
        slice_.Columns, slice_.Rows = values.shape[:2]
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelSpacing, slice_.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
        slice_.ImageOrientationPatient = [round(float(v), 8) for v in (*turned[:, 0], *turned[:, 1])]
        slice_.ImagePositionPatient = [round(float(v), 6) for v in affine[:3, 3] + k * affine[:3, 2]]
        slice_.PixelData = values[..., k].T.astype(np.int16).tobytes()
        slice_.save_as(folder / f"IM{k:04d}.dcm", enforce_file_format=True)
        made.append(slice_)
    return made


def write_segmentation(
    path: Path, slices: list[Dataset], numbers: NDArray[np.uint8], names: Mapping[int, str], kind: str = "BINARY"
) -> None:
    """A SEG of a label map (columns, rows, slices) with a segment for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Hippocampus,
            algorithm_type="MANUAL",
        )
        for number, name in names.items()
    ]
    planes = np.moveaxis(numbers, (0, 1, 2), (2, 1, 0))
    if kind == "FRACTIONAL":
        planes = np.stack([(planes == number) * np.float32(0.9) for number in names], axis=-1)
    highdicom.seg.Segmentation(
        slices, planes, kind, described, series_instance_uid=generate_uid(), series_number=9, sop_instance_uid=generate_uid(),
        instance_number=1, manufacturer="tests", manufacturer_model_name="tests", software_versions="1",
        device_serial_number="1",
    ).save_as(path)  # fmt: skip


def write_structures(
    path: Path,
    slices: list[Dataset],
    contours: Mapping[str, list[NDArray[np.float64]]],
    kinds: Mapping[str, str] | None = None,
) -> None:
    """An RTSTRUCT with closed contours, points (n, 3) in DICOM's millimetres, under each name."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = slices[0].StudyInstanceUID, generate_uid()
    made.PatientID, made.Modality = slices[0].PatientID, "RTSTRUCT"
    series, study_, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    study_.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study_]
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for number, (name, shapes) in enumerate(contours.items(), 1):
        roi, outline, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        outline.ReferencedROINumber, outline.ContourSequence = number, []
        observed.ReferencedROINumber, observed.RTROIInterpretedType = number, (kinds or {}).get(name, "ORGAN")
        for points in shapes:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [round(float(v), 4) for v in points.ravel()]
            outline.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(outline)
        made.RTROIObservationsSequence.append(observed)
    made.save_as(path, enforce_file_format=True)
