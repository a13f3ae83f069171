"""Volumes and pictures by the endings of their names."""

from __future__ import annotations

from pathlib import Path

VOLUME_ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that are a volume, or the header of one; DICOM series are folders."""
VOXELS_BESIDE = (".img", ".img.gz")
"""Endings of files that hold the voxels of a header beside them."""
SERIES_ENDING = ".series"
"""Of the path of one DICOM series among several in a folder, which is no file."""
TIFF_ENDINGS = (".tif", ".tiff")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", *TIFF_ENDINGS)
"""Endings of 2D images, which are read as volumes of one slice."""


def volume_stem(path: Path) -> str:
    """The name of a file or a folder of slices without the ending of its format (``"p1_t1"`` for ``p1_t1.nii.gz``)."""
    endings = (*VOLUME_ENDINGS, *VOXELS_BESIDE, ".dcm", SERIES_ENDING, *PICTURE_ENDINGS)
    ending = next((e for e in endings if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def looks_like_volume(path: Path) -> bool:
    """Tell whether a file's name is that of a volume (which is not to say that it is one)."""
    return path.name.lower().endswith(VOLUME_ENDINGS)


def looks_like_picture(path: Path) -> bool:
    """Tell whether a file's name is that of a 2D image."""
    return path.name.lower().endswith(PICTURE_ENDINGS)


def is_tiff(path: Path) -> bool:
    """Tell whether a file's name is that of a TIFF, which may have several pages."""
    return path.name.lower().endswith(TIFF_ENDINGS)
