"""Repairs of NIfTI files that need no guess; the original is never touched.

What is repaired: lengths in metres or micrometres, voxel sizes that contradict the sform, a qform or sform that was plainly never
set, axes that rounding has bent by less than a degree, and labels that are nearly whole numbers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.grid import (
    GEOMETRY_TOLERANCE,
    NEARLY_PERPENDICULAR,
    SPACING_TOLERANCE,
    corner_distance,
    perpendicular,
)
from cmt_med.data.volumes.nifti import Header, parse, patched, shape_of, unit_factor, voxel_offset, voxel_type
from cmt_med.data.volumes.nifti_geometry import qform, qform_parameters, sform
from cmt_med.data.volumes.streams import Stream, readable_name
from cmt_med.data.volumes.values import LABEL_TOLERANCE

_METRE, _MILLIMETRE = 1, 2
Changes = dict[str, tuple[float, ...]]


class Repaired(NamedTuple):
    """A repaired file: what was done, a clause each, and its bytes, not compressed, which are made when asked for."""

    done: list[str]
    size: int
    content: Iterator[bytes]


def repaired(path: Path, *, label: bool) -> Repaired | None:
    """The content of a repaired copy; None if nothing can be repaired.

    It reads a foreign file, so it is for the decoding process: :func:`cmt_med.data.volumes.decoder.repair` asks there.

    Args:
        path: a single NIfTI file.
        label: whether it is a label map.

    Raises:
        DataError: if the file cannot be read even so far; also while the content is made.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    where = readable_name(path)
    with contextlib.closing(Stream(path)) as stream:
        header = parse(stream.peek(540), where)
        if stream.compressed != path.name.lower().endswith(".gz"):
            return None  # which of the two is wrong would be a guess
        dtype = header.order + voxel_type(header, where)
        shape = shape_of(header, int(dtype[-1]), where)
        head = stream.read(voxel_offset(header, where))
        size = int(np.prod(shape)) * int(dtype[-1])
        stream.require(size, "voxels")
        labels = _Labels(header, dtype, where)
        nearly = label and labels.nearly_whole(stream.payload(size, "voxels"))
    changes, done = header_changes(header, shape, where)
    if nearly:
        changes |= {"datatype": (2,), "bitpix": (8,), "scl_slope": (1.0,), "scl_inter": (0.0,)}
        done.append(f"labels rounded to whole numbers and stored as 8-bit integers (were {np.dtype(dtype).name})")
    if not done:
        return None
    pieces = _voxels(path, len(head), size)
    content = itertools.chain([patched(head, header, changes)], map(labels.whole, pieces) if nearly else pieces)
    return Repaired(done, len(head) + (size // int(dtype[-1]) if nearly else size), content)


def _voxels(path: Path, offset: int, size: int) -> Iterator[bytes]:
    with contextlib.closing(Stream(path)) as stream:
        stream.read(offset)
        yield from stream.payload(size, "voxels")


def header_changes(header: Header, shape: Sequence[int], where: str) -> tuple[Changes, list[str]]:
    """Fields to change in a header, and what that means."""
    changes: Changes = {}
    done: list[str] = []
    for step in (_units, _unset_form, _bent_axes, _spacing):
        changed, clause = step(header, shape, where)
        if clause:
            done.append(clause)
            changes |= changed
            header = replace(header, fields=header.fields | changed)
    return changes, done


def _units(header: Header, shape: Sequence[int], where: str) -> tuple[Changes, str]:
    code = int(header.one("xyzt_units"))
    factor = unit_factor(header)
    if factor is None:
        return {}, ""
    sizes = np.array(header.fields["pixdim"][1:4])
    pixdim = list(header.fields["pixdim"])
    pixdim[1:4] = [float(v) for v in sizes * factor]
    changes: Changes = {
        "xyzt_units": ((code & ~7) | _MILLIMETRE,),
        "pixdim": tuple(pixdim),
        "qoffset": tuple(v * factor for v in header.fields["qoffset"]),
        "srow": tuple(v * factor for v in header.fields["srow"]),
    }
    return changes, f"lengths converted from {'metres' if code & 7 == _METRE else 'micrometres'} to millimetres"


def _unset_form(header: Header, shape: Sequence[int], where: str) -> tuple[Changes, str]:
    """Fill the form that was plainly never set (all zero, or the identity at the origin) from the other one.

    The identity says which side is left. Where the other form is mirrored to it, to take one of them would be a guess.
    """
    if header.place.qform_code == 0 or header.place.sform_code == 0:
        return {}, ""
    stated = sform(header.place)
    never_sform = not stated[:3].any() or np.array_equal(stated, np.eye(4))
    never_qform = not any(header.fields["quatern"]) and not any(header.fields["qoffset"])
    try:
        other = qform(header.place, where)
    except DataError:
        return {}, ""
    if stated[:3].any() and np.linalg.det(stated[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return {}, ""
    if never_sform and not never_qform and not np.allclose(other, stated):
        return {"srow": tuple(float(v) for v in other[:3].ravel())}, "the sform, never set, filled from the qform"
    if never_qform and not never_sform and _valid(stated) and _apart(stated, other, shape):
        return _qform_from(header, stated), "the qform, never set, filled from the sform"
    return {}, ""


def _bent_axes(header: Header, shape: Sequence[int], where: str) -> tuple[Changes, str]:
    stated = sform(header.place)
    if header.place.sform_code == 0 or not _valid(stated):
        return {}, ""
    cosines = stated[:3, :3] / np.linalg.norm(stated[:3, :3], axis=0)
    bent = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    straight = perpendicular(stated, shape)
    if bent > NEARLY_PERPENDICULAR or not _apart(straight, stated, shape):
        return {}, ""
    moved = corner_distance(straight, stated, shape)
    changes: Changes = {"srow": tuple(float(v) for v in straight[:3].ravel())}
    if header.place.qform_code > 0:
        changes |= _qform_from(header, straight)
    return changes, f"axes made perpendicular about the volume's centre (corners move by up to {moved:.3g} mm)"


def _spacing(header: Header, shape: Sequence[int], where: str) -> tuple[Changes, str]:
    stated = sform(header.place)
    if header.place.sform_code == 0 or header.place.qform_code != 0 or not _valid(stated):
        return {}, ""
    sizes = np.linalg.norm(stated[:3, :3], axis=0)
    if np.allclose(header.fields["pixdim"][1:4], sizes, rtol=SPACING_TOLERANCE, atol=0):
        return {}, ""
    pixdim = list(header.fields["pixdim"])
    pixdim[1:4] = [float(v) for v in sizes]
    return {"pixdim": tuple(pixdim)}, "pixdim set to the sform's voxel sizes (no qform uses it)"


def _qform_from(header: Header, affine: NDArray[np.float64]) -> Changes:
    quatern, handed = qform_parameters(affine)
    sizes = [float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)]
    rest = header.fields["pixdim"][4:]
    return {"quatern": quatern, "qoffset": tuple(float(v) for v in affine[:3, 3]), "pixdim": (handed, *sizes, *rest)}


def _valid(affine: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12)


def _apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> bool:
    smallest = np.linalg.norm(one[:3, :3], axis=0).min()
    return corner_distance(one, other, shape) > GEOMETRY_TOLERANCE * float(smallest)


class _Labels:
    """Labels as integers, a piece of the file at a time, where they are within 0.001 of whole numbers from 0 to 255."""

    def __init__(self, header: Header, dtype: str, where: str) -> None:
        slope, intercept = header.one("scl_slope"), header.one("scl_inter")
        scaled = bool(np.isfinite([slope, intercept]).all()) and slope != 0
        self.slope, self.intercept = (slope, intercept) if scaled else (1.0, 0.0)
        self.dtype, self.where = np.dtype(dtype), where
        self.apart = 0.0

    def nearly_whole(self, pieces: Iterable[bytes]) -> bool:
        """Tell whether every value is close to an integer, and at least one is not exact."""
        if self.dtype.kind != "f" and self.slope == int(self.slope) and self.intercept == int(self.intercept):
            return False
        try:
            for piece in pieces:
                self.whole(piece)
        except _NoLabelsError:
            return False
        return self.apart > 0

    def whole(self, piece: bytes) -> bytes:
        """Round one piece to integers.

        Raises:
            _NoLabelsError: if it has values that are not close to 0 to 255.
        """
        values = np.frombuffer(piece, dtype=self.dtype).astype(np.float64) * self.slope + self.intercept
        whole = np.rint(values)
        apart = float(np.abs(values - whole).max())  # NaN where there is one
        if not apart <= LABEL_TOLERANCE or whole.min() < 0 or whole.max() > 255:
            raise _NoLabelsError(
                "the voxels are no labels", where=self.where, why="some are not near whole numbers from 0 to 255",
                fix="correct the label map", code="E_LABEL",
            )  # fmt: skip
        self.apart = max(self.apart, apart)
        return whole.astype(np.uint8).tobytes()


class _NoLabelsError(DataError):
    """Some values are not close enough to integers to be labels."""
