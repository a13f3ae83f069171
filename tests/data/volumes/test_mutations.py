"""Thousands of mutated headers through one worker: refused in words, or read as an independent reader reads them."""

from __future__ import annotations

import gzip
import itertools
import logging
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.decoder import Decoder, Volume
from cmt_med.data.volumes.gate import grid_of
from cmt_med.data.volumes.values import brightness
from tests.data.made import AFFINE, IMAGE, SHAPE
from tests.data.volumes.test_dicom import TURNED, series
from tests.data.volumes.test_formats import META, NRRD, VOXELS, itk

OUR_FAULT = {"E_DECODE", "E_TIMEOUT", "E_MEMORY", "E_BUG"}
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1e3, 1e30, -1e30, 1e-40, float("nan"), float("inf"), -float("inf"))
INTEGERS = (0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 64, 255, 256, 512, 1024, 32767, -32768, 1792, 2048, 2304)


def bases() -> dict[str, tuple[bytes, int]]:
    """Name -> content, and how many bytes of it are header."""
    made: dict[str, tuple[bytes, int]] = {}
    for kind, order in itertools.product((nib.Nifti1Image, nib.Nifti2Image), "<>"):
        header = kind.header_class(endianness=order)
        header.set_data_dtype(np.int16)
        image = kind(np.rint(IMAGE).astype(np.int16), AFFINE, header=header)
        image.set_qform(AFFINE, 1)
        image.set_sform(AFFINE, 1)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_slope_inter(1, 0)
        content = bytearray(image.to_bytes())
        at = 112 if kind is nib.Nifti1Image else 176
        struct.pack_into(order + ("ff" if at == 112 else "dd"), content, at, 2.0, -10.0)
        made[f"{kind.__name__}{order}"] = (bytes(content), 352 if at == 112 else 544)
    made["nrrd"] = (NRRD.encode() + b"\n" + VOXELS, len(NRRD) + 1)
    made["meta"] = (META.encode() + VOXELS, len(META))
    return made


def mutated(content: bytes, length: int, order: str, rng: np.random.Generator) -> bytes:
    """One to four changes, most of them in the header: bits, bytes, numbers that are edges, cuts, repeats."""
    result = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, length))
        match int(rng.integers(0, 7)):
            case 0:
                result[at] ^= 1 << int(rng.integers(8))
            case 1:
                result[at] = int(rng.integers(256))
            case 2:
                struct.pack_into(order + "f", result, at & ~3, FLOATS[rng.integers(len(FLOATS))])
            case 3:
                struct.pack_into(order + "h", result, at & ~1, INTEGERS[rng.integers(len(INTEGERS))])
            case 4:
                form = "d" if rng.random() < 0.5 else "q"
                value = (
                    FLOATS[rng.integers(len(FLOATS))] if form == "d" else INTEGERS[rng.integers(len(INTEGERS))] << 20
                )
                struct.pack_into(order + form, result, at & ~7, value)
            case 5:
                other = int(rng.integers(0, length))
                count = int(rng.integers(1, 9))
                result[at : at + count] = result[other : other + count]
            case _:
                cut = int(rng.integers(0, len(result)))
                result = result[:cut] if rng.random() < 0.5 else result + bytes(cut)
                length = min(length, max(8, len(result) - 8))
                result += bytes(max(0, length + 8 - len(result)))
    return bytes(result)


def by_nibabel(path: Path, volume: Volume) -> str:
    """ "" if nibabel reads the same, else how the difference is explained."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(path)
            voxels = np.asanyarray(image.dataobj)
    except Exception as error:
        return f"nibabel refuses: {type(error).__name__}"
    return _compare(volume, voxels.reshape(volume.stored.shape), image.affine)


def by_simpleitk(path: Path, volume: Volume) -> str:
    """ "" if SimpleITK reads the same, else how the difference is explained."""
    try:
        voxels, affine = itk(path)
    except RuntimeError as error:
        return f"SimpleITK refuses: {str(error).splitlines()[-1][:60]}"
    return _compare(volume, voxels, affine)


def _compare(volume: Volume, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> str:
    np.testing.assert_allclose(grid_of(volume).affine, affine, rtol=1e-5, atol=2e-3 * max(SHAPE))
    with np.errstate(all="ignore"):
        found = volume.array.astype(np.float64) * volume.stored.slope + volume.stored.intercept
        np.testing.assert_array_equal(found.astype(np.float32), voxels.astype(np.float32))
    return ""


REFERENCE: dict[str, Callable[[Path, Volume], str]] = {"nrrd": by_simpleitk, "meta": by_simpleitk}


def test_mutated_headers(tmp_path: Path, soak: bool) -> None:
    count = 20_000 if soak else 1_500
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    rng = np.random.default_rng(7)
    decoder = Decoder()
    started = set()
    verdicts: Counter[str] = Counter()
    slowest = 0.0
    kinds = bases()
    for number in range(count):
        name = list(kinds)[number % len(kinds)]
        content = mutated(*kinds[name], ">" if name.endswith(">") else "<", rng)
        ending = {"nrrd": ".nrrd", "meta": ".mha"}.get(name, ".nii" if rng.random() < 0.5 else ".nii.gz")
        path = tmp_path / f"i{ending}"
        path.write_bytes(gzip.compress(content, 1) if ending.endswith("gz") else content)
        began = time.monotonic()
        try:
            volume = decoder.decode(path)
        except DataError as error:
            verdicts[error.code] += 1
        else:
            verdicts["accepted: " + (REFERENCE.get(name, by_nibabel)(path, volume) or "equal")] += 1
        slowest = max(slowest, time.monotonic() - began)
        assert decoder.process is not None
        started.add(decoder.process.pid)
    peak = _peak_memory(decoder)
    decoder.close()
    print(f"\n{count} headers, slowest {slowest:.3f} s, worker's peak {peak / 1e6:.0f} MB\n{verdicts.most_common()}")
    assert not OUR_FAULT & set(verdicts)
    assert len(started) == 1  # one worker for all
    assert slowest < 5
    assert peak < 1e9
    assert {verdict for verdict in verdicts if verdict.startswith("accepted")} == {"accepted: equal"}


def test_mutated_slices(tmp_path: Path, soak: bool) -> None:
    """Bytes of one slice's header changed at random: refused in words, or read as pydicom reads it."""
    folder = series(tmp_path / "s")
    content = (folder / "s3.dcm").read_bytes()
    length = content.index(b"\xe0\x7f\x10\x00")
    rng = np.random.default_rng(3)
    decoder = Decoder()
    accepted, pids, codes = 0, set(), set()
    for _ in range(4000 if soak else 300):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(128, length))
            changed[at] = rng.choice([changed[at] ^ (1 << int(rng.integers(8))), int(rng.integers(256)), 0, 255])
        (folder / "s3.dcm").write_bytes(changed)
        began = time.monotonic()
        try:
            volume = decoder.decode(folder)
        except DataError as error:
            codes.add(error.code)
        else:
            accepted += 1
            files = [pydicom.dcmread(file) for file in folder.iterdir()]
            normal = np.cross(TURNED[:3], TURNED[3:])
            files.sort(key=lambda f: np.dot([float(v) for v in f.ImagePositionPatient], normal))
            voxels = [f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files]
            np.testing.assert_allclose(brightness(volume, "x"), np.stack(voxels).T, rtol=1e-6)
            np.testing.assert_allclose(np.array(volume.stored.affine)[:3, 3], [20, -15, 40], atol=1e-3)
        assert time.monotonic() - began < 5
        assert decoder.process is not None
        pids.add(decoder.process.pid)
    decoder.close()
    assert codes <= {"E_DICOM", "E_FORMAT", "E_DTYPE", "E_TRUNCATED", "E_SIZE", "E_NDIM", "E_GEOMETRY", "E_MEMORY"}
    assert len(pids) == 1
    assert accepted > 50


def _peak_memory(decoder: Decoder) -> int:
    assert decoder.process is not None
    lines = Path(f"/proc/{decoder.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
