"""The headers of DICOM files: which of them are slices of volumes, and nothing else that pydicom may make of a damaged one."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.endings import VOLUME_ENDINGS
from cmt_med.data.volumes.streams import MAX_BYTES, Stream, io_error, open_regular, readable_name

T = TypeVar("T")
MAX_SLICES = 20_000
IMAGE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{ending}" for ending in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")
)
"""Storage classes with slices of volumes: CT, MR and PET, each also as enhanced and as legacy converted enhanced."""
_OTHERS = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}  # younger than pydicom's list
_BESIDE = (".txt", ".json", ".xml", ".csv", ".md", ".html", ".pdf", ".jpg", ".jpeg", ".png", ".zip", ".bvec", ".bval", ".img",
           ".raw", ".zraw", ".gz", ".ini", ".db", *VOLUME_ENDINGS)  # fmt: skip
_BESIDE_STARTS = ("DICOMDIR", "LICENSE", "LICENCE", "README")
_DIRECTORY_OF_A_DISC = b"1.2.840.10008.1.3.10"
_ACQUISITION = (
    "EchoTime", "EffectiveEchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "DiffusionBValue",
    "DiffusionGradientOrientation", "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime",
    "NominalCardiacTriggerDelayTime", "ComplexImageComponent",
)  # fmt: skip
"""Header fields that all slices of one volume share; where they differ, a series holds several: echoes, time points, b-values."""

TIMES_OF_SLICES = ("TriggerTime", "NominalCardiacTriggerDelayTime")
"""Of them, what may also be the time of each slice: then hardly two slices share a value."""


def is_dicom(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def slices_in(folder: Path) -> list[Path]:
    """The files of a folder that could be slices, sorted by name.

    Hidden files, texts, pictures and other volumes by their names are none, unless their content is DICOM: a slice can have any
    name, and one that is overlooked would be missing from the volume.

    Raises:
        DataError: E_IO if the folder cannot be listed, E_SIZE for too many files.
    """
    found = []
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise io_error(error, folder) from error
    for path in paths:
        # What cannot even be looked at counts as a file, whose reading then says why.
        if os.path.isdir(path):  # noqa: PTH112
            continue
        beside = path.name.lower().endswith(_BESIDE) or path.name.upper().startswith((*_BESIDE_STARTS, "."))
        if not beside or _holds_slice(path):
            found.append(path)
        if len(found) > MAX_SLICES:
            raise DataError(f"the folder has more than {MAX_SLICES} files", where=readable_name(folder),
                            why="no series has so many slices", fix="give the folder of one series", code="E_SIZE")  # fmt: skip
    return found


def _holds_slice(path: Path) -> bool:
    """Tell whether a file with the name of something else is DICOM, also inside gzip or without the preamble.

    One that cannot be read counts, too, unless it is hidden: its reading then says why.
    """
    try:
        with contextlib.closing(Stream(path)) as stream:
            head = stream.peek(1024)
    except DataError as error:
        return error.code == "E_IO" and not path.name.startswith(".")
    if is_dicom(head):
        return _DIRECTORY_OF_A_DISC not in head
    return head[:4] in (b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x08\0\x16\0") and head[4:6] in (b"CS", b"UI")


def acquisition_of(parts: Iterable[Dataset]) -> dict[str, tuple[str | float, ...]]:
    """Describe how a slice was acquired, by echo, time and diffusion in its header or in the parts of a frame's description."""
    found: dict[str, tuple[str | float, ...]] = {}
    for part in parts:
        for keyword in _ACQUISITION:
            value = part.get(keyword)
            if value is not None and value != "":
                values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
                found[keyword] = tuple(_number(item) for item in values)
    return found


def _number(value: object) -> str | float:
    """A number rounded to four digits, which is more than scanners keep of echo times; other values as text."""
    try:
        return float(f"{float(str(value)):.4g}")
    except ValueError:
        return str(value)


def read_header(path: Path) -> Dataset:
    """The header of a file that holds slices of a volume, in grey values.

    Raises:
        DataError: E_FORMAT if it is no DICOM file, E_DICOM if it is something else or damaged, E_DTYPE, E_IO, E_SIZE.
    """
    where = readable_name(path)
    with open_regular(path) as stream:
        head = stream.read(132) or b""
        if head.startswith(b"\x1f\x8b"):
            raise DataError(
                "a file among the slices is compressed with gzip", where=where,
                why="a slice that is not read would be missing from the volume", fix="unpack it, or move it elsewhere",
                code="E_FORMAT",
            )  # fmt: skip
        if not is_dicom(head):
            raise DataError(
                "a file among the slices is not DICOM", where=where,
                why="a slice that is damaged would be missing from the volume", fix="restore the file, or move it elsewhere",
                code="E_FORMAT",
            )  # fmt: skip
        if stream.seek(0, 2) > MAX_BYTES:
            raise DataError("the file is too large", where=where, why=f"at most {MAX_BYTES} bytes are read",
                            fix="give one series", code="E_SIZE")  # fmt: skip
    header: Dataset = guarded(lambda: pydicom.dcmread(path, stop_before_pixels=True), where)
    storage = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", "an object of no class"))
    if storage not in IMAGE_CLASSES:
        kind = _OTHERS.get(storage, UID(storage).name)
        raise dicom_fault(
            f"not a slice of a volume, but: {kind}", where, "CT, MR and PET images are read",
            "give the folder of the images; convert other objects to .nii.gz",
        )  # fmt: skip
    if "PhotometricInterpretation" not in header:
        raise dicom_fault(
            "the slice does not say what its pixels are", where, "a file that is cut short looks like that",
            "copy it again, or export it again",
        )  # fmt: skip
    if int(header.get("SamplesPerPixel", 1)) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        raise DataError(
            f"the pixels are {header.PhotometricInterpretation}", where=where,
            why="only grey values that grow with brightness are segmented", fix="export grey values", code="E_DTYPE",
        )  # fmt: skip
    syntax = UID(str(header.file_meta.get("TransferSyntaxUID", "")))
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise dicom_fault(f"the transfer syntax is {str(syntax) or 'missing'!r}", where, "how pixels are stored is not known",
                          "copy it again, or export it again")  # fmt: skip
    if "ModalityLUTSequence" in header:
        raise dicom_fault("the slice has a table from pixels to values", where, "it is not applied by all readers",
                     "convert it (dcm2niix)")  # fmt: skip
    return header


def guarded(work: Callable[[], T], where: str) -> T:
    """Run what calls pydicom; whatever a damaged file makes it raise becomes E_DICOM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return work()
        except (DataError, MemoryError):
            raise
        except Exception as error:  # it lists no exceptions, and values are parsed only when they are looked at
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise dicom_fault(
                "the DICOM file cannot be understood", where, reason, "copy it again, or export it again"
            ) from error


def dicom_fault(what: str, where: str, why: str, fix: str) -> DataError:
    """E_DICOM."""
    return DataError(what, where=where, why=why, fix=fix, code="E_DICOM")
