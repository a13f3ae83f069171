"""Folders of DICOM files; what is in them is read by :mod:`cmt_med.data.sources.studies`, since pydicom is slow to import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.endings import looks_like_volume
from cmt_med.data.volumes.recognise import dicom_among


def recognises(path: Path) -> bool:
    """Tell whether a path is a folder with DICOM files, no volumes of other kinds, and more than the slices of one series."""
    if not path.is_dir():
        return False
    found = False
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(looks_like_volume(Path(name)) for name in files):
            return False
        found = found or dicom_among(Path(folder), files) is not None
    if not found:
        return False
    from cmt_med.data.sources.studies import is_one_series

    return not is_one_series(path)


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the studies under a folder; see :func:`cmt_med.data.sources.studies.read`."""
    from cmt_med.data.sources import studies

    return studies.read(path, channels)
