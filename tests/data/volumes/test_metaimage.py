"""MetaImage files as programs write them, beside those of the odd-files collection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.formats import files_of
from cmt_med.data.volumes.gate import grid_of
from tests.data.made import AFFINE, IMAGE, nifti, refusal


@pytest.mark.fault(3)
@pytest.mark.parametrize("ending", ["mha", "mhd"])
def test_a_header_with_the_fields_of_a_nifti_file(tmp_path: Path, ending: str) -> None:
    """ITK copies the NIfTI header's fields in front of ElementDataFile."""
    image = SimpleITK.ReadImage(str(nifti(tmp_path / "x.nii.gz")))
    path = tmp_path / f"x.{ending}"
    SimpleITK.WriteImage(image, str(path))
    assert path.read_bytes().index(b"ElementDataFile") > 1024
    volume = decode(path)
    np.testing.assert_array_equal(volume.array, IMAGE)
    np.testing.assert_allclose(grid_of(volume).affine, AFFINE, atol=1e-5)
    assert len(files_of(path)) == (1 if ending == "mha" else 2)


@pytest.mark.fault(3)
def test_a_long_header_is_read_to_its_end_and_no_further_than_a_bound(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(IMAGE.T)
    path = tmp_path / "x.mha"
    for number in range(200):
        image.SetMetaData(f"0008|{number:04x}", "a" * 1000)  # as from a DICOM header
    SimpleITK.WriteImage(image, str(path))
    assert path.read_bytes().index(b"ElementDataFile") > 200_000
    np.testing.assert_array_equal(decode(path).array, IMAGE)
    for number in range(2000):
        image.SetMetaData(f"0009|{number:04x}", "a" * 1000)
    SimpleITK.WriteImage(image, str(path))
    error = refusal(path)
    assert error.code == "E_HEADER"
    assert "1048576 bytes" in error.why
