"""Sums of volumes: what they are made of, what a change does to them, and what cannot be read."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.sums import check_sums, content_key, sum_of_sums, volume_sum
from tests.data.made import IMAGE, nifti


@given(content=st.binary(min_size=1, max_size=200), at=st.integers(0, 199), flip=st.integers(1, 255))
def test_the_sum_is_that_of_the_bytes(content: bytes, at: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i.nii.gz"
        path.write_bytes(content)
        expected = hashlib.sha256(content).hexdigest()
        assert volume_sum(path) == content_key(path, {path: expected}) == expected
        check_sums(path, expected)
        changed = bytearray(content)
        changed[at % len(content)] ^= flip
        path.write_bytes(changed)
        for refuse in (lambda: check_sums(path, expected), lambda: content_key(path, {path: expected})):
            with pytest.raises(DataError) as raised:
                refuse()
            assert raised.value.code == "E_HASH"
            assert expected[:16] in raised.value.why
            assert "inspect LIST --hash" in raised.value.fix
        assert content_key(path, {path.with_name("other.nii"): expected}) == volume_sum(path)


def test_a_volume_of_several_files_has_the_sum_of_their_list(tmp_path: Path) -> None:
    """As `sha256sum` prints it; one changed byte in any of the files is another sum."""
    nib.save(nib.Nifti1Pair(IMAGE, np.eye(4)), tmp_path / "v.hdr")
    printed = subprocess.run(["sha256sum", "v.hdr", "v.img"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert volume_sum(tmp_path / "v.hdr") == hashlib.sha256(printed).hexdigest()
    assert volume_sum(tmp_path / "v.img") == volume_sum(tmp_path / "v.hdr")
    before = volume_sum(tmp_path / "v.hdr")
    with (tmp_path / "v.img").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff")
    assert volume_sum(tmp_path / "v.hdr") != before


def test_names_of_links_and_places_do_not_matter(tmp_path: Path) -> None:
    path = nifti(tmp_path / "i.nii.gz")
    shutil.copy(path, tmp_path / "j.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(path)
    assert volume_sum(tmp_path / "j.nii.gz") == volume_sum(tmp_path / "link.nii.gz") == volume_sum(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert content_key(tmp_path / "nothing.nii", {tmp_path / "nothing.nii": "0" * 64}) == "missing"
    with pytest.raises(DataError) as raised:
        check_sums(tmp_path / "nothing.nii", "0" * 64)
    assert raised.value.code == "E_IO"


def test_a_sum_of_sums_is_that_of_a_set() -> None:
    assert sum_of_sums(["a", "b"]) == sum_of_sums(iter(["b", "a", "b"]))
    assert sum_of_sums(["a"]) != sum_of_sums(["b"])
    assert len(sum_of_sums(["a"])) == 16
