"""NIfTI-1 and NIfTI-2, read strictly: what two readers could understand differently is refused.

Sources: nifti1.h (R. Cox, 2003-2007) and nifti2.h (2011), https://nifti.nimh.nih.gov.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.header import Opened, VolumeHeader, as_tuples, check_shape
from cmt_med.data.volumes.nifti_geometry import Place, place_affine
from cmt_med.data.volumes.streams import Stream, readable_name

FIELDS_1 = {
    "dim": (40, "8h"), "intent_code": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
    "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"), "xyzt_units": (123, "B"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"), "qoffset": (268, "3f"), "srow": (280, "12f"),
}  # fmt: skip
FIELDS_2 = {
    "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"), "pixdim": (104, "8d"), "vox_offset": (168, "q"),
    "scl_slope": (176, "d"), "scl_inter": (184, "d"), "qform_code": (344, "i"), "sform_code": (348, "i"),
    "quatern": (352, "3d"), "qoffset": (376, "3d"), "srow": (400, "12d"), "xyzt_units": (500, "i"), "intent_code": (504, "i"),
}  # fmt: skip
DATATYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_OTHER_TYPES = {1: "single bits", 32: "complex numbers", 128: "RGB colours", 1536: "128-bit floats", 1792: "complex numbers",
                2048: "complex numbers", 2304: "RGBA colours"}  # fmt: skip
_UNITS = {1: "metres", 3: "micrometres"}
_TO_MILLIMETRES = {1: 1e3, 3: 1e-3}
PLAUSIBLE = (0.01, 50.0)
"""Voxel sizes in mm of medical images; outside, a unit in the header is as likely wrong as the numbers."""
_CIFTI = range(3000, 3100)
_VERTICES = frozenset(10 * 4**level + 2 for level in range(3, 8))
"""Vertices of FreeSurfer's average surfaces, icosahedra that are divided three to seven times: 642 to 163,842."""
_CUT_UP = (27307, 1, 6)
"""The shape in which FreeSurfer stores 163,842 × 1 × 1, which does not fit into the 16 bits that NIfTI-1 has for an axis."""
MAX_EXTENSIONS = 1 << 28


@dataclass(frozen=True)
class Header:
    """The fields of a NIfTI header that decide about voxels and place, as they stand in the file.

    Attributes:
        version: 1 or 2.
        order: byte order, ``<`` or ``>``.
        single: whether the voxels follow in the same file.
        fields: name -> number, or tuple of numbers.
    """

    version: int
    order: str
    single: bool
    fields: dict[str, tuple[float, ...]]

    @property
    def length(self) -> int:
        """Bytes of the header."""
        return 540 if self.version == 2 else 348

    def one(self, name: str) -> float:
        """A field with one number."""
        return self.fields[name][0]

    @property
    def place(self) -> Place:
        """The fields that say where the volume lies."""
        f = self.fields
        return Place(
            pixdim=f["pixdim"][:4], qform_code=int(self.one("qform_code")), sform_code=int(self.one("sform_code")),
            quatern=f["quatern"], qoffset=f["qoffset"], srow=f["srow"], rounded=self.version == 1,
        )  # fmt: skip


def parse(head: bytes, where: str) -> Header:
    """The header in the first bytes of a file.

    Raises:
        DataError: E_HEADER if they are not one.
    """
    for version, table, magic_at, ending in ((1, FIELDS_1, 344, b"1\0"), (2, FIELDS_2, 4, b"2\0\r\n\x1a\n")):
        length = 348 if version == 1 else 540
        magic = head[magic_at : magic_at + 2 + len(ending)]
        for order in "<>":
            if head[:4] == struct.pack(f"{order}i", length) and magic in (b"n+" + ending, b"ni" + ending):
                if len(head) < length:
                    break
                fields = {n: struct.unpack_from(order + form, head, at) for n, (at, form) in table.items()}
                return Header(version, order, magic[1:2] == b"+", fields)
    raise DataError(
        "the NIfTI header is damaged or cut", where=where,
        why="its length and its magic word do not fit together (was it copied as a text file?)",
        fix="copy the file again, or convert the original again", code="E_HEADER",
    )  # fmt: skip


def description(path: Path) -> bytes:
    """The description in a NIfTI-1 header, 80 bytes; nothing, of any other file."""
    with contextlib.suppress(DataError), contextlib.closing(Stream(path)) as stream:
        head = stream.peek(348)
        return head[148:228] if parse(head, "").version == 1 else b""
    return b""


def patched(head: bytes, header: Header, changes: dict[str, tuple[float, ...]]) -> bytes:
    """The header's bytes with some fields replaced; everything else stays as it is."""
    table = FIELDS_2 if header.version == 2 else FIELDS_1
    result = bytearray(head)
    for name, values in changes.items():
        at, form = table[name]
        whole = form[-1] in "hiqB"
        struct.pack_into(header.order + form, result, at, *(int(v) if whole else v for v in values))
    return bytes(result)


def read(path: Path, stream: Stream) -> Opened:
    """A single file (.nii, .nii.gz), or the header of a pair, whose voxels lie in the .img file beside it.

    Raises:
        DataError: E_HEADER, E_DTYPE, E_NDIM, E_SIZE, E_UNITS, E_GEOMETRY, E_TRUNCATED, E_GZIP, E_IO.
    """
    where = readable_name(path)
    header = parse(stream.peek(540), where)
    stored = describe(header, where)
    offset = voxel_offset(header, where)
    if header.single:
        return Opened(stored, _voxels(stream, offset, stored))
    if not stream.compressed and stream.size > MAX_EXTENSIONS:
        raise _fault("the header file of a pair is larger than any header", where, f"it has {stream.size} bytes")
    while stream.read(1 << 16):  # extensions; and the checksum at the end
        pass
    return Opened(stored, _voxels(_beside(partner(path), offset + stored.size), offset, stored))


def _beside(path: Path, size: int) -> Stream:
    """The voxels of a pair, which its name says to be compressed or not: the first ones may happen to be gzip's magic."""
    stream = Stream(path, deflated=path.name.lower().endswith(".gz"))
    if not stream.compressed and stream.size != size and stream.peek(2) == b"\x1f\x8b":
        stream.close()
        raise DataError(
            "the voxels are compressed with gzip under another name", where=readable_name(path),
            why="programs choose how to read a file by its name, so they would differ",
            fix="unpack the file, or rename the pair: it ends in .hdr.gz and .img.gz if both are compressed", code="E_FORMAT",
        )  # fmt: skip
    return stream


def partner(path: Path) -> Path:
    """The other file of a .hdr/.img pair."""
    lower = path.name.lower()
    for one, other in ((".hdr", ".img"), (".img", ".hdr"), (".hdr.gz", ".img.gz"), (".img.gz", ".hdr.gz")):
        if lower.endswith(one):
            stem, ending = path.name[: -len(one)], path.name[-len(one) :]
            return path.with_name(stem + (other.upper() if ending.isupper() else other))
    return path


def describe(header: Header, where: str) -> VolumeHeader:
    """Check a header.

    Raises:
        DataError: see :func:`read`.
    """
    if int(header.one("intent_code")) in _CIFTI:
        raise DataError(
            "a CIFTI-2 file: a matrix over the brain's surface and grey matter, not a volume", where=where,
            why="it has no grid of voxels", fix="export a volume (wb_command -cifti-separate ... VOLUME-ALL)", code="E_FORMAT",
        )  # fmt: skip
    dtype = voxel_type(header, where)
    shape = shape_of(header, int(dtype[-1]), where)
    slope, intercept = _scaling(header, where)
    _check_units(header, where)
    affine, notes = place_affine(header.place, shape, where)
    if int(header.one("xyzt_units")) & 7 == 0:
        notes = (*notes, "the header names no unit; millimetres are assumed, as every reader does")
    return VolumeHeader(
        f"NIfTI-{header.version}", shape, header.order + dtype, as_tuples(affine), slope, intercept, notes=notes
    )


def _voxels(stream: Stream, offset: int, stored: VolumeHeader) -> Iterator[bytes]:
    expected = f"{' × '.join(map(str, stored.shape))} voxels of {stored.dtype[1:]}"
    try:
        stream.require(offset - stream.position + stored.size, expected)
        while stream.position < offset:
            if not stream.read(min(1 << 20, offset - stream.position)):
                raise stream.truncated("the voxels would begin behind its end")
        yield from stream.payload(stored.size, expected)
    except DataError as error:
        raise stream.blame(error) from error
    finally:
        stream.close()


def voxel_type(header: Header, where: str) -> str:
    code, bits = int(header.one("datatype")), int(header.one("bitpix"))
    if code in _OTHER_TYPES:
        raise DataError(
            f"the voxels are {_OTHER_TYPES[code]}", where=where, why="only real numbers of at most 64 bits are segmented",
            fix="export magnitude or grey values", code="E_DTYPE",
        )  # fmt: skip
    if code not in DATATYPES:
        raise _fault(
            f"the header names the data type {code}, which does not exist", where, "bytes cannot become numbers"
        )
    expected = 8 * int(DATATYPES[code][-1])
    if bits not in (0, expected):  # some tools leave it empty; the type alone decides
        raise _fault(
            f"the header says {bits} bits per voxel, its data type {DATATYPES[code]} has {expected}", where,
            "one of the two is wrong, and readers choose differently",
        )  # fmt: skip
    return DATATYPES[code]


def shape_of(header: Header, itemsize: int, where: str) -> tuple[int, ...]:
    count, *sizes = (int(v) for v in header.fields["dim"])
    if not 1 <= count <= 7:
        raise _fault(f"the header claims {count} axes", where, "NIfTI has one to seven")
    shape = tuple(sizes[:count])
    _require_volume(shape, where)
    check_shape(shape, itemsize, where)
    if count < 3:
        raise DataError(
            f"the image is {count}D with shape {shape}", where=where, why="volumes have three axes",
            fix="stack the slices of the volume into one file", code="E_NDIM",
        )  # fmt: skip
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require_volume(shape: tuple[int, ...], where: str) -> None:
    """Raise where the sizes are those of values on a surface, which FreeSurfer writes as NIfTI, too.

    An axis of -1 stands for a number of vertices that does not fit into it.
    """
    if shape[:3] == _CUT_UP or (shape[1:3] == (1, 1) and (shape[0] == -1 or shape[0] in _VERTICES)):
        count = {-1: "more than 32,767", _CUT_UP[0]: "163,842"}.get(shape[0], f"{shape[0]:,}")
        raise DataError(
            f"a FreeSurfer surface file: values at {count} vertices, not a volume", where=where,
            why=f"its sizes, {' × '.join(map(str, shape))}, count vertices; they have no grid of voxels",
            fix="give the volume, or project the values into it (mri_surf2vol)", code="E_FORMAT",
        )  # fmt: skip


def _scaling(header: Header, where: str) -> tuple[float, float]:
    slope, intercept = header.one("scl_slope"), header.one("scl_inter")
    if slope == 0 or math.isnan(slope):
        if intercept != 0 and not math.isnan(intercept):
            raise _fault(
                f"scl_slope is {slope:g} with scl_inter {intercept:g}", where,
                "some readers then add the intercept and some do not, so the voxels would depend on the reader",
            )  # fmt: skip
        return 1.0, 0.0  # the standard's way, and nibabel's, of saying that values are not scaled
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise _fault(f"scl_slope is {slope:g} and scl_inter {intercept:g}", where, "no voxel would have a value")
    return slope, intercept


def unit_factor(header: Header) -> float | None:
    """From the header's metres or micrometres to mm; None for other units, and where that would make implausible voxels."""
    factor = _TO_MILLIMETRES.get(int(header.one("xyzt_units")) & 7)
    if factor is None or not all(
        PLAUSIBLE[0] <= size * factor <= PLAUSIBLE[1] for size in header.fields["pixdim"][1:4]
    ):
        return None
    return factor


def _check_units(header: Header, where: str) -> None:
    code = int(header.one("xyzt_units")) & 7
    if code in (0, 2):
        return
    name = _UNITS.get(code, f"an unknown unit, {code}")
    fix = "set xyzt_units to 2, millimetres"
    if unit_factor(header) is not None:
        fix = "`inspect --fix` writes a copy in millimetres"
    elif code in _UNITS:
        sizes = " × ".join(f"{size:g}" for size in header.fields["pixdim"][1:4])
        fix = (
            f"find out whether unit or numbers are wrong: no voxel is of {sizes} {name}. If they are millimetres, {fix}"
        )
    raise DataError(
        f"the header gives lengths in {name}", where=where,
        why="some readers convert to millimetres and some do not, so sizes and volumes would be off by powers of ten",
        fix=fix, code="E_UNITS",
    )  # fmt: skip


def voxel_offset(header: Header, where: str) -> int:
    value = header.one("vox_offset")
    least = header.length + 4 if header.single else 0
    if not (math.isfinite(value) and value == int(value) and least <= value <= MAX_EXTENSIONS):
        raise _fault(
            f"vox_offset is {value:g}, voxels begin at {least} at the earliest", where, "the voxels would be shifted"
        )
    return int(value)


def _fault(what: str, where: str, why: str) -> DataError:
    return DataError(what, where=where, why=why, fix="the header is damaged: convert the original image again",
                     code="E_HEADER")  # fmt: skip
