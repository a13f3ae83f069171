"""NRRD volumes (.nrrd, or .nhdr with the voxels beside it), as 3D Slicer and pyradiomics write them.

Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html (versions 1 to 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.grid import check_matrix, geometry_error
from cmt_med.data.volumes.header import Opened, VolumeHeader, as_tuples, check_shape
from cmt_med.data.volumes.streams import Stream, readable_name

MAX_HEADER = 1 << 20
_TYPES = {
    "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t", "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip
TYPES = {alias: dtype for dtype, aliases in _TYPES.items() for alias in aliases.split("|")}
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
_FIELDS = re.compile(
    "dimension|type|block size|blocksize|encoding|endian|content|min|max|old min|oldmin|old max|oldmax|data file|datafile|"
    "line skip|lineskip|byte skip|byteskip|number|sample units|sampleunits|space|space dimension|space units|space origin|"
    "space directions|measurement frame|sizes|spacings|thicknesses|axis mins|axismins|axis maxs|axismaxs|centers|centerings|"
    "labels|units|kinds"
)
_ALIASES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "axismins": "axis mins",
            "axismaxs": "axis maxs"}  # fmt: skip
_COLOURS = re.compile("complex|rgb-color|hsv-color|xyz-color|rgba-color|3-color|4-color")
_SPATIAL = ("domain", "space", "none", "???")  # the last two say that the kind is not known
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")
_KINDS = re.compile(
    f"{_COLOURS.pattern}|"
    "domain|space|time|list|point|vector|covariant-vector|normal|stub|scalar|2-vector|3-vector|3-gradient|"
    "3-normal|4-vector|quaternion|2d-symmetric-matrix|2d-masked-symmetric-matrix|2d-matrix|2d-masked-matrix|3d-symmetric-matrix|"
    "3d-masked-symmetric-matrix|3d-matrix|3d-masked-matrix|none|[?]{3}"
)
_VECTOR = r"\( *[^() ,]+ *, *[^() ,]+ *, *[^() ,]+ *\)"


def read(path: Path, stream: Stream) -> Opened:
    """Read a header; the voxels follow in the file, or lie in one beside it.

    Raises:
        DataError: E_HEADER, E_DTYPE, E_NDIM, E_SIZE, E_UNITS, E_GEOMETRY, E_FORMAT, E_TRUNCATED, E_GZIP, E_IO.
    """
    where = readable_name(path)
    fields, length = _fields(stream, where)
    stored = _describe(fields, where)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise DataError(
            f"the voxels are encoded as {encoding or 'nothing'!r}", where=where, why="raw and gzip are read",
            fix="save it again with gzip compression, for example as .nii.gz", code="E_FORMAT",
        )  # fmt: skip
    if any(fields.get(name, "0") != "0" for name in ("line skip", "byte skip")):
        raise _fault(
            "the header skips lines or bytes in front of the voxels", where, "few readers agree on what is skipped"
        )
    detached = fields.get("data file")
    source = path
    if detached is not None:
        source, length = companion(path, detached), 0
    stream.close()
    return Opened(stored, plain_voxels(Stream(source, start=length, deflated=encoding != "raw"), stored))


def data_file(head: bytes) -> str | None:
    """The name of the file beside a header that holds its voxels, if there is one."""
    header = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    found = re.search(rb"^data ?file:(?!=) *([^\r\n]+)", header, re.M | re.I)
    return found.group(1).decode("utf-8", "replace").strip() if found else None


def companion(path: Path, name: str) -> Path:
    """The file beside a header that holds its voxels.

    Raises:
        DataError: E_HEADER for a name that leads to another folder; E_FORMAT for several files.
    """
    where = readable_name(path)
    if name.startswith("LIST") or "%" in name or (len(name.split()) > 1 and not (path.parent / name).exists()):
        raise DataError(
            "the voxels are spread over several files", where=where, why=f"the header names {name[:60]!r}",
            fix="save it again as one file", code="E_FORMAT",
        )  # fmt: skip
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise _fault(f"the header names {name[:60]!r} for its voxels", where, "a file elsewhere is never opened for it")
    return path.parent / name


def _fields(stream: Stream, where: str) -> tuple[dict[str, str], int]:
    """The header's fields in lower case, and its length in bytes."""
    head = stream.peek(MAX_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    lines = (head if end is None else head[: end.start()]).decode("utf-8", "replace").split("\n")
    if end is None and (len(head) == MAX_HEADER or not any(re.match("data ?file:", line) for line in lines)):
        raise (
            stream.truncated("the header has no end")
            if len(head) < MAX_HEADER
            else _fault("the header has no end", where, f"none within {MAX_HEADER} bytes")
        )
    if not re.fullmatch(r"NRRD000[1-5]\r?", lines[0]):
        raise _fault(f"the header begins with {lines[0][:20]!r}", where, "versions 1 to 5 are known")
    fields: dict[str, str] = {}
    for line in filter(None, (line.rstrip("\r") for line in lines[1:])):
        name, _, value = line.partition(":")
        if line.startswith("#") or (value.startswith("=") and line.isprintable()):
            continue  # comments, and what programs keep for themselves
        if not _FIELDS.fullmatch(name.lower()) or not line.isascii() or not line.isprintable():
            raise _fault(f"the header has the line {line[:60]!r}", where, "it is neither a field nor a comment")
        key = _ALIASES.get(name.lower(), name.lower())
        if key in fields:
            raise _fault(f"the header has {key!r} twice", where, "readers differ in which one they take")
        fields[key] = value.strip()
    return fields, len(head) if end is None else end.end()


def _describe(fields: dict[str, str], where: str) -> VolumeHeader:
    kind = fields.get("type", "")
    if kind.lower() not in TYPES:
        raise DataError(
            f"the voxels are of type {kind[:40] or 'nothing'!r}", where=where, why="only real numbers are segmented",
            fix="export grey values", code="E_DTYPE",
        )  # fmt: skip
    dtype = TYPES[kind.lower()]
    sizes = _integers(fields.get("sizes", ""), "sizes", where)
    if str(len(sizes)) != fields.get("dimension"):
        raise _fault(
            f"dimension is {fields.get('dimension')}, sizes has {len(sizes)}", where, "one of the two is wrong"
        )
    check_shape(sizes, int(dtype[-1]), where)
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower(), "")
    if not order and dtype[-1] != "1":
        raise _fault(
            "the header names no byte order (endian)", where, "numbers of several bytes cannot be read without it"
        )
    extra, affine = _place(fields, len(sizes), where)
    kinds = fields.get("kinds", "domain " * len(sizes)).lower().split()
    if len(kinds) != len(sizes) or not all(map(_KINDS.fullmatch, kinds)):
        raise _fault(f"kinds is {fields.get('kinds', '')[:60]!r}", where, "each axis has one of the known kinds")
    if extra is not None and _COLOURS.fullmatch(kinds[extra]):
        raise DataError(
            f"the voxels are of kind {kinds[extra]}", where=where, why="only real numbers are segmented",
            fix="export grey values", code="E_DTYPE",
        )  # fmt: skip
    if not all(kind in _SPATIAL for i, kind in enumerate(kinds) if i != extra):
        raise _fault(
            f"kinds is {fields['kinds'][:60]!r}", where, "an axis with a direction in space is said to be none of it"
        )
    _require_one_measure(fields, len(sizes), extra, where)
    spatial = [n for i, n in enumerate(sizes) if i != extra]
    check_matrix(affine, spatial, where, "space directions")
    if extra is None:
        return VolumeHeader("NRRD", tuple(spatial), (order or "<") + dtype, as_tuples(affine))
    if extra not in (0, len(sizes) - 1):
        raise _fault("the axis that is not in space stands between those that are", where, "few readers understand it")
    shape = (*spatial, sizes[extra])
    return VolumeHeader("NRRD", shape, (order or "<") + dtype, as_tuples(affine), channels_first=extra == 0)


def _place(fields: dict[str, str], count: int, where: str) -> tuple[int | None, NDArray[np.float64]]:
    """The axis that is not spatial, if there is one, and the matrix from indices to millimetres (RAS+)."""
    space = fields.get("space", "").lower()
    directions = re.findall(rf"{_VECTOR}|none", fields.get("space directions", ""))
    if " ".join(directions) != fields.get("space directions", ""):
        raise _fault(
            f"space directions is {fields['space directions'][:80]!r}", where, "vectors in parentheses are needed"
        )
    if space not in _TO_RAS or not directions or "space origin" not in fields:
        raise geometry_error(
            "the header does not say where the volume lies", where,
            f"space is {space or 'missing'!r}, directions and origin are {'there' if directions else 'missing'}: left and right "
            "cannot be told apart",
            "export it again from a program that knows the patient's position (3D Slicer), or convert the original",
        )  # fmt: skip
    _require_millimetres(_quoted(fields, "space units", 3, where), where)
    extra = [i for i, direction in enumerate(directions) if direction == "none"]
    vectors = [_vector(d, where) for d in directions if d != "none"]
    if len(directions) != count or len(vectors) != 3 or len(extra) > 1:
        raise DataError(
            f"the image has {count} axes, of which {len(vectors)} lie in space", where=where,
            why="a volume has three, and at most one more", fix="save one volume alone", code="E_NDIM",
        )  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(vectors)
    affine[:3, 3] = _vector(fields["space origin"], where)
    return (extra[0] if extra else None), np.diag([*_TO_RAS[space], 1.0]) @ affine


def _require_one_measure(fields: dict[str, str], count: int, extra: int | None, where: str) -> None:
    """Refuse what gives an axis in space a second length, place or unit beside its direction."""
    if fields.get("space dimension", "3") != "3":
        raise _fault(f"space dimension is {fields['space dimension'][:20]!r}", where, "the space has three")
    units = _quoted(fields, "units", count, where)
    _require_millimetres([unit for i, unit in enumerate(units) if i != extra], where)
    for name in ("spacings", "axis mins", "axis maxs"):
        numbers = fields.get(name, "nan " * count).lower().split()
        if len(numbers) != count or any(number != "nan" for i, number in enumerate(numbers) if i != extra):
            raise _fault(
                f"{name} is {fields[name][:60]!r}", where, "the directions say where the axes lie: readers choose"
            )


def _quoted(fields: dict[str, str], name: str, count: int, where: str) -> list[str]:
    """The quoted texts of a field with one for each axis; empty texts if the field is not there."""
    text = fields.get(name, '"" ' * count).strip()
    if not re.fullmatch(rf'("[^"]*"\s*){{{count}}}', text):
        raise DataError(
            f"{name} is {text[:60]!r}", where=where, why=f"{count} units in double quotes are needed, so what it means is open",
            fix="convert the image to millimetres, or leave the units out if it is in millimetres", code="E_UNITS",
        )  # fmt: skip
    return re.findall(r'"([^"]*)"', text)


def _require_millimetres(units: list[str], where: str) -> None:
    for unit in units:
        if unit.lower() not in _MILLIMETRES:
            raise DataError(
                f"the header gives lengths in {unit[:20]!r}", where=where, why="sizes and volumes would be off by powers of ten",
                fix="convert the image to millimetres", code="E_UNITS",
            )  # fmt: skip


def _vector(text: str, where: str) -> list[float]:
    try:
        numbers = [float(part) for part in text[1:-1].split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not re.fullmatch(_VECTOR, text):
        raise _fault(f"{text[:60]!r} is no vector", where, "directions and origin have three numbers each")
    return numbers


def _integers(text: str, name: str, where: str) -> list[int]:
    if not re.fullmatch(r"[+-]?\d{1,18}(\s+[+-]?\d{1,18})*", text):
        raise _fault(f"{name} is {text[:60]!r}", where, "whole numbers are needed")
    return [int(part) for part in text.split()]


def plain_voxels(stream: Stream, stored: VolumeHeader) -> Iterator[bytes]:
    """The voxels of a stream that holds nothing else; used by formats with a text header."""
    expected = f"{' × '.join(map(str, stored.shape))} voxels of {stored.dtype[1:]}"
    try:
        stream.require(stored.size, expected)
        yield from stream.payload(stored.size, expected)
    finally:
        stream.close()


def _fault(what: str, where: str, why: str) -> DataError:
    return DataError(what, where=where, why=why, fix="the header is damaged or unusual: save the image again as .nii.gz",
                     code="E_HEADER")  # fmt: skip
