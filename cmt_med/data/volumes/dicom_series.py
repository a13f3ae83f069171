"""Which DICOM files belong together: the few tags that say so, and the slices of one series among others.

A folder that holds one series is its path. Where several share a folder, as in most exports, the path of one is
``FOLDER/SERIES_INSTANCE_UID.series``: there is no such file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.dicom_header import dicom_fault, guarded, is_dicom, slices_in
from cmt_med.data.volumes.endings import SERIES_ENDING
from cmt_med.data.volumes.recognise import dicom_among
from cmt_med.data.volumes.streams import io_error, readable_name

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, Label Map Segmentation Storage."""
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
"""RT Structure Set Storage."""
MAX_FOLDERS = 5_000
"""Among which the series of a segmentation is searched."""
_UID = re.compile(r"[0-9.]{1,64}\Z")
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "SeriesDescription",
    "ProtocolName", "ContrastBolusAgent", "ImageType", "ScanningSequence", "InversionTime", "EchoTime",
    "RepetitionTime", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "StudyDate",
)  # fmt: skip


@dataclass(frozen=True)
class Tags:
    """What one DICOM file says of itself; empty where it says nothing.

    Attributes:
        path: of the file.
        storage: SOP class.
        instance, series, study: unique identifiers.
        patient: PatientID, which is never shown.
        modality: ``"MR"``, ``"CT"``, ``"PT"``, ``"SEG"``, ...
        description, protocol: of the series, for people.
        contrast: whether a contrast agent is named.
        kinds: ImageType.
        inversion, echo, repetition: times in ms, 0 if absent.
        inverted: whether ScanningSequence has an inversion recovery.
        place: position and orientation of a slice in mm, pixel spacing in mm, rows and columns; of a multi-frame file the last
            two alone.
        frames: in the file.
        date: of the study.
        damage: why the file cannot be understood.
    """

    path: Path
    storage: str = ""
    instance: str = ""
    series: str = ""
    study: str = ""
    patient: str = ""
    modality: str = ""
    description: str = ""
    protocol: str = ""
    contrast: bool = False
    kinds: tuple[str, ...] = ()
    inversion: float = 0.0
    echo: float = 0.0
    repetition: float = 0.0
    inverted: bool = False
    place: tuple[float, ...] = ()
    frames: int = 1
    date: str = ""
    damage: str = ""


def series_path(folder: Path, uid: str) -> Path:
    """The path of one series in a folder with several."""
    return folder / f"{uid}{SERIES_ENDING}"


def is_one_of_several(path: Path) -> bool:
    """Tell whether a path is one that :func:`series_path` made."""
    uid = path.name.removesuffix(SERIES_ENDING)
    return uid != path.name and bool(_UID.match(uid)) and not os.path.lexists(path)


def files_of_series(path: Path) -> list[Path]:
    """The files of a series: those in its folder that could be slices, or the ones with its identifier.

    Raises:
        DataError: E_IO, also if no file has the identifier; E_SIZE.
    """
    if not is_one_of_several(path):
        return slices_in(path)
    uid = path.name.removesuffix(SERIES_ENDING)
    found = [tags.path for tags in objects_in(path.parent) if tags.series == uid or tags.damage]
    if not found:
        raise DataError(
            "the folder has no such series", where=readable_name(path.parent), why=f"no slice has the SeriesInstanceUID {uid}",
            fix="make the case list again: cmt-med init", code="E_IO",
        )  # fmt: skip
    return found


def read_tags(path: Path) -> Tags | None:
    """The tags of a file; None if it is not DICOM.

    Raises:
        DataError: E_IO, E_DICOM if it is damaged.
    """
    where = readable_name(path)
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(132)):
                return None
    except OSError as error:
        raise io_error(error, path) from error
    return guarded(lambda: _tags(path), where)


def _tags(path: Path) -> Tags:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))

    def text(key: str) -> str:
        return str(header.get(key) or "").strip()

    def number(key: str) -> float:
        value = header.get(key)
        return float(value) if value not in (None, "") else 0.0

    def several(key: str) -> tuple[str, ...]:
        value = header.get(key)
        return tuple(map(str, value)) if value and not isinstance(value, str) else (str(value),) if value else ()

    def numbers(key: str) -> tuple[float, ...]:
        return tuple(float(value) for value in header.get(key) or ())

    return Tags(
        path, storage=text("SOPClassUID") or str(header.file_meta.get("MediaStorageSOPClassUID", "")),
        instance=text("SOPInstanceUID"), series=text("SeriesInstanceUID"), study=text("StudyInstanceUID"),
        patient=text("PatientID"), modality=text("Modality"), description=text("SeriesDescription"),
        protocol=text("ProtocolName"), contrast=bool(text("ContrastBolusAgent")), kinds=several("ImageType"),
        inversion=number("InversionTime"), echo=number("EchoTime"), repetition=number("RepetitionTime"),
        inverted="IR" in several("ScanningSequence"),
        place=(*numbers("ImagePositionPatient"), *numbers("ImageOrientationPatient"), *numbers("PixelSpacing"), number("Rows"),
               number("Columns")), frames=int(number("NumberOfFrames") or 1), date=text("StudyDate"),
    )  # fmt: skip


def objects_in(folder: Path) -> tuple[Tags, ...]:
    """The tags of every file directly in a folder that could be a slice; of one that is none, what is wrong with it.

    Raises:
        DataError: E_IO, E_SIZE.
    """
    try:
        changed = folder.stat().st_mtime_ns
    except OSError as error:
        raise io_error(error, folder) from error
    return _objects_in(folder.absolute(), changed)


@functools.lru_cache(maxsize=256)
def _objects_in(folder: Path, _changed: int) -> tuple[Tags, ...]:
    found = []
    for path in slices_in(folder):
        try:
            tags = read_tags(path)
        except DataError as error:
            if error.code != "E_DICOM":
                raise
            tags = Tags(path, damage=error.why)
        found.append(tags or Tags(path, damage="it is not DICOM"))
    return tuple(found)


def series_beside(file: Path, wanted: Callable[[Tags], bool]) -> list[Path]:
    """The slices of the series that a segmentation belongs to: in its folder, below it, or below the folder above.

    The first slice of each folder is looked at before all others, since most folders hold one series.

    Raises:
        DataError: E_DICOM if there is none.
    """
    above = file.absolute().parents
    for root in above[:2]:
        holding = []
        for folder, first in _folders(root):
            if wanted(first):
                return [tags.path for tags in objects_in(folder) if tags.series == first.series]
            holding.append(folder)
        for folder in holding:
            match = next((tags for tags in objects_in(folder) if wanted(tags)), None)
            if match is not None:
                return [tags.path for tags in objects_in(folder) if tags.series == match.series]
    raise dicom_fault(
        "the images that the segmentation belongs to are not there", readable_name(file),
        "its places are only known on the slices that it was drawn on", "put the series into a folder beside it",
    )  # fmt: skip


def _folders(root: Path) -> Iterator[tuple[Path, Tags]]:
    """Folders with DICOM files, and the tags of one of them."""
    for count, (place, folders, files) in enumerate(os.walk(root)):
        if count > MAX_FOLDERS:
            return
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        file = dicom_among(Path(place), files)
        if file is not None:
            with contextlib.suppress(DataError):
                tags = read_tags(file)
                if tags is not None:
                    yield Path(place), tags
