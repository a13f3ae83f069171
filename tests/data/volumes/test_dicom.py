"""DICOM series (row 18 of the table): equal to SimpleITK where that is right, refused where a volume would be wrong."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.decoder import Decoder, decode
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.gate import grid_of
from cmt_med.data.volumes.values import brightness
from tests.data.made import refusal

COLUMNS, ROWS, SLICES = 7, 6, 5
PIXELS = np.random.default_rng(0).integers(-1000, 3000, (SLICES, ROWS, COLUMNS)).astype(np.int16)
TURNED = (np.cos(0.2), np.sin(0.2), 0.0, 0.0, 0.0, -1.0)  # a coronal plane, turned by 11 degrees
Change = Callable[[Dataset, int], object]


def series(folder: Path, change: Change = lambda d, i: None, orientation: tuple[float, ...] = TURNED) -> Path:
    """A CT series of five slices 2.5 mm apart, files named against their order; ``change(dataset, number)`` edits a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    uids = {name: generate_uid(entropy_srcs=[name]) for name in ("series", "study", "frame")}
    for number in range(SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uids["series"], uids["study"]
        dataset.FrameOfReferenceUID, dataset.Modality, dataset.SeriesDescription = uids["frame"], "CT", "head"
        dataset.PatientName, dataset.PatientID, dataset.InstanceNumber = "nobody", "0", number + 1
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.5
        dataset.ImageOrientationPatient = [float(v) for v in orientation]
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.array([-20, 15, 40]) + 2.5 * number * normal]
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -24
        dataset.PixelData = PIXELS[number].tobytes()
        change(dataset, number)
        dataset.save_as(folder / f"s{SLICES - number}.dcm", enforce_file_format=True)
    return folder


def test_equals_simpleitk(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    volume = decode(folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(brightness(volume, "x"), SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_array_equal(brightness(volume, "x"), PIXELS.T * 2.0 - 24)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(grid_of(volume).affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-4)
    assert np.allclose(grid_of(volume).spacing, (0.5, 0.75, 2.5), atol=1e-5)


def test_transfer_syntaxes(tmp_path: Path) -> None:
    expected = brightness(decode(series(tmp_path / "plain")), "x")

    def packed(dataset: Dataset, number: int) -> None:
        dataset.compress(RLELossless)

    def deflated(dataset: Dataset, number: int) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    for name, change in (("rle", packed), ("deflated", deflated)):
        np.testing.assert_array_equal(brightness(decode(series(tmp_path / name, change)), "x"), expected)

    def jpeg2000(dataset: Dataset, number: int) -> None:
        packed = io.BytesIO()
        image = Image.fromarray((PIXELS[number] + 1000).astype(np.uint16))
        image.save(packed, "JPEG2000", irreversible=False, num_resolutions=1, no_jp2=True)
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, -2024
        dataset.PixelData = encapsulate([packed.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless

    folder = series(tmp_path / "j2k", jpeg2000)
    np.testing.assert_array_equal(brightness(decode(folder), "x"), expected)
    content = (folder / "s2.dcm").read_bytes()
    for keep in (len(content) - 8, len(content) - 60):
        (folder / "s2.dcm").write_bytes(content[:keep])
        error = refusal(folder)
        assert error.code in ("E_TRUNCATED", "E_DICOM")
        assert "s2.dcm" in error.where


def test_big_endian(tmp_path: Path) -> None:
    expected = brightness(decode(series(tmp_path / "s")), "x")
    for file in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(brightness(decode(tmp_path / "s"), "x"), expected)


def test_lossless_jpeg(tmp_path: Path) -> None:
    expected = brightness(decode(series(tmp_path / "plain")), "x")

    def packed(dataset: Dataset, number: int) -> None:
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "x.dcm"))
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.Execute(SimpleITK.GetImageFromArray(PIXELS[number]))
        written = pydicom.dcmread(tmp_path / "x.dcm")
        assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = JPEGLosslessSV1, written.PixelData
        dataset["PixelData"].is_undefined_length = True

    np.testing.assert_array_equal(brightness(decode(series(tmp_path / "jpeg", packed)), "x"), expected)


def test_one_real_slice_in_every_transfer_syntax(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "odd_files" / "pydicom" / "src" / "pydicom" / "data" / "test_files"
    expected = pydicom.dcmread(source / "MR_small.dcm").pixel_array
    for ending in ("", "_implicit", "_bigendian", "_expb", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"):
        folder = tmp_path / f"s{ending}"
        folder.mkdir()
        for number in range(2):
            dataset = pydicom.dcmread(source / f"MR_small{ending}.dcm")
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
            turned = dataset.ImageOrientationPatient
            moved(dataset, tuple(number * float(dataset.SliceThickness) * np.cross(turned[:3], turned[3:])))
            dataset.save_as(folder / f"{number}.dcm")
        np.testing.assert_array_equal(brightness(decode(folder), "x"), np.stack([expected] * 2).T)


def test_slopes_may_differ_between_slices(tmp_path: Path) -> None:
    """As in PET, where every slice uses the whole range of its bits."""
    folder = series(tmp_path / "s", lambda d, i: setattr(d, "RescaleSlope", 0.25 * (i + 1)))
    found = brightness(decode(folder), "x")
    np.testing.assert_allclose(found, (PIXELS * 0.25 * np.arange(1, 6)[:, None, None] - 24).T, rtol=1e-6)


def test_other_files_beside_the_slices(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    for name in ("DICOMDIR", "readme.txt", ".hidden", "LICENSE", "thumb.jpg", "s.json", "Thumbs.db", "desktop.ini"):
        (folder / name).write_text("something else")
    assert decode(folder).array.shape == (COLUMNS, ROWS, SLICES)
    (folder / "s9.dcm").write_bytes(b"\0" * 4000)
    error = refusal(folder)
    assert error.code == "E_FORMAT"
    assert "s9.dcm" in error.where


NAMES = ["s.img", ".slice", "s.gz", "s.raw", "s.zip", "s.txt", "s.nii.gz", "README", "License.3", "DICOMDIR_7", "s.db"]


@pytest.mark.fault(9)
@pytest.mark.parametrize("name", NAMES)
def test_slices_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    folder = series(tmp_path / "s")
    expected = decode(folder)
    (folder / "s5.dcm").rename(folder / name)  # the lowest slice: without it, the others would still be a volume
    found = decode(folder)
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.stored.affine == expected.stored.affine
    assert is_series(folder)


@pytest.mark.fault(9)
@pytest.mark.parametrize("missing", [False, True])
def test_a_real_series_under_other_names(tmp_path: Path, real_data: Path, missing: bool) -> None:
    source = sorted((real_data / "dicom_glioma" / "11-T1post-18670").iterdir())
    for number, file in enumerate(source):
        shutil.copy(file, tmp_path / (f"{number}.img" if number % 3 else file.name))
    assert decode(tmp_path).array.shape[2] == len(source) == 22
    if missing:
        (tmp_path / "10.img").unlink()
        assert refusal(tmp_path).code == "E_DICOM"


@pytest.mark.fault(9)
def test_a_slice_inside_gzip_is_not_passed_over(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    (folder / "s5.dcm.gz").write_bytes(gzip.compress((folder / "s5.dcm").read_bytes()))
    (folder / "s5.dcm").unlink()
    error = refusal(folder)
    assert error.code == "E_FORMAT"
    assert "s5.dcm.gz" in error.where
    assert "unpack" in error.fix


@pytest.mark.fault(9)
def test_the_directory_of_a_disc_is_no_slice(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    directory = pydicom.dcmread(folder / "s1.dcm")
    directory.SOPClassUID = directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(folder / "DICOMDIR")
    assert decode(folder).array.shape == (COLUMNS, ROWS, SLICES)


ACQUISITIONS: dict[str, tuple[Any, Any]] = {
    "EchoTime": (2.46, 9.84), "EchoNumbers": (1, 2), "InversionTime": (100, 900), "FlipAngle": (5, 15),
    "DiffusionBValue": (0.0, 1000.0), "DiffusionGradientOrientation": ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    "TemporalPositionIdentifier": (1, 2), "TemporalPositionIndex": (1, 2), "TriggerTime": (0, 400),
}  # fmt: skip


@pytest.mark.fault(10)
@pytest.mark.parametrize("keyword", ACQUISITIONS)
def test_one_volume_is_of_one_acquisition(tmp_path: Path, keyword: str) -> None:
    one, other = ACQUISITIONS[keyword]
    decode(series(tmp_path / "same", lambda d, i: setattr(d, keyword, one)))
    error = refusal(series(tmp_path / "two", lambda d, i: setattr(d, keyword, other if i > 2 else one)))
    assert error.code == "E_DICOM"
    assert keyword in error.what
    values = one if isinstance(one, list) else [one]
    assert all(f"{value:g}" in error.why for value in values)
    error = refusal(series(tmp_path / "lacking", lambda d, i: i > 2 and setattr(d, keyword, one)))
    assert keyword in error.what
    assert "missing" in error.why


def test_slices_that_were_taken_one_after_the_other(tmp_path: Path) -> None:
    """Some scanners note the time of every slice where others note that of a heart's phase."""
    folder = series(tmp_path / "s", lambda d, i: setattr(d, "TriggerTime", 40 * i))
    assert decode(folder).array.shape == (COLUMNS, ROWS, SLICES)


@pytest.mark.fault(10)
def test_echo_times_that_differ_by_rounding(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", lambda d, i: setattr(d, "EchoTime", "2.46" if i % 2 else "2.460001"))
    assert decode(folder).array.shape == (COLUMNS, ROWS, SLICES)


@pytest.mark.fault(10)
def test_frames_of_one_file_are_of_one_acquisition(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "m" / "e.dcm")
    dataset = pydicom.dcmread(path)
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 30.0 if number > 2 else 10.0
        frame.MREchoSequence = [echo]
    dataset.save_as(path)
    error = refusal(path)
    assert error.code == "E_DICOM"
    assert "EffectiveEchoTime" in error.what


@pytest.mark.fault(10)
def test_one_slice_at_two_places(tmp_path: Path) -> None:
    error = refusal(series(tmp_path / "s", lambda d, i: i > 2 and setattr(d, "SOPInstanceUID", "1.2.3")))
    assert error.code == "E_DICOM"
    assert "1.2.3" in error.what
    assert "s2.dcm" in error.why
    assert "s1.dcm" in error.why


def moved(dataset: Dataset, by: tuple[float, float, float]) -> None:
    dataset.ImagePositionPatient = [float(a + b) for a, b in zip(dataset.ImagePositionPatient, by, strict=True)]


def tilted(dataset: Dataset, number: int) -> None:
    moved(dataset, tuple(0.8 * number * np.array(TURNED[3:])))  # 18 degrees


FAULTS: dict[str, tuple[Change, str, str, str]] = {
    "gantry tilt": (tilted, "E_DICOM", "gantry tilt of 17.7 degrees", "dcm2niix"),
    "uneven": (lambda d, i: i == 3 and moved(d, (0.2, 1.0, 0)), "E_DICOM", "not evenly spaced", "resample"),
    "same place": (
        lambda d, i: i == 3 and setattr(d, "ImagePositionPatient", [-20, 15, 40]), "E_DICOM", "same place", "folder of its own",
    ),
    "mixed orientations": (
        lambda d, i: i == 2 and setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), "E_DICOM", "mixed orientations",
        "folder of their own",
    ),
    "mixed series": (
        lambda d, i: i > 2 and setattr(d, "SeriesInstanceUID", "1.2.3"), "E_DICOM", "2 series", "folder of its own",
    ),
    "mixed frames of reference": (
        lambda d, i: i > 2 and setattr(d, "FrameOfReferenceUID", "1.2.3"), "E_DICOM", "FrameOfReferenceUID", "folder of its own",
    ),
    "mixed pixel sizes": (lambda d, i: i == 1 and setattr(d, "PixelSpacing", [1, 1]), "E_DICOM", "differ in size", "folder"),
    "other size": (
        lambda d, i: i == 1 and (setattr(d, "Rows", COLUMNS), setattr(d, "Columns", ROWS)), "E_DICOM", "differ in size", "folder",
    ),
    "no position": (lambda d, i: i == 1 and delattr(d, "ImagePositionPatient"), "E_DICOM", "ImagePositionPatient", "export"),
    "no orientation": (lambda d, i: delattr(d, "ImageOrientationPatient"), "E_DICOM", "ImageOrientationPatient", "export"),
    "no pixel size": (lambda d, i: delattr(d, "PixelSpacing"), "E_DICOM", "PixelSpacing", "export"),
    "skew orientation": (
        lambda d, i: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0]), "E_DICOM", "perpendicular", "export",
    ),
    "colours": (lambda d, i: setattr(d, "PhotometricInterpretation", "RGB"), "E_DTYPE", "RGB", "grey"),
    "inverted": (lambda d, i: setattr(d, "PhotometricInterpretation", "MONOCHROME1"), "E_DTYPE", "MONOCHROME1", "grey"),
    "truncated pixels": (lambda d, i: i == 4 and setattr(d, "PixelData", bytes(40)), "E_TRUNCATED", "too early", "again"),
    "no pixels": (lambda d, i: i == 4 and delattr(d, "PixelData"), "E_TRUNCATED", "too early", "again"),
    "more pixels": (lambda d, i: i == 4 and setattr(d, "PixelData", bytes(100)), "E_DICOM", "more pixels", "export"),
    "bits that are not stored": (
        lambda d, i: (setattr(d, "BitsStored", 12), setattr(d, "HighBit", 11)), "E_DICOM", "12 bits can hold", "dcm2niix",
    ),
    "slope of zero": (lambda d, i: setattr(d, "RescaleSlope", 0), "E_DICOM", "RescaleSlope", "export"),
    "a plan": (lambda d, i: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5"), "E_DICOM", "RT Plan", "images"),
    "a segmentation": (
        lambda d, i: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4"), "E_DICOM", "Segmentation Storage", "images",
    ),
    "too large": (lambda d, i: (setattr(d, "Rows", 65535), setattr(d, "Columns", 65535)), "E_SIZE", "voxels", "crop"),
    "several frames in a slice": (
        lambda d, i: (setattr(d, "NumberOfFrames", 3), setattr(d, "PixelData", PIXELS[:3].tobytes())), "E_DICOM",
        "3 frames", "export",
    ),
    "several patients": (lambda d, i: i > 2 and setattr(d, "PatientID", "1"), "E_DICOM", "several patients", "folder"),
    "every second slice is missing by number and thickness": (
        lambda d, i: (setattr(d, "InstanceNumber", 9 - 2 * i), setattr(d, "SliceThickness", 1.25)), "E_DICOM",
        "only every 2. slice", "fetch",
    ),
    "every second slice is said to be missing": (
        lambda d, i: setattr(d, "SpacingBetweenSlices", 1.25) or setattr(d, "SliceThickness", 1.25), "E_DICOM",
        "only every 2. slice", "fetch",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "code", "what", "fix"), FAULTS.values(), ids=FAULTS)
def test_refused(tmp_path: Path, change: Change, code: str, what: str, fix: str) -> None:
    error = refusal(series(tmp_path / "s", change))
    assert error.code == code
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(("thickness", "between"), [(2, None), (1.25, 2.5), (1.25, 1.25), (None, None)])
def test_steps_of_numbers_alone_are_no_gap(tmp_path: Path, thickness: float | None, between: float | None) -> None:
    """As where the echoes of an interleaved scan were put into series of their own; the gap may be the distance's rest."""

    def every_second_number(dataset: Dataset, number: int) -> None:
        dataset.InstanceNumber, dataset.SliceThickness = 2 * number + 1, thickness
        if between is not None:
            dataset.SpacingBetweenSlices = between if between == 2.5 else 2.5

    def gaps(dataset: Dataset, number: int) -> None:
        every_second_number(dataset, number)
        moved(dataset, tuple(0.01 * number * np.cross(TURNED[:3], TURNED[3:])))

    for change in (every_second_number, gaps):
        assert decode(series(tmp_path / change.__name__, change)).array.shape == (COLUMNS, ROWS, SLICES)


@pytest.mark.parametrize("missing", [("s3.dcm",), ("s2.dcm", "s3.dcm")])
def test_missing_slice(tmp_path: Path, missing: tuple[str, ...]) -> None:
    folder = series(tmp_path / "s")
    for name in missing:
        (folder / name).unlink()
    error = refusal(folder)
    assert error.code == "E_DICOM"
    assert f"{len(missing)} slice" in error.what
    assert "missing" in error.what
    for name in ("s5.dcm", "s4.dcm", "s2.dcm"):
        (folder / name).unlink(missing_ok=True)
    assert "only one slice" in refusal(folder).what


def test_copy_of_a_slice(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    shutil.copy(folder / "s3.dcm", folder / "copy.dcm")
    error = refusal(folder)
    assert error.code == "E_DICOM"
    assert "same slice is there twice" in error.what
    assert "remove" in error.fix


@pytest.mark.parametrize("sign", [1, -1])
def test_order_of_files_does_not_matter(tmp_path: Path, sign: int) -> None:
    one = decode(series(tmp_path / "one"))
    for number, file in enumerate(sorted((tmp_path / "one").iterdir())[::sign]):
        (tmp_path / "two").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "two" / f"{number * 7 % 5}.dcm")
    two = decode(tmp_path / "two")
    np.testing.assert_array_equal(one.array, two.array)
    assert one.stored.affine == two.stored.affine


def enhanced(path: Path, **changes: Any) -> Path:
    """A multi-frame CT with frames against their order."""
    series(path.parent / "slices")
    dataset = pydicom.dcmread(path.parent / "slices" / "s1.dcm")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    shared, frames = Dataset(), []
    measures, turned, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 2.5
    turned.ImageOrientationPatient = list(TURNED)
    values.RescaleSlope, values.RescaleIntercept = 2, -24
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    shared.PixelValueTransformationSequence = [values]
    normal = np.cross(TURNED[:3], TURNED[3:])
    for number in range(SLICES)[::-1]:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [round(float(v), 6) for v in np.array([-20, 15, 40]) + 2.5 * number * normal]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    dataset.NumberOfFrames, dataset.SharedFunctionalGroupsSequence = SLICES, [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = PIXELS[::-1].tobytes()
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def test_multiframe_file(tmp_path: Path) -> None:
    slices = decode(series(tmp_path / "s"))
    path = enhanced(tmp_path / "m" / "e.dcm")
    volume = decode(path)
    np.testing.assert_array_equal(brightness(volume, "x"), brightness(slices, "x"))
    np.testing.assert_allclose(grid_of(volume).affine, grid_of(slices).affine, atol=1e-5)
    (tmp_path / "alone").mkdir()
    shutil.copy(path, tmp_path / "alone")
    assert decode(tmp_path / "alone").stored.shape == (COLUMNS, ROWS, SLICES)
    shutil.copy(path, tmp_path / "alone" / "again.dcm")
    assert "multi-frame" in refusal(tmp_path / "alone").what
    assert refusal(enhanced(tmp_path / "n" / "e.dcm", NumberOfFrames=4)).code == "E_DICOM"
    assert "not those of its frames" in refusal(enhanced(tmp_path / "r" / "e.dcm", RescaleSlope=3)).what
    decode(enhanced(tmp_path / "q" / "e.dcm", RescaleSlope=2, RescaleIntercept=-24))
    dataset = pydicom.dcmread(path)
    values = dataset.SharedFunctionalGroupsSequence[0].pop("PixelValueTransformationSequence")
    dataset.PerFrameFunctionalGroupsSequence[0].add(values)
    dataset.save_as(path)
    assert "some slices have RescaleSlope" in refusal(path).what
    assert refusal(enhanced(tmp_path / "o" / "e.dcm", PixelData=PIXELS[:4].tobytes())).code == "E_TRUNCATED"


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    error = refusal(folder / "s1.dcm")
    assert error.code == "E_DICOM"
    assert "folder" in error.fix
    shutil.copy(folder / "s1.dcm", tmp_path / "renamed.nii")
    assert refusal(tmp_path / "renamed.nii").code == "E_FORMAT"


def test_deflated_bomb_is_bounded_by_memory(tmp_path: Path) -> None:
    folder = series(
        tmp_path / "s",
        lambda d, i: (setattr(d.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian),
                      i == 2 and d.add_new(0x00291010, "OB", bytes(200_000_000))),
    )  # fmt: skip
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    decoder = Decoder(memory=100_000_000)
    with pytest.raises(DataError) as raised:
        decoder.decode(folder)
    assert raised.value.code == "E_MEMORY"
    assert decoder.decode(series(tmp_path / "t")).stored.shape == (COLUMNS, ROWS, SLICES)  # and it goes on
    decoder.close()


def test_real_series(real_data: Path) -> None:
    for folder in sorted((real_data / "dicom_glioma").iterdir()):
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        volume = decode(folder)
        np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).T)
        assert grid_of(volume).axes == "LPS"
