"""The choice of a reader, by a file's content and its name together."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.volumes import mask_files, metaimage, nifti, nrrd
from cmt_med.data.volumes.endings import PICTURE_ENDINGS, SERIES_ENDING, VOXELS_BESIDE, looks_like_volume
from cmt_med.data.volumes.header import Opened
from cmt_med.data.volumes.mask_files import is_pattern, masks_of
from cmt_med.data.volumes.recognise import DICOM, META, NIFTI, NRRD, PAIR, PICTURES, Kind, is_dicom_file, recognise
from cmt_med.data.volumes.streams import Stream, io_error, readable_name

_READERS: dict[Kind, tuple[Callable[[Path, Stream], Opened], tuple[str, ...]]] = {
    NIFTI: (nifti.read, (".nii", ".nii.gz")),
    PAIR: (nifti.read, (".hdr", ".hdr.gz")),
    NRRD: (nrrd.read, (".nrrd", ".nhdr")),
    META: (metaimage.read, (".mha", ".mhd")),
}
"""Kind of a file -> its reader, and the endings that it may have."""


def is_series(path: Path) -> bool:
    """Tell whether a path is a folder with a DICOM file among its slices, as far as they can be read.

    What else there is beside it, is for the reader to refuse: a series that is not taken for one would be left out in silence.
    """
    if not _is_folder(path):
        return False
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise io_error(error, path) from error
    return _is_series(path.absolute(), changed)


@functools.lru_cache(maxsize=4096)
def _is_series(path: Path, _changed: int) -> bool:
    with contextlib.suppress(DataError):
        return any(map(is_dicom_file, files_of(path)))
    return False


def open_volume(path: Path, *, labels: bool = False, segments: Mapping[str, int] | None = None) -> Opened:
    """Understand the header of a volume: a file, or the folder of a DICOM series.

    Args:
        path: of the volume.
        labels: of a picture, read palettes and colours as label numbers (:func:`cmt_med.data.volumes.pictures.read`); of
            DICOM, read segmentations and contours.
        segments: label values of these, by name; without, they are the segments' numbers.

    Raises:
        DataError: E_IO for what cannot be opened, E_FORMAT for what is no volume, saying what it is; the readers' errors.
    """
    if is_pattern(path):
        return mask_files.read(path, segments or {}, lambda file: open_volume(file, labels=True))
    if is_series_path(path):
        from cmt_med.data.volumes import dicom  # pydicom takes a quarter of a second to import

        return dicom.read_series(path)
    if path.name.lower().endswith(VOXELS_BESIDE):
        path = nifti.partner(path)
    stream = Stream(path)
    try:
        kind = recognise(stream.peek(1024), compressed=stream.compressed, size=stream.size)
        if kind is DICOM:
            return _open_dicom(path, segments or {}, labels=labels)
        if kind in PICTURES:
            _require_name(kind, PICTURE_ENDINGS, path, compressed=stream.compressed)
            from cmt_med.data.volumes import pictures  # Pillow and tifffile, which few data sets need

            return pictures.read(path, stream, labels=labels)
        if kind not in _READERS:
            raise DataError(
                f"not a volume but {kind.what}" if not kind.what.startswith("in ") else f"the file is {kind.what}",
                where=readable_name(path), why="NIfTI, NRRD, MetaImage, DICOM and pictures are read", fix=kind.fix,
                code="E_FORMAT",
            )  # fmt: skip
        reader, endings = _READERS[kind]
        _require_name(kind, endings, path, compressed=stream.compressed)
        return reader(path, stream)
    except DataError as error:
        with contextlib.closing(stream):
            raise stream.blame(error) from error


def files_of(path: Path) -> list[Path]:
    """All files that a volume consists of: one, a header and its voxels, or the slices of a series.

    Raises:
        DataError: E_IO.
    """
    if is_pattern(path):
        return list(masks_of(path).values())
    if is_series_path(path):
        from cmt_med.data.volumes import dicom_series

        return dicom_series.files_of_series(path)
    lower = path.name.lower()
    if lower.endswith((".hdr", ".hdr.gz", *VOXELS_BESIDE)):
        return sorted([path, nifti.partner(path)])
    if lower.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):  # each of them can name a file for its voxels
        with contextlib.closing(Stream(path, deflated=False)) as stream:
            head = stream.peek(max(nrrd.MAX_HEADER, metaimage.MAX_HEADER))
        name = nrrd.data_file(head) if head.startswith(b"NRRD") else metaimage.data_file(head)
        return [path, nrrd.companion(path, name)] if name else [path]
    return [path]


def is_series_path(path: Path) -> bool:
    """Tell whether a path is a folder, or one series of several in a folder (:mod:`cmt_med.data.volumes.dicom_series`)."""
    if path.name.endswith(SERIES_ENDING):
        from cmt_med.data.volumes.dicom_series import is_one_of_several

        return is_one_of_several(path) or _is_folder(path)
    return _is_folder(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        raise io_error(error, path) from error


def _open_dicom(path: Path, segments: Mapping[str, int], *, labels: bool) -> Opened:
    if looks_like_volume(path):
        raise _misnamed("a DICOM file", path, "give the folder that holds the slices of its series")
    from cmt_med.data.volumes import dicom, dicom_labels

    return dicom_labels.read(path, segments) if labels and dicom_labels.is_labels(path) else dicom.read_file(path)


def _require_name(kind: Kind, endings: tuple[str, ...], path: Path, *, compressed: bool) -> None:
    lower = path.name.lower()
    if kind not in (NIFTI, PAIR) and compressed:
        raise _misnamed(f"{kind.what} inside gzip", path, "unpack it; such files can be compressed inside")
    wanted = [e for e in endings if e.endswith(".gz") == compressed] if kind in (NIFTI, PAIR) else list(endings)
    if not lower.endswith(tuple(wanted)):
        state = ", gzip-compressed," if compressed else ", not compressed," if lower.endswith(".gz") else ""
        raise _misnamed(kind.what + state, path, f"rename it: such files end in {' or '.join(wanted)}")


def _misnamed(what: str, path: Path, fix: str) -> DataError:
    return DataError(
        f"{what} under another name", where=readable_name(path),
        why="programs choose how to read a file by its name, so they would differ", fix=fix, code="E_FORMAT",
    )  # fmt: skip
