"""Every file of the odd-files collection (and every folder of DICOM slices in it): read rightly, or refused with a code.

``odd_files.tsv`` is the literal table: path, what the gate says. The voxels and the place of what is read are compared with
readings by other libraries: nibabel, SimpleITK, pydicom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.gate import as_listed, grid_of, load_case
from cmt_med.data.volumes.values import brightness

TABLE = [
    line.split("\t") for line in Path(__file__).with_suffix(".tsv").with_stem("odd_files").read_text().splitlines()
]


def verdict(path: Path) -> str:
    """What the gate says to a volume with one channel: its shape, or the code and the first part of the error."""
    try:
        loaded = load_case(Case("odd", {"a": (path, None)}), ("a",))
    except DataError as error:
        whole = (
            error.why not in ("", error.usual_why) and error.fix not in ("", error.usual_fix) and "odd" in error.where
        )
        return f"{error.code} {error.what}" if whole else f"a part is missing: {error}"
    return "read " + "×".join(map(str, loaded.grid.shape))


def reference(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels and affine by another library."""
    if path.is_dir() and len(list(path.iterdir())) == 1:
        path = next(path.iterdir())
    if path.is_dir():
        files = [pydicom.dcmread(file) for file in sorted(path.iterdir())]
        normal = np.cross(files[0].ImageOrientationPatient[:3], files[0].ImageOrientationPatient[3:])
        files.sort(key=lambda f: np.dot(f.ImagePositionPatient, normal))
        stack = [f.pixel_array * float(f.get("RescaleSlope", 1)) + float(f.get("RescaleIntercept", 0)) for f in files]
        image = SimpleITK.ReadImage([f.filename for f in files])
        return np.stack(stack).T, _affine(image)
    if ".nii" in path.name or ".hdr" in path.name or ".img" in path.name:
        loaded = (
            nib.load(path) if ".img" not in path.name else nib.load(path.with_name(path.name.replace("img", "hdr")))
        )
        return np.asanyarray(loaded.dataobj), loaded.affine
    if path.suffix == ".jpeg":
        return np.asarray(Image.open(path).convert("L")).T[..., None], np.diag([1.0, -1, 1, 1])
    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayFromImage(image).T, _affine(image)


def _affine(image: SimpleITK.Image) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1, 1, 1]) @ affine


def test_the_table_is_complete(real_data: Path) -> None:
    folder = real_data / "odd_files"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {path for path, _ in TABLE if not path.endswith("/")}


@pytest.mark.parametrize(("name", "expected"), TABLE, ids=[path for path, _ in TABLE])
def test_verdict(real_data: Path, name: str, expected: str) -> None:
    path = real_data / "odd_files" / name
    assert verdict(path) == expected
    if expected.startswith("read"):
        voxels, affine = reference(path)
        volume = as_listed(decode(path), None, "x")
        found = brightness(volume, "x")
        np.testing.assert_array_equal(found, voxels.reshape(found.shape).astype(np.float32))
        np.testing.assert_allclose(grid_of(volume).affine, affine, atol=1e-5)
    elif expected.startswith("E_NDIM"):  # several volumes in one file: right, if they are named
        voxels, affine = reference(path)
        volume = decode(path)
        np.testing.assert_array_equal(volume.array * volume.stored.slope + volume.stored.intercept, voxels)
        np.testing.assert_allclose(grid_of(volume).affine, affine, atol=1e-5)


def test_pyradiomics(real_data: Path) -> None:
    for path in sorted((real_data / "pyradiomics").glob("*.nrrd")):
        voxels, affine = reference(path)
        np.testing.assert_array_equal(decode(path).array, voxels)
        np.testing.assert_allclose(grid_of(decode(path)).affine, affine, atol=1e-9)
