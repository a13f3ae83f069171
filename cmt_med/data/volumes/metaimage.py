"""MetaImage volumes (.mha, or .mhd with the voxels in a .raw or .zraw beside it), as ITK and elastix write them.

Source: "MetaIO/Documentation" of the Insight Toolkit, and how ITK understands it: coordinates are left-posterior-superior.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.grid import check_matrix, geometry_error
from cmt_med.data.volumes.header import Opened, VolumeHeader, as_tuples, check_shape
from cmt_med.data.volumes.nrrd import companion, plain_voxels
from cmt_med.data.volumes.streams import Stream, readable_name

MAX_HEADER = 1 << 20
"""Bytes within which a header must end: ITK puts all fields of the file that an image came from (NIfTI, DICOM) into it."""
TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_ORIGINS = ("Offset", "Position", "Origin")
_SPACINGS = ("ElementSpacing", "ElementSize")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read(path: Path, stream: Stream) -> Opened:
    """Read a header; the voxels follow in the file, or lie in one beside it.

    Raises:
        DataError: E_HEADER, E_DTYPE, E_NDIM, E_SIZE, E_UNITS, E_GEOMETRY, E_FORMAT, E_TRUNCATED, E_GZIP, E_IO.
    """
    where = readable_name(path)
    fields, length = _fields(stream, where)
    stored = _describe(fields, where)
    if not _flag(fields, "BinaryData", where):
        raise DataError("the voxels are stored as text", where=where, why="only binary voxels are read",
                        fix="save it again as .nii.gz", code="E_FORMAT")  # fmt: skip
    if fields.get("HeaderSize", "0") != "0":
        raise _fault("the header skips bytes in front of the voxels", where, "few readers agree on what is skipped")
    source = fields["ElementDataFile"]
    stream.close()
    deflated = _flag(fields, "CompressedData", where)
    if source.upper() == "LOCAL":
        voxels = Stream(path, start=length, deflated=deflated)
    else:
        voxels = Stream(companion(path, source), deflated=deflated)
    return Opened(stored, plain_voxels(voxels, stored))


def data_file(head: bytes) -> str | None:
    """The name of the file beside a header that holds its voxels, if there is one."""
    found = re.search(rb"^ElementDataFile\s*=[ \t]*([^\r\n]+)", head, re.M)
    name = found.group(1).decode("utf-8", "replace").strip() if found else "LOCAL"
    return None if name.upper() == "LOCAL" else name


def _fields(stream: Stream, where: str) -> tuple[dict[str, str], int]:
    head = stream.peek(MAX_HEADER)
    last = re.search(rb"^ElementDataFile\s*=[^\n]*\n?", head, re.M)
    if last is None:
        missing = "ElementDataFile is missing"
        raise _fault(
            "the header does not say where its voxels are", where,
            f"{missing} from its first {MAX_HEADER} bytes" if len(head) == MAX_HEADER else missing,
        )  # fmt: skip
    fields: dict[str, str] = {}
    for line in head[: last.end()].decode("utf-8", "replace").rstrip("\r\n").split("\n"):
        name, separator, value = line.rstrip("\r").partition("=")
        name = name.strip()
        if not separator or name in fields or not line.rstrip("\r").isprintable():
            raise _fault(f"the header has the line {line[:60]!r}", where, "it is no field, or stands twice")
        fields[name] = value.strip()
    if fields.get("ObjectType") != "Image":
        raise _fault(f"ObjectType is {fields.get('ObjectType', 'missing')[:40]!r}", where, "only images hold volumes")
    return fields, last.end()


def _describe(fields: dict[str, str], where: str) -> VolumeHeader:
    kind = fields.get("ElementType", "")
    if kind not in TYPES:
        raise DataError(
            f"the voxels are of type {kind[:40] or 'nothing'!r}", where=where, why="only real numbers are segmented",
            fix="export grey values", code="E_DTYPE",
        )  # fmt: skip
    sizes = _numbers(fields, "DimSize", where)
    if any(size != int(size) for size in sizes) or fields.get("NDims") != str(len(sizes)):
        raise _fault(
            f"NDims is {fields.get('NDims')}, DimSize {fields.get('DimSize', '')[:60]!r}", where, "they do not fit"
        )
    channels = _channels(fields, where)
    _require_plain(fields, where)
    shape = tuple(int(size) for size in sizes)
    check_shape((*shape, channels), int(TYPES[kind][-1]), where)
    if len(shape) != 3:
        raise DataError(
            f"the image is {len(shape)}D with shape {shape}", where=where, why="volumes have three axes",
            fix="save one volume alone", code="E_NDIM",
        )  # fmt: skip
    affine = _place(fields, where)
    check_matrix(affine, shape, where, "TransformMatrix")
    orders = {name: _flag(fields, name, where) for name in _BYTE_ORDERS if name in fields}
    if len(set(orders.values())) > 1:
        raise _fault(f"{' and '.join(orders)} differ", where, "readers would take the bytes in different orders")
    dtype = (">" if any(orders.values()) else "<") + TYPES[kind]
    if channels == 1:
        return VolumeHeader("MetaImage", shape, dtype, as_tuples(affine))
    return VolumeHeader("MetaImage", (*shape, channels), dtype, as_tuples(affine), channels_first=True)


def _channels(fields: dict[str, str], where: str) -> int:
    numbers = _numbers(fields, "ElementNumberOfChannels", where, (1.0,))
    if len(numbers) != 1 or numbers[0] != int(numbers[0]):
        raise _fault(
            f"ElementNumberOfChannels is {fields['ElementNumberOfChannels'][:40]!r}", where, "it is one number"
        )
    return int(numbers[0])


def _require_plain(fields: dict[str, str], where: str) -> None:
    """Refuse units and a scale of brightness, which ITK leaves unused and others may not."""
    unit = fields.get("DistanceUnits", "mm")
    if unit not in ("mm", "?"):
        raise DataError(
            f"the header gives lengths in {unit[:20]!r}", where=where, why="sizes and volumes would be off by powers of ten",
            fix="convert the image to millimetres", code="E_UNITS",
        )  # fmt: skip
    for name, neutral in (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)):
        if _numbers(fields, name, where, (neutral,)) != (neutral,):
            raise _fault(
                f"{name} is {fields[name][:40]!r}", where, "some readers scale the voxels by it and some do not"
            )


def _one_of(names: tuple[str, ...], fields: dict[str, str], where: str) -> str | None:
    """The name under which a field stands that has several; all that are there must say the same."""
    found = [name for name in names if name in fields]
    for name in found[1:]:
        if not np.array_equal(_numbers(fields, name, where), _numbers(fields, found[0], where)):
            raise _fault(
                f"{found[0]} is {fields[found[0]][:60]!r}, {name} {fields[name][:60]!r}",
                where,
                "readers choose differently",
            )
    return found[0] if found else None


def _place(fields: dict[str, str], where: str) -> NDArray[np.float64]:
    matrix, origin, spacing = (_one_of(names, fields, where) for names in (_MATRICES, _ORIGINS, _SPACINGS))
    if matrix is None or origin is None or spacing is None:
        raise geometry_error(
            "the header does not say where the volume lies", where,
            f"{', '.join(_MATRICES[:1] + _ORIGINS[:1] + ('ElementSpacing',))} are needed: without them left and right "
            "cannot be told apart", "export it again from a program that knows the patient's position, or convert the original",
        )  # fmt: skip
    directions, offset = _numbers(fields, matrix, where), _numbers(fields, origin, where)
    sizes = _numbers(fields, spacing, where)
    if (len(directions), len(offset), len(sizes)) != (9, 3, 3):
        raise _fault("matrix, offset and spacing have wrong lengths", where, "9, 3 and 3 numbers are needed")
    if min(sizes) <= 0:
        raise geometry_error(f"{spacing} is {fields[spacing][:60]!r}", where, "sizes are positive")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * sizes  # a row of the file is the direction of an axis
    affine[:3, 3] = offset
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _numbers(fields: dict[str, str], name: str, where: str, default: tuple[float, ...] = ()) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in fields[name].split()) if name in fields else default
    except ValueError:
        found = ()
    if not found or not np.isfinite(found).all() or max(map(abs, found)) > 1e15:
        raise _fault(f"{name} is {fields.get(name, 'missing')[:60]!r}", where, "finite numbers are needed")
    return found


def _flag(fields: dict[str, str], name: str, where: str) -> bool:
    value = fields.get(name, "False").lower()
    if value not in ("true", "false", "1", "0"):
        raise _fault(f"{name} is {value[:40]!r}", where, "True or False is needed")
    return value in ("true", "1")


def _fault(what: str, where: str, why: str) -> DataError:
    return DataError(what, where=where, why=why, fix="the header is damaged or unusual: save the image again as .nii.gz",
                     code="E_HEADER")  # fmt: skip
