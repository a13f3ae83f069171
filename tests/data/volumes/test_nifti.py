"""NIfTI headers: rows 8 to 11 of the table, and that what is ordinary passes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.gate import grid_of, load_case
from cmt_med.data.volumes.values import brightness
from tests.data.made import AFFINE, IMAGE, LABEL, SHAPE, case_of, nifti, refusal

NAN, INF = float("nan"), float("inf")
SHEARED = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("patches", "code", "what", "fix"),
    [
        # row 8
        ({"at_268": ("f", 50.0)}, "E_GEOMETRY", "qform and sform", "inspect --fix"),  # qform moved by 10 mm
        ({"at_256": ("fff", 0.5, 0.5, 0.5)}, "E_GEOMETRY", "qform and sform", "inspect --fix"),  # turned
        ({"at_76": ("f", -1.0)}, "E_GEOMETRY", "qform and sform", "inspect --fix"),  # mirrored
        ({"at_252": ("hh", 0, 0)}, "E_GEOMETRY", "both 0", "orientation"),
        ({"at_252": ("hh", 0, 1), "at_80": ("fff", 1, 1, 1)}, "E_GEOMETRY", "pixdim and sform", "inspect --fix"),
        ({"at_80": ("fff", 3.0, 2.5, 4)}, "E_GEOMETRY", "pixdim and sform", "inspect --fix"),
        ({"at_80": ("f", 1.515)}, "E_GEOMETRY", "pixdim and sform", "inspect --fix"),  # 1 %
        ({"at_252": ("hh", 1, 0), "at_80": ("f", 0.0)}, "E_GEOMETRY", "pixdim", "convert"),
        ({"at_252": ("hh", 1, 0), "at_80": ("f", -1.0)}, "E_GEOMETRY", "pixdim", "convert"),
        ({"at_280": ("4f", 0, 0, 0, 0)}, "E_GEOMETRY", "singular", "convert"),
        ({"at_280": ("f", NAN)}, "E_GEOMETRY", "NaN", "convert"),
        ({"at_292": ("f", INF)}, "E_GEOMETRY", "NaN or infinite", "convert"),
        ({"at_280": ("f", 3e38)}, "E_GEOMETRY", "sform", "convert"),
        ({"at_252": ("hh", 1, 0), "at_256": ("f", NAN)}, "E_GEOMETRY", "NaN", "convert"),
        ({"at_252": ("hh", 1, 0), "at_256": ("fff", 0.9, 0.9, 0.9)}, "E_GEOMETRY", "longer than 1", "convert"),
        ({"at_252": ("hh", 1, 0), "at_76": ("f", -7.0)}, "E_GEOMETRY", "pixdim[0]", "convert"),
        ({"at_252": ("h", 100)}, "E_GEOMETRY", "qform_code", "convert"),
        ({"at_254": ("h", -1)}, "E_GEOMETRY", "sform_code", "convert"),
        # row 9
        ({"at_112": ("ff", 0.0, 5.0)}, "E_HEADER", "scl_slope", "convert"),
        ({"at_112": ("ff", NAN, 5.0)}, "E_HEADER", "scl_slope", "convert"),
        ({"at_112": ("ff", 2.0, NAN)}, "E_HEADER", "scl_slope", "convert"),
        ({"at_112": ("ff", INF, 0.0)}, "E_HEADER", "scl_slope", "convert"),
        ({"at_108": ("f", 0.0)}, "E_HEADER", "vox_offset", "convert"),
        ({"at_108": ("f", 348.0)}, "E_HEADER", "vox_offset", "convert"),
        ({"at_108": ("f", 352.5)}, "E_HEADER", "vox_offset", "convert"),
        ({"at_108": ("f", NAN)}, "E_HEADER", "vox_offset", "convert"),
        ({"at_108": ("f", 1e30)}, "E_HEADER", "vox_offset", "convert"),
        ({"at_108": ("f", 368.0)}, "E_TRUNCATED", "too early", "copy"),
        ({"at_42": ("hhh", 5, 6, 6)}, "E_HEADER", "more voxels", "convert"),
        ({"at_42": ("h", -5)}, "E_HEADER", "(-5, 6, 7)", "convert"),
        ({"at_40": ("h", 9)}, "E_HEADER", "axes", "convert"),
        ({"at_40": ("h", 0)}, "E_HEADER", "axes", "convert"),
        ({"at_70": ("h", 4)}, "E_HEADER", "bits per voxel", "convert"),
        ({"at_70": ("h", 77)}, "E_HEADER", "data type 77", "convert"),
        ({"at_0": ("i", 349)}, "E_FORMAT", "no format", "convert"),
        # row 10
        ({"at_70": ("hh", 32, 64)}, "E_DTYPE", "complex", "export"),
        ({"at_70": ("hh", 128, 24)}, "E_DTYPE", "RGB", "export"),
        ({"at_70": ("hh", 2304, 32)}, "E_DTYPE", "RGBA", "export"),
        ({"at_70": ("hh", 1536, 128)}, "E_DTYPE", "128-bit", "export"),
        ({"at_70": ("hh", 1, 1)}, "E_DTYPE", "single bits", "export"),
        ({"at_42": ("h", 0)}, "E_NDIM", "empty", "export"),
        ({"at_40": ("hhh", 2, 30, 7)}, "E_NDIM", "2D", "stack"),
        ({"at_40": ("hhhhh", 4, 5, 6, 1, 7)}, "E_NDIM", "4D", "modality"),
        ({"at_40": ("hhhhhh", 5, 5, 6, 1, 1, 7)}, "E_NDIM", "5D", "modality"),
        # row 11
        ({"at_123": ("B", 3)}, "E_UNITS", "micrometres", "millimetres"),
        ({"at_123": ("B", 1 | 8)}, "E_UNITS", "metres", "millimetres"),
        ({"at_123": ("B", 5)}, "E_UNITS", "unknown unit", "xyzt_units"),
        # row 14
        ({"at_40": ("7h", 6, 1024, 1024, 1024, 1024, 1, 1)}, "E_SIZE", "1099511627776", "crop"),
        ({"at_40": ("7h", 3, 32767, 32767, 32767, 1, 1, 1)}, "E_SIZE", "voxels", "crop"),
        ({"at_40": ("7h", 3, 1000, 1000, 1000, 1, 1, 1)}, "E_TRUNCATED", "too early", "copy"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("name", ["i.nii", "i.nii.gz"])
def test_refused(tmp_path: Path, patches: dict[str, Any], code: str, what: str, fix: str, name: str) -> None:
    error = refusal(nifti(tmp_path / name, **patches))
    assert error.code == code
    assert what in error.what
    assert fix in error.fix


def test_shear_is_named(tmp_path: Path) -> None:
    path = tmp_path / "i.nii"
    error = refusal(nifti(path, affine=SHEARED, codes=(0, 1)))
    assert error.code == "E_GEOMETRY"
    assert "sheared" in error.what
    slight = AFFINE @ np.array([[1, 1e-5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    decode(nifti(path, affine=slight, codes=(0, 1)))


@pytest.mark.parametrize(
    "patches",
    [
        {"at_112": ("ff", 0.0, 0.0)},
        {"at_112": ("ff", NAN, NAN)},
        {"at_112": ("ff", -2.5, 3.0)},
        {"at_76": ("f", 0.0), "at_254": ("h", 0)},  # a missing handedness means 1
        {"at_72": ("h", 0)},  # some tools leave bitpix empty
        {"at_123": ("B", 0)},
        {"at_123": ("B", 10)},
        {"at_40": ("hhhhh", 4, 5, 6, 7, 1)},
        {"at_252": ("hh", 4, 4)},
        {"at_252": ("hh", 0, 2)},
        {"at_252": ("hh", 2, 0)},
        {"at_96": ("ff", NAN, -3.0)},  # sizes of axes that do not exist
    ],
    ids=lambda value: "-".join(value),
)
def test_passes_and_equals_nibabel(tmp_path: Path, patches: dict[str, Any]) -> None:
    path = nifti(tmp_path / "i.nii.gz", **patches)
    volume = decode(path)
    reference = nib.load(path)
    np.testing.assert_array_equal(
        brightness(volume, "x"), np.asanyarray(reference.dataobj).reshape(SHAPE).astype(np.float32)
    )
    np.testing.assert_allclose(grid_of(volume).affine, reference.affine, atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
def test_every_type_and_byte_order(tmp_path: Path, dtype: str, order: str, kind: Any) -> None:
    values = (IMAGE if dtype[0] == "f" else np.rint(IMAGE)).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    image = kind(values, AFFINE, header=header)
    path = tmp_path / ("i.img.gz" if "Pair" in kind.__name__ else "i.nii.gz")
    nib.save(image, path)
    assert np.array_equal(brightness(decode(path), "x"), values.astype(np.float32))
    np.testing.assert_allclose(grid_of(decode(path)).affine, AFFINE, atol=1e-6)


def test_half_turns_are_not_blamed_on_the_header(tmp_path: Path) -> None:
    """Near 180 degrees a 32-bit quaternion loses its digits; every axial LPS scan is near it."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for angle in (0, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 0.01, 0.1):
        for _ in range(12):
            axis = rng.normal(size=3)
            axis = axis / np.linalg.norm(axis) if rng.random() < 0.7 else np.eye(3)[rng.integers(3)]
            affine = np.eye(4)
            affine[:3, :3] = nib.quaternions.angle_axis2mat(np.pi - angle, axis) * rng.uniform(0.3, 3, 3)
            affine[:3, 3] = rng.uniform(-200, 200, 3)
            shape = (512, 1, 300) if rng.random() < 0.5 else (2, 512, 10)
            volume = decode(nifti(tmp_path / "i.nii", np.zeros(shape, np.uint8), affine))
            image = nib.load(tmp_path / "i.nii")
            np.testing.assert_allclose(grid_of(volume).affine, image.affine, atol=1e-6)
            corner = np.append(np.array(shape) - 1, 1)
            apart = np.abs((image.get_qform() - image.get_sform()) @ corner).max() / min(image.header.get_zooms())
            worst = max(worst, float(apart))
    assert worst > 0.1  # so the allowance is needed


def test_extensions_are_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(IMAGE, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment" * 50))
    nib.save(image, tmp_path / "i.nii.gz")
    assert np.array_equal(decode(tmp_path / "i.nii.gz").array, IMAGE)


def test_parts_of_a_pair(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(IMAGE, AFFINE), tmp_path / "i.img")
    for name in ("i.img", "i.hdr"):
        assert np.array_equal(load_case(case_of(tmp_path / name), ("a",)).image[0], IMAGE)
    (tmp_path / "i.img").write_bytes((tmp_path / "i.img").read_bytes()[:-1])
    assert refusal(tmp_path / "i.hdr").code == "E_TRUNCATED"
    (tmp_path / "i.img").unlink()
    error = refusal(tmp_path / "i.hdr")
    assert error.code == "E_IO"
    assert "i.img" in error.where


def test_voxels_beside_a_header_go_by_their_name(tmp_path: Path) -> None:
    voxels = LABEL.copy(order="F")
    voxels[:2, 0, 0] = 0x1F, 0x8B  # gzip's magic, as values
    for ending in (".img", ".img.gz"):
        nib.save(nib.Nifti1Pair(voxels, AFFINE), tmp_path / f"i{ending}")
        assert np.array_equal(decode(tmp_path / f"i{ending}").array, voxels)
    nib.save(nib.Nifti1Pair(IMAGE, AFFINE), tmp_path / "i.img")
    (tmp_path / "i.img").write_bytes(gzip.compress((tmp_path / "i.img").read_bytes()))
    error = refusal(tmp_path / "i.hdr")
    assert error.code == "E_FORMAT"
    assert "rename" in error.fix


def test_bytes_behind_the_voxels_and_several_gzip_members(tmp_path: Path) -> None:
    content = nifti(tmp_path / "i.nii").read_bytes()
    (tmp_path / "i.nii").write_bytes(content + b"\0")
    (tmp_path / "z.nii.gz").write_bytes(gzip.compress(content) + gzip.compress(b"\0"))
    for name in ("i.nii", "z.nii.gz"):
        assert refusal(tmp_path / name).code == "E_HEADER"
    (tmp_path / "z.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]) + bytes(9))
    assert np.array_equal(decode(tmp_path / "z.nii.gz").array, np.asanyarray(nib.load(tmp_path / "z.nii.gz").dataobj))


def test_nifti2_claiming_2_to_the_40(tmp_path: Path) -> None:
    content = bytearray(nib.Nifti2Image(LABEL, AFFINE).to_bytes())
    struct.pack_into("<8q", content, 16, 3, 2**20, 2**10, 2**10, 1, 1, 1, 1)
    for name in ("i.nii", "i.nii.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert refusal(tmp_path / name).code == "E_SIZE"
    struct.pack_into("<8q", content, 16, 3, 2**62, 2**62, 2**62, 1, 1, 1, 1)
    (tmp_path / "i.nii").write_bytes(content)
    assert refusal(tmp_path / "i.nii").code == "E_SIZE"


@pytest.mark.fault(14)
@pytest.mark.filterwarnings("ignore:Using large vector")
@pytest.mark.parametrize(
    ("vertices", "stored"), [(163842, (27307, 1, 6)), (100_000, (-1, 1, 1)), (10242, (10242, 1, 1))]
)
def test_values_on_a_surface_are_no_volume(tmp_path: Path, vertices: int, stored: tuple[int, ...]) -> None:
    """FreeSurfer's own ways to put more vertices into a header than an axis of 16 bits can count; nibabel writes them."""
    path = tmp_path / "pval.LH.nii.gz"
    values = np.random.default_rng(0).random((vertices, 1, 1), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    assert struct.unpack_from("<3h", gzip.decompress(path.read_bytes()), 42) == stored
    assert nib.load(path).shape == (vertices, 1, 1)
    for label in (False, True):
        error = refusal(path, label=label)
        assert error.code == "E_FORMAT"
        assert "surface" in error.what
