"""Bytes: damage, truncation, what is no volume, bombs, and what is no file (rows 1, 2, 13, 14, 15 of the table)."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.decoder import Decoder, decode
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.streams import open_regular, readable_name
from tests.data.made import IMAGE, LABEL, case_of, nifti, refusal


@pytest.mark.parametrize("label", [False, True], ids=["image", "label"])
def test_bit_flips_inside_deflate_stream_and_trailer(tmp_path: Path, label: bool, soak: bool) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(100, 20, (40, 50, 30)).astype(np.float32)
    path = nifti(tmp_path / "i.nii.gz", (values > 120).astype(np.uint8) if label else values)
    content = path.read_bytes()
    bits = 8 * (len(content) - 10)  # behind gzip's own header of ten bytes
    codes = []
    for flip in [*rng.choice(bits, size=400 if soak else 80, replace=False), *range(bits - 64, bits, 7)]:
        path.write_bytes(_flipped(content, int(flip)))
        codes.append(refusal(path, label=label).code)
    assert set(codes) <= {"E_GZIP", "E_TRUNCATED", "E_SIZE"}
    assert codes.count("E_GZIP") >= 0.98 * len(codes)


def test_bits_that_no_decoder_uses(tmp_path: Path) -> None:
    """Deflate pads to whole bytes in places; such a bit is the only one whose flip passes, and it changes no voxel."""
    path = nifti(tmp_path / "l.nii.gz", LABEL)
    content = path.read_bytes()
    passed = 0
    for flip in range(8 * (len(content) - 10)):
        path.write_bytes(_flipped(content, flip))
        try:
            volume = decode(path)
        except DataError:
            continue
        passed += 1
        assert np.array_equal(volume.array, LABEL)
    assert passed < 8


def _flipped(content: bytes, bit: int) -> bytes:
    result = bytearray(content)
    result[10 + bit // 8] ^= 1 << (bit % 8)
    return bytes(result)


def test_damage_in_the_header_is_called_damage(tmp_path: Path) -> None:
    """A flip early in a stream turns the header into nonsense; what is wrong is the stream."""
    path = nifti(tmp_path / "i.nii.gz")
    content = bytearray(gzip.decompress(path.read_bytes()))
    deflated = zlib.compressobj(0, wbits=31)  # stored, so that a flip hits one byte
    stored = bytearray(deflated.compress(content) + deflated.flush())
    at = stored.index(content[:8])
    for offset in (0, 40, 43, 70, 108, 345):
        flipped = bytearray(stored)
        flipped[at + offset] ^= 64
        path.write_bytes(flipped)
        error = refusal(path)
        assert error.code == "E_GZIP"
        assert "again" in error.fix


@pytest.mark.parametrize("name", ["i.nii", "i.nii.gz"])
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path / name)
    content = path.read_bytes()
    for keep in [len(content) - 1, len(content) - 4, len(content) - 8, len(content) - 9, *range(400, len(content), 41)]:
        path.write_bytes(content[:keep])
        error = refusal(path)
        assert error.code == "E_TRUNCATED", keep
        assert "again" in error.fix
    for keep in (1, 4, 18, 60, 200, 347):
        path.write_bytes(content[:keep])
        assert refusal(path).code in ("E_TRUNCATED", "E_HEADER", "E_FORMAT")


def test_members_and_padding_and_rubbish_behind_gzip(tmp_path: Path) -> None:
    path = nifti(tmp_path / "i.nii")
    content = path.read_bytes()
    zipped = tmp_path / "i.nii.gz"
    for good in (gzip.compress(content[:500]) + gzip.compress(content[500:]), gzip.compress(content) + b"\0" * 100):
        zipped.write_bytes(good)
        assert np.array_equal(decode(zipped).array, IMAGE)
    for bad in (b"rubbish", gzip.compress(b"")[:12], b"\0\0\x1f"):
        zipped.write_bytes(gzip.compress(content) + bad)
        assert refusal(zipped).code in ("E_GZIP", "E_TRUNCATED")
    zipped.write_bytes(gzip.compress(content + b"1234"))
    assert refusal(zipped).code == "E_HEADER"
    path.write_bytes(content + b"1")
    assert refusal(path).code == "E_HEADER"


NOT_A_VOLUME = {
    b"": ("an empty file", "again"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": ("git-LFS pointer", "git lfs pull"),
    b"/annex/objects/MD5E-s123--0123.nii.gz\n": ("git-annex pointer", "git annex get"),
    b"<!DOCTYPE html><html><body>Please log in</body></html>": ("an HTML page", "fetch"),
    b"\n <HTML><head>404</head></html>": ("an HTML page", "login"),
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': ("an XML text", "fetch"),
    b'{"message": "not found"}': ("a JSON text", "path"),
    b"Not Found": ("a text file", "path"),
    bytes(5000): ("full of zero bytes", "again"),
    b"PK\x03\x04" + bytes(60): ("a zip archive", "unpack"),
    b"BZh91AY&SY" + bytes(60): ("bzip2", "unpack"),
    b"\xfd7zXZ\0" + bytes(60): ("xz", "unpack"),
    b"(\xb5/\xfd" + bytes(60): ("zstd", "unpack"),
    b"\x89HDF\r\n\x1a\n" + bytes(60): ("HDF5", "mnc2nii"),
    b"CDF\x01" + bytes(60): ("NetCDF", "mnc2nii"),
    b"\x93NUMPY\x01\0" + bytes(60): ("a NumPy array", "affine"),
    b"\x80\x04\x95" + bytes(60): ("a Python pickle", "never opened"),
    b"\x89PNG\r\n" + bytes(60): ("a PNG picture", "rename"),
    b"\xff\xd8\xff\xe0" + bytes(60): ("a JPEG picture", "rename"),
    b"II*\0" + bytes(60): ("a TIFF picture", "rename"),
    b"%PDF-1.4" + bytes(60): ("a PDF document", "path"),
    struct.pack(">iiii", 1, 256, 256, 256) + bytes(300): ("MGH", "mri_convert"),
    b"# === DATA DESCRIPTION FILE ====": ("PAR", "dcm2niix"),
    struct.pack("<i", 348) + bytes(344): ("Analyze 7.5", "left and right"),
    os.urandom(4000): ("no format that is known", "convert"),
}


@pytest.mark.parametrize(("content", "expected"), NOT_A_VOLUME.items(), ids=[w for w, _ in NOT_A_VOLUME.values()])
@pytest.mark.parametrize("name", ["i.nii.gz", "i.nii", "i.nrrd", "i.mha", "i.dcm"])
def test_what_it_is_instead(tmp_path: Path, content: bytes, expected: tuple[str, str], name: str) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert error.code == "E_FORMAT"
    assert expected[0] in error.what
    assert expected[1] in error.fix
    if content and name == "i.nii.gz":
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert expected[0] in refusal(tmp_path / name).what


def test_volumes_under_other_names(tmp_path: Path) -> None:
    nifti(tmp_path / "plain.nii")
    nifti(tmp_path / "zipped.nii.gz")
    plain, zipped = (tmp_path / "plain.nii").read_bytes(), (tmp_path / "zipped.nii.gz").read_bytes()
    for name, content, advice in (
        ("a.nii.gz", plain, ".nii"), ("b.nii", zipped, ".nii.gz"), ("c.nrrd", plain, ".nii"), ("d.dcm", plain, ".nii"),
        ("e.mha", zipped, ".nii.gz"), ("f", plain, ".nii"), ("g.hdr", plain, ".nii"), ("h.gz", zipped, ".nii.gz"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        error = refusal(tmp_path / name)
        assert error.code == "E_FORMAT", name
        assert "a NIfTI file" in error.what
        assert advice in error.fix
    (tmp_path / "I.NII.GZ").write_bytes(zipped)
    assert np.array_equal(decode(tmp_path / "I.NII.GZ").array, IMAGE)


def _memory(decoder: Decoder) -> int:
    assert decoder.process is not None
    lines = Path(f"/proc/{decoder.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("honest", [False, True])
def test_gzip_bomb_of_8_gigabytes(tmp_path: Path, honest: bool) -> None:
    """8 MB that inflate to 8 GiB of zeros: with a header of a small image, and with one that says so."""
    size = {"at_42": ("hhh", 2048, 2048, 2048), "at_70": ("hh", 2, 8)} if honest else {}
    head = nifti(tmp_path / "i.nii", **size).read_bytes()
    path = tmp_path / "i.nii.gz"
    path.write_bytes(gzip.compress(head) + gzip.compress(bytes(1 << 26)) * 128)
    assert path.stat().st_size < 10e6
    decoder = Decoder()
    began = time.monotonic()
    with pytest.raises(DataError) as raised:
        decoder.decode(path)
    assert raised.value.code == "E_SIZE"
    assert time.monotonic() - began < 5
    assert _memory(decoder) < 300e6
    decoder.close()


def test_claims_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    """A header of 2^30 voxels in a file that cannot hold them."""
    for name in ("i.nii", "i.nii.gz"):
        path = nifti(tmp_path / name, at_42=("hhh", 1024, 1024, 1024), at_70=("hh", 2, 8))
        decoder = Decoder()
        with pytest.raises(DataError) as raised:
            decoder.decode(path)
        assert raised.value.code == "E_TRUNCATED"
        assert "cannot hold" in raised.value.why
        assert _memory(decoder) < 200e6
        decoder.close()


def test_what_is_no_file_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "nothing.nii").symlink_to(tmp_path / "elsewhere.nii")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "device.nii").symlink_to("/dev/zero")
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.nii"))
    nifti(tmp_path / "i.nii").rename(strange)
    expected = {
        tmp_path / "fifo.nii": "a FIFO", tmp_path / "loop.nii": "back to itself", tmp_path / "nothing.nii": "link to nothing",
        tmp_path / "folder.nii": "no DICOM slices", tmp_path / "device.nii": "a device", strange: "not UTF-8",
        tmp_path / "missing.nii": "does not exist", tmp_path / ("x" * 300): "too long", tmp_path / "a\0b.nii": "path",
        tmp_path / "loop.nii" / "x.nii": "back to itself", strange / "x.nii": "not UTF-8",
    }  # fmt: skip
    for path, what in expected.items():
        began = time.monotonic()
        error = refusal(path)
        assert error.code == "E_IO"
        assert what in error.what
        assert time.monotonic() - began < 2
        error.message().encode()  # can be printed and written


def test_socket(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "s.nii"
        server.bind(str(path))
        error = refusal(path)
    assert error.code == "E_IO"
    assert "socket" in error.what


def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = nifti(Path(folder) / "i.nii")
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(DataError) as raised:
                open_regular(path)
        finally:
            os.seteuid(user)
    assert raised.value.code == "E_IO"
    assert "chmod" in raised.value.fix


def test_threads_have_workers_of_their_own(tmp_path: Path) -> None:
    path = nifti(tmp_path / "i.nii.gz")
    found: list[bool] = []

    def read() -> None:
        found.extend(
            np.array_equal(load_case(Case("c", {"a": (path, None)}), ("a",)).image[0], IMAGE) for _ in range(20)
        )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80
    assert np.array_equal(load_case(case_of(path), ("a",)).image[0], IMAGE)


def test_a_series_that_is_no_file_is_named_as_one(tmp_path: Path) -> None:
    """Nobody looks for a file that is not there."""
    assert readable_name(tmp_path / "1.2.840.series") == f"{tmp_path} (series 1.2.840)"
    assert readable_name(tmp_path / "time.series") == str(tmp_path / "time.series")
    with pytest.raises(DataError) as raised:
        load_case(Case("p", {"ct": (tmp_path / "1.2.3.series", None)}), ["ct"])
    assert ".series" not in raised.value.message()
