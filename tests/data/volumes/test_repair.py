"""Repairs: what needs no guess is mended and passes the gate, what needs one is left alone."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.decoder import Decoder, decode, repair
from cmt_med.data.volumes.gate import grid_of, load_labels
from tests.data.made import AFFINE, IMAGE, LABEL, nifti

TURN = nib.quaternions.angle_axis2mat(0.7, [1, 2, 3])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN * [0.9, 1.1, 3]
OBLIQUE[:3, 3] = 10, -20, 30


def repaired(path: Path, *, label: bool) -> tuple[bytes, list[str]] | None:
    """Content and clauses of what the decoding process makes of a file."""
    found = repair(path, label=label)
    if found is None:
        return None
    return gzip.compress(found.content) if path.name.endswith(".gz") else bytes(found.content), list(found.done)


def bent(by: float) -> np.ndarray:
    shear = np.eye(4)
    shear[0, 1] = by
    return OBLIQUE @ shear


REPAIRS: dict[str, tuple[dict[str, Any], np.ndarray, str]] = {
    "micrometres": (
        {"affine": AFFINE * [[1000], [1000], [1000], [1]], "at_123": ("B", 3)}, AFFINE, "micrometres to millimetres",
    ),
    "metres": (
        {"affine": AFFINE * [[1e-3], [1e-3], [1e-3], [1]], "at_123": ("B", 1 | 16)}, AFFINE, "metres to millimetres",
    ),
    "pixdim": ({"affine": OBLIQUE, "codes": (0, 1), "at_80": ("fff", 1, 1, 1)}, OBLIQUE, "pixdim set"),
    "qform never set": (
        {"affine": OBLIQUE, "at_256": ("6f", 0, 0, 0, 0, 0, 0), "at_76": ("f", 1.0)}, OBLIQUE, "qform, never set",
    ),
    "qform and pixdim never set": (
        {"affine": AFFINE, "at_256": ("6f", 0, 0, 0, 0, 0, 0), "at_76": ("ffff", 1, 1, 1, 1)}, AFFINE, "qform, never set",
    ),
    "sform is zero": ({"affine": OBLIQUE, "at_280": ("12f", *[0] * 12)}, OBLIQUE, "sform, never set"),
    "sform is the identity": (
        {"affine": OBLIQUE, "at_280": ("12f", *np.eye(4)[:3].ravel())}, OBLIQUE, "sform, never set",
    ),
    "bent axes": (
        {"affine": bent(0.015), "codes": (0, 1), "array": np.zeros((64, 64, 20), np.uint8)}, bent(0.0075), "perpendicular",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "expected", "said"), REPAIRS.values(), ids=REPAIRS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_repaired(tmp_path: Path, made: dict[str, Any], expected: np.ndarray, said: str, ending: str) -> None:
    path = nifti(tmp_path / f"i{ending}", **made)
    before = path.read_bytes()
    with pytest.raises(DataError):
        decode(path)
    found = repaired(path, label=False)
    assert found is not None
    content, done = found
    assert any(said in clause for clause in done)
    copy = tmp_path / f"copy{ending}"
    copy.write_bytes(content)
    volume = decode(copy)
    tolerance = 1.5 if said == "perpendicular" else 1e-4
    np.testing.assert_allclose(grid_of(volume).affine, expected, atol=tolerance)
    image = nib.load(copy)
    np.testing.assert_array_equal(volume.array, np.asanyarray(nib.load(path).dataobj))
    np.testing.assert_allclose(image.affine, grid_of(volume).affine, atol=1e-5)
    if image.header["qform_code"] > 0:
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert path.read_bytes() == before
    assert repaired(copy, label=False) is None  # once is enough


def test_bent_axes_keep_the_centre(tmp_path: Path) -> None:
    affine = bent(0.015)
    shape = (64, 64, 20)
    path = nifti(tmp_path / "i.nii", np.zeros(shape, np.uint8), affine, codes=(0, 2))
    found = repaired(path, label=False)
    assert found is not None
    path.write_bytes(found[0])
    straight = grid_of(decode(path)).affine
    cosines = straight[:3, :3] / np.linalg.norm(straight[:3, :3], axis=0)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-6)
    centre = np.append((np.array(shape) - 1) / 2, 1)
    np.testing.assert_allclose(straight @ centre, affine @ centre, atol=1e-4)


@pytest.mark.parametrize(
    "made",
    [
        {"codes": (0, 0)},  # nothing says where the volume lies
        {"at_268": ("f", 50.0)},  # two places, both set on purpose
        {"affine": bent(0.2), "codes": (0, 1)},  # a gantry tilt, not rounding
        {"at_123": ("B", 3)},  # micrometres would be voxels of 1.5 µm: the unit is as likely wrong as the numbers
        {"at_123": ("B", 1)},
        {"at_123": ("B", 7)},
        {"at_280": ("f", float("nan"))},
        {"at_112": ("ff", 0.0, 5.0)},
        {},
    ],
    ids=str,
)
def test_no_guesses(tmp_path: Path, made: dict[str, Any]) -> None:
    assert repaired(nifti(tmp_path / "i.nii", **made), label=True) is None


def test_labels_become_integers(tmp_path: Path) -> None:
    float_labels = (LABEL * 0.9995).astype(np.float32)
    scaled = LABEL * np.uint8(100)
    for array, patches in ((float_labels, {}), (scaled, {"at_112": ("ff", 0.009999, 0.0)})):
        path = nifti(tmp_path / "l.nii.gz", array, **patches)
        found = repaired(path, label=True)
        assert found is not None
        assert "8-bit integers" in found[1][0]
        (tmp_path / "copy.nii.gz").write_bytes(found[0])
        image = nib.load(tmp_path / "copy.nii.gz")
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), LABEL)
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert np.array_equal(load_labels(tmp_path / "copy.nii.gz", "c")[0], LABEL)
        assert repaired(path, label=False) is None  # an image may have such values
    for array in (LABEL, LABEL.astype(np.float32), IMAGE, LABEL * np.float32(0.5), LABEL * np.float32(299.9999)):
        assert repaired(nifti(tmp_path / "l.nii.gz", array), label=True) is None


def test_what_cannot_be_read_is_not_repaired(tmp_path: Path) -> None:
    made, _, _ = REPAIRS["micrometres"]
    path = nifti(tmp_path / "i.nii.gz", **made)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-6] ^= 1  # in the checksum
    for bad in (content[:-20], flipped, b"", b"<html>", gzip.compress(b"x" * 400)):
        path.write_bytes(bad)
        for label in (False, True):
            with pytest.raises(DataError):
                repaired(path, label=label)
    path.write_bytes(gzip.decompress(content))
    assert repaired(path, label=False) is None  # is it the name that is wrong, or has somebody unpacked it?
    assert repaired(tmp_path / "i.nrrd", label=False) is None


def test_a_bomb_is_refused_within_the_memory_of_the_decoding_process(tmp_path: Path) -> None:
    """The header claims 2^27 labels, and 0.1 MB seem to hold them; they are looked at piece by piece."""
    made, _, _ = REPAIRS["micrometres"]
    path = nifti(tmp_path / "l.nii.gz", LABEL, **made)
    head = bytearray(gzip.decompress(path.read_bytes())[:352])
    struct.pack_into("<8h", head, 40, 3, 512, 512, 512, 1, 1, 1, 1)
    struct.pack_into("<f", head, 112, 0.9999)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    with path.open("wb") as stream:
        stream.write(packer.compress(bytes(head)))
        for _ in range(130):
            stream.write(packer.compress(piece))
        stream.write(packer.flush())
    decoder = Decoder(memory=48 << 20)
    with pytest.raises(DataError) as raised:
        decoder.repair(path, label=True)
    assert raised.value.code == "E_HEADER"  # more bytes than are claimed; not E_MEMORY
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as raised:
        decoder.repair(path, label=True)
    assert raised.value.code == "E_TRUNCATED"
    decoder.close()


MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])


@pytest.mark.fault(23)
@pytest.mark.parametrize("made", [
    {"affine": MIRRORED, "at_280": ("12f", *np.eye(4)[:3].ravel())},  # the qform says right, the identity left
    {"affine": MIRRORED, "at_256": ("6f", *[0] * 6), "at_76": ("f", 1.0)},
])  # fmt: skip
def test_left_and_right_are_not_chosen_by_rule(tmp_path: Path, made: dict[str, Any]) -> None:
    path = nifti(tmp_path / "i.nii.gz", **made)
    assert repaired(path, label=False) is None
    with pytest.raises(DataError) as raised:
        decode(path)
    assert raised.value.code == "E_GEOMETRY"
    assert "left and right" in raised.value.what
    assert "`inspect --fix` does not choose" in raised.value.fix


@pytest.mark.fault(23)
@pytest.mark.parametrize("unit", [1, 3])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_a_copy_is_promised_where_it_is_written(tmp_path: Path, unit: int, size: float) -> None:
    path = nifti(tmp_path / "i.nii.gz", affine=np.diag([size, size, size, 1.0]), at_123=("B", unit))
    with pytest.raises(DataError) as raised:
        decode(path)
    assert raised.value.code == "E_UNITS"
    found = repaired(path, label=False)
    assert ("writes a copy" in raised.value.fix) == (found is not None)
    if found is not None:
        (tmp_path / "copy.nii.gz").write_bytes(found[0])
        assert np.allclose(grid_of(decode(tmp_path / "copy.nii.gz")).spacing, 1)
