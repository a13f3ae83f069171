"""Label maps and probabilities as files: NIfTI with the source's units and codes, or a picture where the source is one."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.base.files import write_bytes
from cmt_med.data.volumes import nifti
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.streams import Stream

LONGEST_AXIS = 32767
"""Voxels along an axis of a NIfTI-1 file, which counts them with 16 bits."""
_NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")


def write_volume(
    path: Path, array: NDArray[Any], grid: Grid, source: Path, *, stored: np.dtype[Any] | None = None
) -> None:
    """Write an array on ``grid``.

    Args:
        path: whose ending is the format: PNG, TIFF (a page for each slice), else NIfTI-1, or NIfTI-2 where an axis is longer
            than NIfTI-1 can count.
        array: (D1, D2, D3), or with channels behind; of 8 bits for pictures.
        grid: where its voxels lie.
        source: the image that it belongs to; a NIfTI file hands on its units and codes.
        stored: type in a NIfTI file, into which numbers are scaled by the header's slope.
    """
    if path.name.endswith((".png", ".tif")):
        pages = np.ascontiguousarray(array.transpose(2, 1, 0))
        write_bytes(path, _png(pages[0]) if path.name.endswith(".png") else _tiff(pages))
        return
    image = (nib.Nifti2Image if max(array.shape) > LONGEST_AXIS else nib.Nifti1Image)(array, grid.affine)
    image.header.set_xyzt_units("mm")
    if stored is not None:
        image.set_data_dtype(stored)
    for name, value in _codes(source).items():
        image.header[name] = value
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        image.set_sform(grid.affine, 1)
    elif int(image.header["qform_code"]) > 0:
        image.set_qform(grid.affine, int(image.header["qform_code"]))
        if int(image.header["sform_code"]) > 0:
            image.set_sform(grid.affine, int(image.header["sform_code"]))
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 4, mtime=0) if path.name.endswith(".gz") else content)


def _codes(source: Path) -> dict[str, int]:
    """Units and codes of a NIfTI header; of another file none."""
    if not (source.name.lower().endswith(_NIFTI_ENDINGS) and source.is_file()):  # a folder of slices may have any name
        return {}
    if source.name.lower().endswith((".img", ".img.gz")):
        source = nifti.partner(source)
    with contextlib.suppress(DataError), contextlib.closing(Stream(source)) as stream:
        header = nifti.parse(stream.peek(540), str(source))
        return {name: int(header.one(name)) for name in ("xyzt_units", "qform_code", "sform_code")}
    return {}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _tiff(pages: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for page in pages:  # one at a time: of pages that are one pixel wide, tifffile would make rows of one page
            file.write(page, photometric="minisblack", compression="zlib", metadata=None)
    return stream.getvalue()
