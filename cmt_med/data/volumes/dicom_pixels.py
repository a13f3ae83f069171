"""The pixels of DICOM slices as numbers, without silently using bits that are none.

Native and run-length encoded pixels are decoded by pydicom, the JPEG family by the GDCM library within SimpleITK.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.streams import readable_name

_RLE = "1.2.840.10008.1.2.5"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


def is_native(header: Dataset) -> bool:
    """Tell whether the pixels come as they were stored; else as GDCM makes them, already with slope and intercept."""
    return str(header.file_meta.get("TransferSyntaxUID", "")) in (*_UNCOMPRESSED, _RLE)


def stored_type(header: Dataset) -> str:
    """NumPy type string of stored pixels."""
    bits = int(header.BitsAllocated)
    if bits not in (8, 16, 32) or int(header.BitsStored) > bits or int(header.HighBit) != int(header.BitsStored) - 1:
        raise ValueError(f"{header.BitsStored} of {bits} bits up to bit {header.HighBit} cannot be read")
    return f"<{'i' if int(header.PixelRepresentation) == 1 else 'u'}{bits // 8}"


def frame_values(dataset: Dataset, path: Path, number: int) -> NDArray[Any]:
    """One frame (rows, columns): stored values where :func:`is_native`, else real ones.

    Raises:
        DataError: E_TRUNCATED, E_DICOM.
    """
    where = readable_name(path)
    shape = (int(dataset.Rows), int(dataset.Columns))
    if "PixelData" not in dataset:  # pydicom leaves out what it finds cut off
        raise _truncated("there are no pixels, or not all of them", where)
    if not is_native(dataset):
        return _by_gdcm(path, shape, where)
    dtype = np.dtype(stored_type(dataset))
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if str(dataset.file_meta.TransferSyntaxUID) != _RLE:
        expected, found = frames * shape[0] * shape[1] * dtype.itemsize, len(dataset.PixelData)
        if found < expected:
            raise _truncated(f"{found} bytes of pixels, the header claims {expected}", where)
        if found > expected + 1:  # one byte makes the length even
            raise DataError(
                "the file holds more pixels than its header claims", where=where,
                why=f"{found} bytes, {dataset.Rows} × {dataset.Columns} pixels make {expected}", fix="export the series again",
                code="E_DICOM",
            )  # fmt: skip
    values = pixel_array(dataset, index=number, raw=True, correct_unused_bits=False)
    if values.shape != shape:
        raise ValueError(f"pixels of shape {values.shape}, the header claims {shape}")
    _require_clean_bits(values, int(dataset.BitsStored), signed=dtype.kind == "i", where=where)
    return values.astype(dtype, copy=False)


def _require_clean_bits(values: NDArray[Any], bits: int, *, signed: bool, where: str) -> None:
    # Above BitsStored there may be anything (old scanners kept overlays there); some readers cut it off, some do not.
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        raise DataError(
            f"pixels have values from {values.min()} to {values.max()}, {bits} bits can hold {low} to {high}", where=where,
            why="what lies above BitsStored is cut off by some readers and kept by others", fix="convert it (dcm2niix)",
            code="E_DICOM",
        )  # fmt: skip


def _by_gdcm(path: Path, shape: tuple[int, int], where: str) -> NDArray[Any]:
    import SimpleITK  # large, and only needed for compressed slices

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        values = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise DataError(
            "the compressed pixels cannot be decoded", where=where, why=reason,
            fix="copy the file again, or export the series uncompressed", code="E_DICOM",
        ) from error  # fmt: skip
    if values.size != shape[0] * shape[1]:
        raise ValueError(f"{values.shape} pixels were decoded, the header claims {shape}")
    return values.reshape(shape).astype(np.float64)


def _truncated(why: str, where: str) -> DataError:
    return DataError(
        "the slice ends too early", where=where, why=why, fix="copy or fetch the file again", code="E_TRUNCATED"
    )
