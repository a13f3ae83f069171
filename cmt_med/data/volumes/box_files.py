"""Files of boxes: Pascal VOC (XML, one image each), COCO (JSON), a table (CSV), and what ``infer`` writes (``CASE.boxes.json``).

They all become rows of a class name and of faces, as of :mod:`cmt_med.base.boxes`. Pascal VOC counts pixels from 1 and includes
the last one, so its ``xmin`` 1 is the face 0; COCO has the first corner and the edges; a table has faces.
"""

from __future__ import annotations

import csv
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cmt_med.base.errors import DataError
from cmt_med.base.text import strict_json
from cmt_med.data.volumes.coco import boxes_of, is_coco
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.streams import io_error, readable_name

MOST_BYTES = 200_000_000
AXES = ("x", "y", "z")
FACES = {
    "xmin": ("low", 0), "ymin": ("low", 1), "zmin": ("low", 2), "xmax": ("high", 0), "ymax": ("high", 1), "zmax": ("high", 2),
    "x1": ("low", 0), "y1": ("low", 1), "z1": ("low", 2), "x2": ("high", 0), "y2": ("high", 1), "z2": ("high", 2),
}  # fmt: skip
"""Columns of a table, and the faces that they are; or x, y, z with width, height, depth."""
EDGES = {"width": 0, "w": 0, "height": 1, "h": 1, "depth": 2, "d": 2}
IMAGE_COLUMNS = ("image", "file", "filename", "image_id", "case", "id")
CLASS_COLUMNS = ("class", "label", "name", "category", "class_name")
_LONGEST_HEAD = 10_000  # characters of a table's first line
UNNAMED = "object"
"""The class of boxes that have none."""


@dataclass(frozen=True)
class ListedBox:
    """A box as a file has it: a class name, its faces (d,) in voxels, and whether finding it counts neither for nor against."""

    class_name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    ignored: bool = False
    score: float = 1.0


def listed_boxes(file: Path, image: Path) -> list[ListedBox]:
    """The boxes that a file has of an image.

    Args:
        file: ending in .xml, .json or .csv.
        image: by whose name files of several images tell which they mean.

    Raises:
        DataError: E_IO if it cannot be read; E_MANIFEST for content that is none of the known kinds, naming the place.
    """
    if is_coco(file):
        return [
            ListedBox(name, (x, y), (x + width, y + height), crowd)
            for name, x, y, width, height, crowd in boxes_of(file, image)
        ]
    try:
        changed = file.stat()
        if changed.st_size > MOST_BYTES:
            raise fault(file, f"it is larger than {MOST_BYTES} bytes", "split it")
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise fault(
                file, "its ending is none of .xml, .json and .csv", "save boxes as Pascal VOC, COCO, or a table"
            )
        by_image = reader(file, changed.st_mtime_ns)
    except OSError as error:
        raise io_error(error, file) from error
    if None in by_image:
        return by_image[None]
    return by_image.get(image.name) or by_image.get(volume_stem(image)) or []


Listing = Mapping[str | None, list[ListedBox]]
"""Boxes by the name of their image, with or without its ending; under None those of the one image of a file."""


def class_counts(files: Sequence[Path]) -> Counter[str]:
    """How many boxes of each class are in files of Pascal VOC, or in tables.

    Raises:
        DataError: as of :func:`listed_boxes`.
    """
    listings = (READERS[file.suffix.lower()](file, file.stat().st_mtime_ns) for file in files)
    return Counter(box.class_name for listing in listings for boxes in listing.values() for box in boxes)


def images_in(table: Path) -> list[str]:
    """The images that a table names.

    Raises:
        DataError: as of :func:`listed_boxes`.
    """
    return [name for name in _table(table, table.stat().st_mtime_ns) if name is not None]


def has_box_columns(table: Path) -> bool:
    """Tell whether the first line of a table names an image and the faces of boxes."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            begin = stream.readline(_LONGEST_HEAD)
    except (OSError, UnicodeDecodeError):
        return False
    header = [name.strip().strip('"').lower() for name in begin.split(max(",;\t", key=begin.count))]
    return box_columns(header) is not None and any(name in header for name in IMAGE_COLUMNS)


@functools.lru_cache(maxsize=4096)
def _voc(file: Path, _changed: int) -> Listing:
    try:
        text = file.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can be made to grow without end
            raise ValueError("it declares entities")
        root = ElementTree.fromstring(text)  # noqa: S314 - without entities, as above
    except (ValueError, ElementTree.ParseError) as error:
        raise fault(file, str(error)) from error
    return {None: [_voc_box(item, number, file) for number, item in enumerate(root.iter("object"), 1)]}


def _voc_box(item: ElementTree.Element, number: int, file: Path) -> ListedBox:
    bounds = item.find("bndbox")
    where = f"object {number}"
    if bounds is None:
        raise fault(file, f"{where} has no bndbox")
    axes = [axis for axis in AXES if bounds.find(f"{axis}min") is not None]
    low = tuple(number_in(bounds.findtext(f"{axis}min"), f"{where}: {axis}min", file) - 1 for axis in axes)
    high = tuple(number_in(bounds.findtext(f"{axis}max"), f"{where}: {axis}max", file) for axis in axes)
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return ListedBox((item.findtext("name") or "").strip() or UNNAMED, low, high, difficult)


@functools.lru_cache(maxsize=16)
def _table(file: Path, _changed: int) -> Listing:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            begin = stream.readline()
            stream.seek(0)
            table = csv.DictReader(stream, delimiter=max(",;\t", key=begin.count))
            rows, header = list(table), [str(name).strip().lower() for name in table.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise fault(file, str(error), "save it as CSV in UTF-8") from error
    columns = box_columns(header)
    if columns is None:
        raise fault(file, f"its columns are {', '.join(header)}", "name them image, class, xmin, ymin, xmax, ymax")
    named = next((name for name in IMAGE_COLUMNS if name in header), None)
    if named is None:
        raise fault(file, "no column says which image a box is of", "add a column image, with the names of files")
    kind = next((name for name in CLASS_COLUMNS if name in header), None)
    found: dict[str | None, list[ListedBox]] = {}
    for number, raw in enumerate(rows, 2):
        row = {str(key).strip().lower(): (value or "").strip() for key, value in raw.items() if isinstance(value, str)}
        low, high = columns(row, f"line {number}", file)
        name = row.get(named, "")
        if not name:
            raise fault(file, f"line {number} names no image")
        score = number_in(row["score"], f"line {number}: score", file) if row.get("score") else 1.0
        if kind and not row.get(kind):
            raise fault(
                file, f"line {number} names no class", "fill the column, or remove it where all are of one class"
            )
        box = ListedBox(row[kind] if kind else UNNAMED, low, high, score=score)
        found.setdefault(Path(name).name, []).append(box)
    return found


Columns = Callable[[Mapping[str, str], str, Path], tuple[tuple[float, ...], tuple[float, ...]]]


def box_columns(header: Sequence[str]) -> Columns | None:
    """A function from a line of a table to the faces of its box; None if the columns are not those of boxes."""
    places = {place: name for name, place in FACES.items() if name in header}
    for dims in (3, 2):
        if all(("low", axis) in places and ("high", axis) in places for axis in range(dims)):
            return functools.partial(_faces, places=places, dims=dims)
    edges = {axis: name for name, axis in EDGES.items() if name in header}
    for dims in (3, 2):
        if all(axis in edges and AXES[axis] in header for axis in range(dims)):
            return functools.partial(_edges, edges=edges, dims=dims)
    return None


def _faces(
    row: Mapping[str, str], where: str, file: Path, *, places: Mapping[tuple[str, int], str], dims: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = (
        tuple(number_in(row.get(places[side, axis]), f"{where}: {places[side, axis]}", file) for axis in range(dims))
        for side in ("low", "high")
    )
    return low, high


def _edges(
    row: Mapping[str, str], where: str, file: Path, *, edges: Mapping[int, str], dims: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low = tuple(number_in(row.get(AXES[axis]), f"{where}: {AXES[axis]}", file) for axis in range(dims))
    size = tuple(number_in(row.get(edges[axis]), f"{where}: {edges[axis]}", file) for axis in range(dims))
    return low, tuple(a + b for a, b in zip(low, size, strict=True))


@functools.lru_cache(maxsize=64)
def _json(file: Path, _changed: int) -> Listing:
    try:
        content = strict_json(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise fault(file, str(error)) from error
    if isinstance(content, dict) and isinstance(content.get("boxes"), list):
        return {None: [_own_box(item, number, file) for number, item in enumerate(content["boxes"], 1)]}
    raise fault(file, "it has neither the list boxes, nor images, annotations and categories as COCO's")


def _own_box(item: Any, number: int, file: Path) -> ListedBox:
    where = f"box {number}"
    if not isinstance(item, dict) or not all(isinstance(item.get(key), list) for key in ("low", "high")):
        raise fault(file, f"{where} has no low and high")
    low, high = (tuple(number_in(value, f"{where}: {key}", file) for value in item[key]) for key in ("low", "high"))
    if len(low) != len(high) or len(low) not in (2, 3):
        raise fault(file, f"{where} has {len(low)} and {len(high)} faces")
    score = number_in(item.get("score", 1.0), f"{where}: score", file)
    return ListedBox(str(item.get("class") or UNNAMED), low, high, bool(item.get("ignored", False)), score)


def number_in(value: Any, where: str, file: Path) -> float:
    """A finite number.

    Raises:
        DataError: E_MANIFEST, naming the place.
    """
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise fault(file, f"{where} is {value!r}, which is no number")
    return number


def fault(file: Path, why: str, fix: str = "correct or remove the file") -> DataError:
    """The error for a file of boxes that cannot be used."""
    return DataError("the boxes cannot be used", where=readable_name(file), why=why, fix=fix, code="E_MANIFEST")


READERS: dict[str, Callable[[Path, int], Listing]] = {".xml": _voc, ".csv": _table, ".json": _json}
"""By the ending of a file."""
