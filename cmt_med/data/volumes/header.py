"""A file's description of the volume in it; every reader of a format returns this and the voxels' bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.streams import MAX_BYTES, MAX_VOXELS

MAX_AXES = 7
PICTURE = "picture"
"""The last word in the names of 2D formats."""
IN_COLOUR = 1 << 24
"""Added to the number of a colour, 65536 R + 256 G + B, in a label map, where smaller numbers are labels."""
DTYPES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})


@dataclass(frozen=True)
class VolumeHeader:
    """A volume as its file has it.

    Attributes:
        format: name of the file format, for people.
        shape: three spatial axes, then others (time, channel); the first axis varies fastest in the bytes.
        dtype: NumPy type string with byte order, for example ``"<i2"``.
        affine: (4, 4), from indices to millimetres (RAS+), as nested tuples.
        slope, intercept: value = stored * slope + intercept.
        channels_first: an axis that is not spatial comes first in the bytes, though it is last in ``shape``.
        notes: what is remarkable in the file and harmless.
    """

    format: str
    shape: tuple[int, ...]
    dtype: str
    affine: tuple[tuple[float, ...], ...]
    slope: float = 1.0
    intercept: float = 0.0
    channels_first: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_picture(self) -> bool:
        """Tell whether the file is a 2D image (or a TIFF of several), whose pixels have no size in mm."""
        return self.format.endswith(PICTURE)

    @property
    def size(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * int(self.dtype[-1])

    def array(self, content: bytes | bytearray | memoryview) -> NDArray[np.generic]:
        """The voxels as stored, unscaled, as a view of their bytes."""
        flat = np.frombuffer(content, dtype=np.dtype(self.dtype))
        if self.channels_first:
            return np.moveaxis(flat.reshape((self.shape[-1], *self.shape[:-1]), order="F"), 0, -1)
        return flat.reshape(self.shape, order="F")


class Opened(NamedTuple):
    """A file whose header was understood: what it holds, and its voxels' bytes, which are read and checked when asked for."""

    stored: VolumeHeader
    content: Iterator[bytes]


def as_tuples(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """A matrix as nested tuples of floats."""
    return tuple(tuple(float(value) for value in row) for row in affine)


def check_shape(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Refuse impossible sizes before anything is allocated.

    Raises:
        DataError: E_HEADER for negative sizes, E_NDIM for empty axes, E_SIZE beyond what the package reads.
    """
    if not 1 <= len(shape) <= MAX_AXES or min(shape) < 0:
        raise DataError(
            f"the header claims the shape {tuple(shape)}", where=where, why="no image has such a size",
            fix="the header is damaged: convert the original image again", code="E_HEADER",
        )  # fmt: skip
    if min(shape) == 0:
        raise DataError(
            f"the image is empty: shape {tuple(shape)}", where=where, why="an axis has no voxels",
            fix="export the image again", code="E_NDIM",
        )  # fmt: skip
    if math.prod(shape) > MAX_VOXELS or math.prod(shape) * itemsize > MAX_BYTES:
        raise DataError(
            f"the header claims the shape {tuple(shape)}, {math.prod(shape)} voxels", where=where,
            why=f"at most {MAX_VOXELS} voxels and {MAX_BYTES} bytes are read; nothing was allocated",
            fix="if the header is right, crop or downsample the image; if not, convert the original again", code="E_SIZE",
        )  # fmt: skip
