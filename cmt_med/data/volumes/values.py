"""Stored voxels to brightness and to labels, with the checks that need the values themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import ANY_OBJECT, Codes, colours_alone
from cmt_med.data.volumes.decoder import Volume
from cmt_med.data.volumes.header import IN_COLOUR

LABEL_TOLERANCE = 1e-3
LARGEST = 1e12
"""Beyond it, sums of squares over a volume overflow 32-bit floats."""
OUTLIER = (1e4, 1 / 20)
"""A volume is refused if its largest value is more than this many times what all but this share of its voxels have, and more
than 1, where maps of probabilities end, which fade to nothing. In 489 real volumes it is less than 7 times as much."""
_ALONE = 1e6  # largest value of an image in which so few voxels are not zero that none is usual
_SAMPLE = 1 << 20
SMALLEST_SPAN = 1e-5  # where normalisation would take noise for a constant; quantitative maps in m²/s lie below
_SLAB = 1 << 22  # voxels that are converted at once


_Place = tuple[EllipsisType, slice, slice]


@dataclass(frozen=True)
class Statistics:
    """Of the real values of an image, as 32-bit floats.

    Attributes:
        low, high: smallest and largest value.
        sample: values at regular distances.
        digest: SHA-256 of all values in Fortran order: the same for images that are equal.
    """

    low: float
    high: float
    sample: NDArray[np.float32]
    digest: bytes


def statistics(volume: Volume, where: str, plane: int | None = None) -> Statistics:
    """Describe what :func:`brightness` would return, without having it in memory at once; the errors are the same."""
    array = volume.array if plane is None else volume.array[..., plane]
    digest = hashlib.sha256()

    def add(at: _Place, values: NDArray[np.float32]) -> None:
        digest.update(values.tobytes(order="F"))

    low, high = _each_slab(volume, array, add, where)
    at = np.unravel_index(np.arange(0, array.size, _step(array.size)), array.shape, order="F")
    with np.errstate(over="ignore"):
        sample = real_values(volume, array[at]).astype(np.float32)
    _check_range(usual_size(sample, OUTLIER[1]), low, high, where)
    return Statistics(float(np.float32(low)), float(np.float32(high)), sample, digest.digest())


def brightness(volume: Volume, where: str, plane: int | None = None) -> NDArray[np.float32]:
    """The real values (D1, D2, D3) of a volume, or of one ``plane`` of its fourth axis.

    Raises:
        DataError: E_NONFINITE for NaN and infinity, E_RANGE for values that would ruin the contrast of all others.
    """
    array = volume.array if plane is None else volume.array[..., plane]
    result = np.empty(array.shape, dtype=np.float32, order="F")
    low, high = _each_slab(volume, array, result.__setitem__, where)
    _check_range(usual_size(result, OUTLIER[1]), low, high, where)
    return result


def _each_slab(
    volume: Volume, array: NDArray[np.generic], work: Callable[[_Place, NDArray[np.float32]], None], where: str
) -> tuple[float, float]:
    """Do ``work`` with every piece of the real values; returns the smallest and the largest of them, in 64 bits."""
    bad, low, high = 0, np.inf, -np.inf
    for at, values in _slabs(volume, array):
        finite = np.isfinite(values)
        if not finite.all():
            bad += int(values.size - np.count_nonzero(finite))
            continue
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        with np.errstate(over="ignore"):  # refused below
            work(at, values.astype(np.float32, copy=False))
    if bad:
        raise DataError(
            f"{bad} voxels are NaN or infinite", where=where,
            why="one such voxel would make the whole prediction meaningless, and what stood there is not known",
            fix="find where they come from (a division by zero in an earlier step?), and make the image again",
            code="E_NONFINITE",
        )  # fmt: skip
    return low, high


def usual_size(values: NDArray[np.float32], share: float) -> float:
    """Bound on the absolute values of all but a share of the voxels that are not zero; 0 if there are hardly any."""
    sizes = np.abs(values.ravel(order="K")[:: _step(values.size)])
    sizes = sizes[sizes > 0]
    rank = sizes.size - 1 - max(8, int(sizes.size * share))
    return float(np.partition(sizes, rank)[rank]) if rank >= 0 else 0.0


def labels(volume: Volume, allowed: Sequence[int], where: str, *, binary: bool = False) -> NDArray[np.uint8]:
    """The values of a label map (D1, D2, D3), rounded where they are within 0.001 of a whole number.

    Args:
        volume: one 3D volume.
        allowed: values that may occur, 0 to 255.
        where: file, for messages.
        binary: whether this is a mask, in which any value but 0 stands for 1.

    Raises:
        DataError: E_NONFINITE, E_LABEL with the values found and what they may stand for.
    """
    result = np.empty(volume.array.shape, dtype=np.uint8, order="F")
    _each_slab_of_labels(volume, allowed, where, result.__setitem__, binary=binary)
    return result


def label_counts(volume: Volume, allowed: Sequence[int], where: str, *, binary: bool = False) -> NDArray[np.int64]:
    """Count each label (256,), without what :func:`labels` would return; arguments and errors are the same."""
    counts = np.zeros(256, dtype=np.int64)

    def add(at: _Place, values: NDArray[np.uint8]) -> None:
        counts[:] += np.bincount(values.ravel(order="K"), minlength=256)

    _each_slab_of_labels(volume, allowed, where, add, binary=binary)
    return counts


def _each_slab_of_labels(
    volume: Volume, allowed: Sequence[int], where: str, work: Callable[[_Place, NDArray[np.uint8]], None], *, binary: bool
) -> None:  # fmt: skip
    found: set[int] = set()
    furthest, count = 0.0, 0
    for at, values in _slabs(volume, volume.array):
        whole = values
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise not_finite(where)
            whole = np.rint(values)
            apart = np.abs(values - whole)
            furthest, count = max(furthest, float(apart.max())), count + int(np.count_nonzero(apart > LABEL_TOLERANCE))
        if binary:
            whole = whole != 0
        found.update(int(v) for v in _distinct(whole))
        work(at, np.clip(whole, 0, 255).astype(np.uint8))
    if furthest > LABEL_TOLERANCE:
        raise not_whole(where, count, furthest)
    if not binary:
        if volume.stored.is_picture:
            _require_no_shades(sorted(found), allowed, where)
        check_values(sorted(found), allowed, where)


def not_finite(where: str) -> DataError:
    """Make the error for a label map with NaN."""
    return DataError("the label map has NaN or infinite voxels", where=where, why="they stand for no label",
                     fix="correct the label map", code="E_NONFINITE")  # fmt: skip


def not_whole(where: str, count: int, furthest: float) -> DataError:
    """Make the error for a label map in which so many voxels are that far from whole numbers."""
    return DataError(
        "the label map has values that are not whole numbers", where=where,
        why=f"{count} voxels are off by up to {furthest:.3g}: a probability map, or labels resampled with interpolation?",
        fix="resample the label map with nearest neighbour, or threshold it", code="E_LABEL",
    )  # fmt: skip


def from_colours(volume: Volume, colours: Codes, where: str) -> Volume:
    """The label map of a mask in colour; others, and where no colour is named, as they are.

    Args:
        volume: as :func:`cmt_med.data.volumes.pictures.read` reads it.
        colours: 65536 R + 256 G + B -> label value.
        where: file, for messages.

    Raises:
        DataError: E_LABEL for a colour that stands for no label.
    """
    if ANY_OBJECT in colours and volume.stored.dtype[1:] in INTEGERS and not volume.stored.format.startswith("DICOM "):
        found = np.greater(volume.array, 0).astype(np.uint8) * np.uint8(colours[ANY_OBJECT])
        return Volume(replace(volume.stored, dtype="<u1", slope=1.0, intercept=0.0), found)
    if not colours_alone(colours):
        return volume
    found, places = np.unique(volume.array, return_inverse=True)
    seen = [int(code) - IN_COLOUR if code >= IN_COLOUR else int(code) * 0x010101 for code in found]  # shades of grey
    strange = [colour for colour in seen if colour not in colours]
    if strange:
        raise DataError(
            f"the mask has the colour{'s' if len(strange) > 1 else ''} {', '.join(f'#{c:06x}' for c in strange[:8])}",
            where=where, why=f"{len(strange)} of its {len(found)} colours stand for no label",
            fix="name them under 'colours' in the case list; many colours beside those of labels come from a JPEG, or from "
            "smoothing: save the mask as PNG, without", code="E_LABEL",
        )  # fmt: skip
    values = np.array([colours[colour] for colour in seen], dtype=np.uint8)[places].reshape(volume.array.shape)
    return Volume(replace(volume.stored, dtype="<u1"), values)


INTEGERS = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"})
MOST_SHADES = 8
"""Shades of grey in a mask, above which they are smoothed edges, unless they are numbered from 0 on."""


def _require_no_shades(found: Sequence[int], allowed: Sequence[int], where: str) -> None:
    """Raise for a mask whose shades of grey come from a JPEG or from smoothing."""
    if found[-1] >= IN_COLOUR:
        listed = ", ".join(f"#{value - IN_COLOUR:06x}" for value in found[:8])
        raise DataError(
            "the mask is in colour", where=where, why=f"what {listed} mean is not known",
            fix="name them under 'colours' in the case list (\"#ff0000\": 1), as cmt-med init does", code="E_LABEL",
        )  # fmt: skip
    strange = [value for value in found if value not in set(allowed)]
    anything = len(allowed) == 256 and found[-1] > 127  # nothing is known of what the values mean
    if len(found) > MOST_SHADES and (len(strange) > 2 or anything):
        raise DataError(
            f"the mask has {len(found)} shades of grey: {_listed(found)}", where=where,
            why="shades between the labels stand for none: it was saved as JPEG, smoothed, or resampled with interpolation",
            fix="save it again as PNG or TIFF without smoothing; a threshold at half the largest value brings two labels back",
            code="E_LABEL",
        )  # fmt: skip


def check_values(found: Sequence[int], allowed: Sequence[int], where: str) -> None:
    """Refuse values that the label map does not know.

    Raises:
        DataError: E_LABEL with all values found, and a mapping if one suggests itself.
    """
    strange = [value for value in found if value not in set(allowed)]
    if strange:
        unused = [value for value in sorted(allowed) if value not in found and value != 0]
        raise DataError(
            f"label values {_listed(strange)} are not in the label map", where=where,
            why=f"the file has {_listed(found)}, the map has {_listed(sorted(allowed))}",
            fix=_suggestion(strange, unused), code="E_LABEL",
        )  # fmt: skip


def _suggestion(strange: Sequence[int], unused: Sequence[int]) -> str:
    if len(strange) == len(unused):
        pairs = ", ".join(f"{one} -> {other}" for one, other in zip(strange, unused, strict=True))
        return f"if they mean the same, renumber {pairs} in the file; else name them under 'labels' in the case list"
    if all(0 <= value <= 255 for value in strange):
        names = ", ".join(f'"{value}": "NAME"' for value in strange[:5])
        return f"name them under 'labels' in the case list ({names}), or correct the file"
    return "renumber the labels to 0 to 255; values like these are those of an image, or of a file read with a wrong data type"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")


def _slabs(volume: Volume, array: NDArray[np.generic]) -> Iterator[tuple[_Place, NDArray[np.generic]]]:
    """Pieces along the last axis, of large planes also along the one before; in Fortran order, scaled if they are at all."""
    rows, planes = array.shape[-2:]
    row = max(1, array.size // (rows * planes))
    thick, long = max(1, _SLAB // (row * rows)), max(1, _SLAB // row)
    for start in range(0, planes, thick):
        for first in range(0, rows, rows if thick > 1 else long):
            at = (..., slice(first, first + (rows if thick > 1 else long)), slice(start, start + thick))
            yield at, real_values(volume, array[at])


def real_values(volume: Volume, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Values as scaled by the header, with 64 bits, if they are scaled at all."""
    if volume.stored.slope == 1 and volume.stored.intercept == 0:
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # found as not finite
        return values.astype(np.float64) * volume.stored.slope + volume.stored.intercept


def _step(size: int) -> int:
    """Distance between the values of a sample: odd, so that it does not fall in with the lengths of rows."""
    return max(1, size // _SAMPLE) | 1


def _distinct(values: NDArray[np.generic]) -> NDArray[np.generic]:
    if values.dtype.itemsize == 1:  # counting is much faster than sorting
        counts = np.bincount(values.reshape(-1, order="A").view(np.uint8), minlength=256)
        present = np.flatnonzero(counts).astype(np.uint8)
        return present.view(values.dtype) if values.dtype.kind != "b" else present
    low, high = values.min(), values.max()
    if float(high) - float(low) < 1000:
        counts = np.bincount((values - low).ravel(order="A").astype(np.intp))
        return np.flatnonzero(counts) + low
    return np.unique(values)


def _check_range(usual: float, low: float, high: float, where: str) -> None:
    largest = max(abs(low), abs(high))
    bound = max(1.0, OUTLIER[0] * usual) if usual > 0 else _ALONE
    if largest > min(bound, LARGEST):
        raise DataError(
            f"values reach from {low:.4g} to {high:.4g}", where=where,
            why=f"{1 - OUTLIER[1]:.0%} of the voxels lie below {usual:.3g}: a few wrong ones would take all contrast"
            if largest > bound else "sums over such values overflow",
            fix="find the voxels that are wrong and correct them, or rescale the image", code="E_RANGE",
        )  # fmt: skip
    if 0 < high - low < max(SMALLEST_SPAN, 4 * float(np.finfo(np.float32).eps) * largest):
        raise DataError(
            f"values differ by {high - low:.3g} only, between {low:.6g} and {high:.6g}", where=where,
            why="contrast so small is lost in 32-bit arithmetic", fix="rescale the image, for example to other units",
            code="E_RANGE",
        )  # fmt: skip
