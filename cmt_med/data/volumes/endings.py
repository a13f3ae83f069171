"""Volumes by the endings of their names."""

from __future__ import annotations

from pathlib import Path

VOLUME_ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that are a volume, or the header of one; DICOM series are folders."""
VOXELS_BESIDE = (".img", ".img.gz")
"""Endings of files that hold the voxels of a header beside them."""


def volume_stem(path: Path) -> str:
    """The name of a file or a folder of slices without a volume's ending (``"p1_t1"`` for ``p1_t1.nii.gz``)."""
    ending = next((e for e in (*VOLUME_ENDINGS, *VOXELS_BESIDE, ".dcm") if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def looks_like_volume(path: Path) -> bool:
    """Whether a file's name is that of a volume (which is not to say that it is one)."""
    return path.name.lower().endswith(VOLUME_ENDINGS)
