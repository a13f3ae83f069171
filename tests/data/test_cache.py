"""The cache of preprocessed cases: made once, checked before it is used, and held against the sums of a case list."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_med.data.cache import Entry, prepare
from cmt_med.data.manifest import Case
from cmt_med.data.sums import volume_sum
from cmt_med.errors import DataError
from tests.data.made import IMAGE, LABEL, case_of, nifti

SETTINGS = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}


def entry_of(case: Case, folder: Path) -> Entry:
    return prepare(case, channels=["a"], labels={"background": 0, "x": 1}, settings=SETTINGS, folder=folder)


def made_case(folder: Path) -> Case:
    return case_of(nifti(folder / "i.nii.gz"), nifti(folder / "l.nii.gz", LABEL))


def test_sums_hold_also_where_the_content_is_known(tmp_path: Path) -> None:
    """A file that was exchanged is refused even if what stands there now was cached by another list."""
    case = made_case(tmp_path)
    listed = replace(case, sha256={path: volume_sum(path) for path in (case.images["a"][0], case.label) if path})
    entry_of(listed, tmp_path / "cache")
    for file, array in ((case.images["a"][0], IMAGE * 2), (case.label, LABEL * 0)):
        assert file is not None
        shutil.copy(file, tmp_path / "kept.nii.gz")
        nifti(file, array)
        entry_of(case, tmp_path / "cache")  # by a list without sums
        with pytest.raises(DataError) as raised:
            entry_of(listed, tmp_path / "cache")
        assert raised.value.code == "E_HASH"
        assert "case the-case" in raised.value.where
        shutil.copy(tmp_path / "kept.nii.gz", file)
        entry_of(listed, tmp_path / "cache")
