"""Recognition of files by their first bytes: one of the formats that are read, or something that can be named for the user."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.streams import Stream


class Kind(NamedTuple):
    """The kind of a file, and what its owner can do if it is no volume."""

    what: str
    fix: str = ""


NIFTI = Kind("a NIfTI file")
PAIR = Kind("the header of a NIfTI pair")
NRRD = Kind("an NRRD file")
META = Kind("a MetaImage file")
DICOM = Kind("a DICOM file")
PNG = Kind("a PNG picture")
JPEG = Kind("a JPEG picture")
GIF = Kind("a GIF picture")
TIFF = Kind("a TIFF picture")
BMP = Kind("a BMP picture")
WEBP = Kind("a WebP picture")
PICTURES = frozenset((PNG, JPEG, GIF, TIFF, BMP, WEBP))

_UNPACK = "unpack it, and give the image that is in it"
_AGAIN = "download or copy the image again"
_CONVERT = "convert it to .nii.gz with {}"
_NO_IMAGE = "give the path of the image"
_UNKNOWN = Kind("in no format that is known here", "convert the image to .nii.gz")
_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (
        0,
        b"version https://git-lfs",
        Kind("a git-LFS pointer in place of the image", "fetch the image itself: git lfs pull"),
    ),
    (0, b"/annex/objects/", Kind("a git-annex pointer in place of the image", "fetch the image itself: git annex get")),
    (0, b"PK\x03\x04", Kind("a zip archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7-zip archive", _UNPACK)),
    (257, b"ustar", Kind("a tar archive", _UNPACK)),
    (0, b"\x1f\x8b", Kind("compressed with gzip twice", "unpack it once")),
    (0, b"BZh", Kind("compressed with bzip2", "unpack it, or compress it with gzip")),
    (0, b"\xfd7zXZ", Kind("compressed with xz", "unpack it, or compress it with gzip")),
    (0, b"\x28\xb5\x2f\xfd", Kind("compressed with zstd", "unpack it, or compress it with gzip")),
    (0, b"%PDF", Kind("a PDF document", _NO_IMAGE)),
    (0, b"\x89PNG", PNG),
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"GIF8", GIF),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (0, b"II+\0", TIFF),  # BigTIFF
    (0, b"MM\0+", TIFF),
    (8, b"WEBPVP8", WEBP),
    (0, b"\x89HDF", Kind("an HDF5 file (MINC-2, MATLAB 7.3 or other)", _CONVERT.format("mnc2nii, if it is MINC"))),
    (0, b"CDF\x01", Kind("a NetCDF file (MINC-1 or other)", _CONVERT.format("mnc2nii, if it is MINC"))),
    (0, b"MATLAB 5.0", Kind("a MATLAB file", "save the array with its affine as .nii.gz")),
    (0, b"\x93NUMPY", Kind("a NumPy array", "it has no place in the patient; save it with its affine as .nii.gz")),
    (0, b"\x80\x02", Kind("a Python pickle", "it is never opened; save the image as .nii.gz")),
    (0, b"\x80\x04", Kind("a Python pickle", "it is never opened; save the image as .nii.gz")),
    (0, b"\0\0\0\x01\0\0", Kind("a FreeSurfer MGH volume", _CONVERT.format("mri_convert"))),
    (0, b"MATRIX7", Kind("an ECAT volume", _CONVERT.format("a tool of its scanner's maker"))),
    (0, b"# === DATA DESCRIPTION", Kind("a Philips PAR header", _CONVERT.format("dcm2niix"))),
    (0, b"mrtrix image", Kind("an MRtrix image", _CONVERT.format("mrconvert"))),
    (0, b"mrtrix tracks", Kind("MRtrix streamlines", _NO_IMAGE)),
    (0, b"TRACK\0", Kind("TrackVis streamlines", _NO_IMAGE)),
)

# The line that every MetaImage header has near its beginning; ElementDataFile, its last one, may stand far behind.
_META_TYPE = re.compile(rb"^ObjectType\s*=\s*Image\s*$", re.M)


def recognise(head: bytes, *, compressed: bool, size: int) -> Kind:
    """Recognise a file.

    Args:
        head: its first 1024 (inflated) bytes, or all there are.
        compressed: whether they were gzip-compressed.
        size: of the file, in bytes.
    """
    if size == 0:
        return Kind("an empty file", _AGAIN)
    lengths = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    if head[:4] in lengths and head[128:132] != b"DICM":  # DICOM leaves its first 128 bytes to other formats
        return _nifti(head)
    if head.startswith(b"NRRD000"):
        return NRRD
    if (b"DimSize" in head or b"NDims" in head) and (b"ElementDataFile" in head or _META_TYPE.search(head)):
        return META
    if head[128:132] == b"DICM":
        return Kind("a DICOM file inside gzip", _UNPACK) if compressed else DICOM
    for at, signature, kind in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return kind
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return BMP
    return _text_or_noise(head)


def _nifti(head: bytes) -> Kind:
    version_1 = 0x5C in (head[0], head[3])
    magic = head[344:346] if version_1 else head[4:6]
    if magic == b"ni":
        return PAIR
    if version_1 and len(head) >= 348 and magic != b"n+":
        return Kind(
            "an Analyze 7.5 header", "it does not say what is left and right: convert the original image to NIfTI"
        )
    return NIFTI  # its reader says what is wrong with the header


def _text_or_noise(head: bytes) -> Kind:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<body")):
        return Kind(
            "an HTML page in place of the image", "the download needs a login, or its address is gone: fetch it again"
        )
    if start.startswith((b"<?xml", b"<error")):
        return Kind(
            "an XML text in place of the image",
            "it may be a server's error message: open it, and fetch the image again",
        )
    if not head.strip(b"\0"):
        return Kind("full of zero bytes", _AGAIN)
    if head[:4] in (b"\x08\0\x05\0", b"\x08\0\0\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\x02\0\0\0", b"\x02\0\x10\0"):
        return Kind("a DICOM data set without its file header", "export it again, with preamble and meta information")
    if start.startswith(b"type ") and b"-attribute" in start:
        return Kind("an AFNI header", _CONVERT.format("3dAFNItoNIFTI"))
    if any(byte < 32 and byte not in b"\t\r\n\f" for byte in head):
        return _UNKNOWN
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return _UNKNOWN
    return Kind("a JSON text" if start.startswith((b"{", b"[")) else "a text file", _NO_IMAGE)


_LOOKED_AT = 5


def is_dicom_file(path: Path) -> bool:
    """Tell whether a file is DICOM by its content."""
    with contextlib.suppress(DataError):
        return kind_of(path) is DICOM
    return False


def dicom_among(folder: Path, names: Iterable[str]) -> Path | None:
    """The first DICOM file of a folder, as far as a look at a few files that could be one by their names can tell."""
    likely = (n for n in names if n.lower().endswith((".dcm", ".ima")) or not Path(n).suffix[1:].isalpha())
    files = [folder / name for name in sorted(likely)[:_LOOKED_AT] if not name.startswith(".")]
    return next(filter(is_dicom_file, files), None)


def kind_of(path: Path) -> Kind:
    """Recognise a file.

    Raises:
        DataError: E_IO, or E_GZIP and E_TRUNCATED if not even its beginning can be inflated.
    """
    with contextlib.closing(Stream(path)) as stream:
        return recognise(stream.peek(1024), compressed=stream.compressed, size=stream.size)
