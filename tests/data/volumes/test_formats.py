"""NRRD and MetaImage: equal to SimpleITK where it can be trusted, refused where the volume has no place or no voxels."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.formats import files_of
from cmt_med.data.volumes.gate import grid_of
from cmt_med.data.volumes.sums import volume_sum
from tests.data.made import IMAGE, LABEL, refusal

NRRD = """NRRD0004
# a comment
type: float
dimension: 3
space: left-posterior-superior
sizes: 5 6 7
space directions: (1.5,0,0) (0,0,1.25) (0,-2,0)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-40,30,11)
key:=a value: with a colon
"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 0 1 0 -1 0
Offset = -40 30 11
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 1.5 1.25 2
DimSize = 5 6 7
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
VOXELS = IMAGE.tobytes(order="F")


def itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels (x, y, z[, channel]) and affine (RAS+) as SimpleITK reads them."""
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    array = np.moveaxis(array, -1, 0).T if image.GetNumberOfComponentsPerPixel() > 1 else array.T
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(SimpleITK.GetArrayFromImage(image), (0, 1, 2, 3), (2, 1, 0, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return array, np.diag([-1.0, -1, 1, 1]) @ affine


def equal_to_itk(path: Path) -> None:
    volume = decode(path)
    array, affine = itk(path)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(grid_of(volume).affine, affine, atol=1e-9)


def image_of(array: NDArray[Any], *, vector: bool = False) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((1.5, 1.25, 2))
    image.SetOrigin((-40, 30, 11))
    turn = SimpleITK.Euler3DTransform()
    turn.SetRotation(0.2, -0.1, 1.3)
    image.SetDirection(turn.GetMatrix())
    return image


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz", ".hdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_what_itk_writes(tmp_path: Path, ending: str, compressed: bool, dtype: str) -> None:
    path = tmp_path / f"i{ending}"
    SimpleITK.WriteImage(image_of(np.rint(IMAGE).astype(dtype)), str(path), useCompression=compressed)
    if ending.startswith(".n") and ending != ".nhdr" and ending != ".nrrd":
        array, affine = itk(path)
        volume = decode(path)
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(grid_of(volume).affine, affine, atol=1e-4)  # 32 bits
    elif ending != ".hdr":
        equal_to_itk(path)
    else:
        np.testing.assert_array_equal(decode(path).array, itk(path)[0])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_channels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"i{ending}"
    SimpleITK.WriteImage(image_of(np.stack([IMAGE, IMAGE * 2], -1), vector=True), str(path), useCompression=True)
    volume = decode(path)
    assert volume.stored.shape == (7, 6, 5, 2)
    np.testing.assert_array_equal(volume.array[..., 1], (IMAGE * 2).T)
    assert refusal(path).code == "E_NDIM"


def test_made_by_hand(tmp_path: Path) -> None:
    nrrd, meta = tmp_path / "i.nrrd", tmp_path / "i.mha"
    nrrd.write_bytes(NRRD.encode() + b"\n" + VOXELS)
    meta.write_bytes(META.encode() + VOXELS)
    for path in (nrrd, meta):
        equal_to_itk(path)
        assert np.array_equal(decode(path).array, IMAGE)
        assert grid_of(decode(path)).axes == "LSA"
    packed = zlib.compress(VOXELS)
    header = META.replace("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {len(packed)}")
    meta.write_bytes(header.encode() + packed)
    equal_to_itk(meta)
    nrrd.write_bytes(NRRD.replace("raw", "gzip").replace("\n", "\r\n").encode() + b"\r\n" + gzip.compress(VOXELS))
    equal_to_itk(nrrd)
    ras = NRRD.replace("left-posterior-superior", "right-anterior-superior")
    nrrd.write_bytes(ras.encode() + b"\n" + VOXELS)
    equal_to_itk(nrrd)
    big = NRRD.replace("little", "big").encode() + b"\n" + IMAGE.astype(">f4").tobytes(order="F")
    nrrd.write_bytes(big)
    assert np.array_equal(decode(nrrd).array, IMAGE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Offset", "Origin"),
        ("Offset", "Position = -40 30 11.0\nOffset"),
        ("TransformMatrix", "Orientation"),
        ("ElementSpacing", "ElementSize"),
        ("ElementSpacing", "DistanceUnits = mm\nElementSpacing"),
        ("ElementSpacing", "ElementToIntensityFunctionSlope = 1\nElementToIntensityFunctionOffset = 0\nElementSpacing"),
        ("domain domain domain", "??? space none"),
        ("endian", 'space units: "mm" "mm" "mm"\nunits: "" "" ""\nspacings: nan nan nan\nendian'),
    ],
)
def test_several_ways_to_say_it(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / ("i.mha" if old in META else "i.nrrd")
    path.write_bytes(meta_with(old, new) if old in META else nrrd_with(old, new))
    equal_to_itk(path)
    assert np.array_equal(decode(path).array, IMAGE)


def test_byte_orders_and_channels_of_meta(tmp_path: Path) -> None:
    path, big = tmp_path / "i.mha", IMAGE.astype(">f4").tobytes(order="F")
    for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        header = META.replace("BinaryDataByteOrderMSB = False", f"{name} = True")
        path.write_bytes(header.encode() + big)
        equal_to_itk(path)
        assert np.array_equal(decode(path).array, IMAGE)
    packed = zlib.compress(big)
    header = header.replace("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {len(packed)}")
    path.write_bytes(header.encode() + packed)
    equal_to_itk(path)
    two = np.stack([IMAGE, IMAGE * 2])
    path.write_bytes(
        meta_with("DimSize", "ElementNumberOfChannels = 2\nDimSize")[: -len(VOXELS)] + two.tobytes(order="F")
    )
    equal_to_itk(path)
    assert np.array_equal(decode(path).array[..., 1], IMAGE * 2)


def nrrd_with(old: str, new: str) -> bytes:
    assert old in NRRD
    return NRRD.replace(old, new).encode() + b"\n" + VOXELS


def meta_with(old: str, new: str) -> bytes:
    assert old in META
    return META.replace(old, new).encode() + VOXELS


FAULTS = {
    "nrrd without place": ("i.nrrd", nrrd_with("space: left-posterior-superior\n", ""), "E_GEOMETRY"),
    "nrrd in another space": ("i.nrrd", nrrd_with("left-posterior-superior", "scanner-xyz"), "E_GEOMETRY"),
    "nrrd without origin": ("i.nrrd", nrrd_with("space origin: (-40,30,11)\n", ""), "E_GEOMETRY"),
    "nrrd singular": ("i.nrrd", nrrd_with("(1.5,0,0)", "(0,0,0)"), "E_GEOMETRY"),
    "nrrd nan": ("i.nrrd", nrrd_with("(1.5,0,0)", "(nan,0,0)"), "E_GEOMETRY"),
    "nrrd sheared": ("i.nrrd", nrrd_with("(1.5,0,0)", "(1.5,0.5,0)"), "E_GEOMETRY"),
    "nrrd in micrometres": ("i.nrrd", nrrd_with("endian:", 'space units: "um" "um" "um"\nendian:'), "E_UNITS"),
    "nrrd units without quotes": ("i.nrrd", nrrd_with("endian:", "space units: um um um\nendian:"), "E_UNITS"),
    "nrrd axes in micrometres": ("i.nrrd", nrrd_with("endian:", 'units: "um" "um" "um"\nendian:'), "E_UNITS"),
    "nrrd spacings": ("i.nrrd", nrrd_with("endian:", "spacings: 3 3 3\nendian:"), "E_HEADER"),
    "nrrd axis mins": ("i.nrrd", nrrd_with("endian:", "axismins: 5 5 5\nendian:"), "E_HEADER"),
    "nrrd space dimension": ("i.nrrd", nrrd_with("endian:", "space dimension: 4\nendian:"), "E_HEADER"),
    "nrrd with time in its space": ("i.nrrd", nrrd_with("superior", "superior-time"), "E_GEOMETRY"),
    "nrrd colours in space": (
        "i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 3 10 7").replace(b"kinds: domain", b"kinds: rgb-color"), "E_HEADER",
    ),
    "nrrd vectors in space": ("i.nrrd", nrrd_with("kinds: domain", "kinds: vector"), "E_HEADER"),
    "nrrd list in space": ("i.nrrd", nrrd_with("domain domain domain", "domain domain list"), "E_HEADER"),
    "nrrd two data files": (
        "i.nhdr", nrrd_with("encoding: raw", "encoding: raw\ndatafile: a.raw\ndata file: b.raw"), "E_HEADER",
    ),
    "nrrd too large": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 1048576 1024 1024"), "E_SIZE"),
    "nrrd truncated": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 5 6 8"), "E_TRUNCATED"),
    "nrrd with more voxels": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 5 6 6"), "E_HEADER"),
    "nrrd zero size": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 5 0 7"), "E_NDIM"),
    "nrrd negative size": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 5 -6 7"), "E_HEADER"),
    "nrrd sizes and dimension": ("i.nrrd", nrrd_with("dimension: 3", "dimension: 4"), "E_HEADER"),
    "nrrd 2D": ("i.nrrd", nrrd_with("sizes: 5 6 7", "sizes: 30 7").replace(b"dimension: 3", b"dimension: 2"), "E_NDIM"),
    "nrrd type": ("i.nrrd", nrrd_with("type: float", "type: block"), "E_DTYPE"),
    "nrrd endian": ("i.nrrd", nrrd_with("endian: little\n", ""), "E_HEADER"),
    "nrrd twice": ("i.nrrd", nrrd_with("type: float", "type: float\ntype: short"), "E_HEADER"),
    "nrrd bzip2": ("i.nrrd", nrrd_with("encoding: raw", "encoding: bzip2"), "E_FORMAT"),
    "nrrd ascii": ("i.nrrd", nrrd_with("encoding: raw", "encoding: ascii"), "E_FORMAT"),
    "nrrd hex": ("i.nrrd", nrrd_with("encoding: raw", "encoding: hex"), "E_FORMAT"),
    "nrrd skips": ("i.nrrd", nrrd_with("encoding: raw", "encoding: raw\nbyte skip: 4"), "E_HEADER"),
    "nrrd skips to the end": ("i.nrrd", nrrd_with("encoding: raw", "encoding: raw\nbyte skip: -1"), "E_HEADER"),
    "nrrd skips lines": ("i.nrrd", nrrd_with("encoding: raw", "encoding: raw\nlineskip: 1"), "E_HEADER"),
    "nrrd not compressed": ("i.nrrd", nrrd_with("encoding: raw", "encoding: gzip"), "E_GZIP"),
    "nrrd traversal": ("i.nhdr", nrrd_with("encoding: raw", "encoding: raw\ndata file: ../secret.raw"), "E_HEADER"),
    "nrrd absolute": ("i.nhdr", nrrd_with("encoding: raw", "encoding: raw\ndata file: /etc/passwd"), "E_HEADER"),
    "nrrd parts": ("i.nhdr", nrrd_with("encoding: raw", "encoding: raw\ndata file: a%03d.raw 1 7 1"), "E_FORMAT"),
    "nrrd without voxels": ("i.nhdr", nrrd_with("encoding: raw", "encoding: raw\ndata file: gone.raw"), "E_IO"),
    "nrrd without end": ("i.nrrd", NRRD.encode()[:-20], "E_TRUNCATED"),
    "meta without place": ("i.mha", meta_with("TransformMatrix = 1 0 0 0 0 1 0 -1 0\n", ""), "E_GEOMETRY"),
    "meta singular": ("i.mha", meta_with("1 0 0 0 0 1 0 -1 0", "1 0 0 1 0 0 0 -1 0"), "E_GEOMETRY"),
    "meta spacing": ("i.mha", meta_with("1.5 1.25 2", "1.5 -1.25 2"), "E_GEOMETRY"),
    "meta nan": ("i.mha", meta_with("Offset = -40", "Offset = nan"), "E_HEADER"),
    "meta two places": ("i.mha", meta_with("Offset", "Origin = 1 2 3\nOffset"), "E_HEADER"),
    "meta two matrices": ("i.mha", meta_with("Offset", "Rotation = 1 0 0 0 1 0 0 0 1\nOffset"), "E_HEADER"),
    "meta two spacings": ("i.mha", meta_with("DimSize", "ElementSize = 3 3 3\nDimSize"), "E_HEADER"),
    "meta two byte orders": ("i.mha", meta_with("DimSize", "ElementByteOrderMSB = True\nDimSize"), "E_HEADER"),
    "meta in micrometres": ("i.mha", meta_with("DimSize", "DistanceUnits = um\nDimSize"), "E_UNITS"),
    "meta in centimetres": ("i.mha", meta_with("DimSize", "DistanceUnits = cm\nDimSize"), "E_UNITS"),
    "meta slope": ("i.mha", meta_with("DimSize", "ElementToIntensityFunctionSlope = 2\nDimSize"), "E_HEADER"),
    "meta intercept": ("i.mha", meta_with("DimSize", "ElementToIntensityFunctionOffset = -1000\nDimSize"), "E_HEADER"),
    "meta half a channel": ("i.mha", meta_with("DimSize", "ElementNumberOfChannels = 1.5\nDimSize"), "E_HEADER"),
    "meta too large": ("i.mha", meta_with("5 6 7", "1048576 1024 1024"), "E_SIZE"),
    "meta truncated": ("i.mha", meta_with("5 6 7", "5 6 8"), "E_TRUNCATED"),
    "meta with more voxels": ("i.mha", meta_with("5 6 7", "5 6 6"), "E_HEADER"),
    "meta 2D": ("i.mha", meta_with("DimSize = 5 6 7", "DimSize = 5 6").replace(b"NDims = 3", b"NDims = 2"), "E_NDIM"),
    "meta type": ("i.mha", meta_with("MET_FLOAT", "MET_FLOAT_ARRAY"), "E_DTYPE"),
    "meta as text": ("i.mha", meta_with("BinaryData = True", "BinaryData = False"), "E_FORMAT"),
    "meta not compressed": ("i.mha", meta_with("CompressedData = False", "CompressedData = True"), "E_GZIP"),
    "meta traversal": ("i.mhd", meta_with("LOCAL", "../../secret.raw"), "E_HEADER"),
    "meta parts": ("i.mhd", meta_with("LOCAL", "LIST"), "E_FORMAT"),
    "meta without voxels": ("i.mhd", meta_with("LOCAL", "gone.raw"), "E_IO"),
    "nrrd in gzip": ("i.nrrd", gzip.compress(nrrd_with("raw", "raw")), "E_FORMAT"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "code"), FAULTS.values(), ids=FAULTS)
def test_refused(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).code == code


@pytest.mark.parametrize("name", ["i.nrrd", "i.mha"])
def test_bit_flips_in_compressed_voxels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    SimpleITK.WriteImage(image_of(LABEL.T), str(path), useCompression=True)
    content = path.read_bytes()
    start = content.index(b"\n\n") + 12 if name == "i.nrrd" else content.index(b"LOCAL\n") + 6
    rng = np.random.default_rng(1)
    for _ in range(40):
        flipped = bytearray(content)
        flipped[int(rng.integers(start, len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        assert refusal(path, label=True).code in ("E_GZIP", "E_TRUNCATED")


def test_sums_cover_the_voxels_beside_a_header(tmp_path: Path) -> None:
    for ending, beside in ((".nhdr", "i.raw"), (".mhd", "i.raw"), (".hdr", "i.img")):
        path = tmp_path / f"i{ending}"
        SimpleITK.WriteImage(image_of(IMAGE), str(path))
        voxels = tmp_path / beside
        assert files_of(path) == [path, voxels]
        before = volume_sum(path)
        content = bytearray(voxels.read_bytes())
        content[7] ^= 1
        voxels.write_bytes(content)
        assert volume_sum(path) != before


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["i.mha", "i.mhd", "i.nrrd", "i.nhdr"])
def test_sums_go_by_what_the_header_says(tmp_path: Path, name: str, line_end: str) -> None:
    header = (
        META.replace("LOCAL", "x.raw") if name.startswith("i.m") else NRRD + "data file:=no.raw\ndata file: x.raw\n\n"
    )
    path, voxels = tmp_path / name, tmp_path / "x.raw"
    path.write_bytes(header.replace("\n", line_end).encode())
    voxels.write_bytes(VOXELS)
    before = volume_sum(path)
    assert files_of(path) == [path, voxels]
    voxels.write_bytes((IMAGE * 2).tobytes(order="F"))
    assert np.array_equal(decode(path).array, IMAGE * 2)
    assert volume_sum(path) != before


def test_stems() -> None:
    for name in ("p_t1.nii.gz", "p_t1.NII", "p_t1.nrrd", "p_t1.mha", "p_t1.hdr", "p_t1.img.gz", "p_t1"):
        assert volume_stem(Path(name)) == "p_t1"
