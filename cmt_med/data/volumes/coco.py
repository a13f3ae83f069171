"""One JSON file of COCO: its images, categories and annotations, checked.

(COCO's "Data format", cocodataset.org.) The masks of its annotations are read by :mod:`cmt_med.data.volumes.coco_masks`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.base.text import strict_json
from cmt_med.data.volumes.streams import io_error, readable_name

ENDING = ".json"
MOST_BYTES = 200_000_000
_BEGINNING = 1 << 16
"""Bytes of a file that is too large, of which one of COCO's keys shows that it is one."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Annotation:
    """One annotation.

    Attributes:
        number: counted from 1 among those of its image.
        name: of the annotation by its id, for messages.
        category: name of the category.
        content: as parsed.
    """

    number: int
    name: str
    category: str
    content: Mapping[str, Any]

    @property
    def is_crowd(self) -> bool:
        """Tell whether it covers a group of objects, which are not told apart."""
        return bool(self.content.get("iscrowd", 0))


@dataclass(frozen=True)
class CocoImage:
    """An image with its annotations; ``size`` is its width and height, if the file says so."""

    file_name: str
    size: tuple[int, int] | None = None
    annotations: list[Annotation] = field(default_factory=list)
    content: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CocoFile:
    """The content of a file.

    Attributes:
        path: of the file.
        images: in their order.
        categories: their names, in their order.
        annotated: whether it has annotations; a list of test images has none.
        sha256: of the file.
        by_name: last part of a file name -> images.
    """

    path: Path
    images: list[CocoImage]
    categories: list[str]
    annotated: bool
    sha256: str
    by_name: Mapping[str, list[CocoImage]]

    def image(self, name: str | Path) -> CocoImage:
        """Return the image with a file name, or at a path that ends with one.

        Raises:
            DataError: E_MANIFEST, if there is none, or more than one.
        """
        asked = PurePosixPath(str(name)).parts
        found = self.by_name.get(asked[-1] if asked else "", [])
        if len(found) > 1:  # the same name in several folders
            found = [image for image in found if _ends_alike(PurePosixPath(image.file_name).parts, asked)]
        if len(found) != 1:
            called = f"images called {asked[-1] if asked else name!r}"
            raise fault(
                self.path, f"the file has {len(found) or 'no'} {called}",
                "correct 'file_name', or give the file of the image's own annotations",
            )  # fmt: skip
        return found[0]


def _ends_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def is_coco(path: Path) -> bool:
    """Tell whether a path is a file of COCO, by its keys."""
    if path.suffix.lower() != ENDING or not path.is_file():
        return False
    try:
        if path.stat().st_size > MOST_BYTES:
            with path.open("rb") as stream:
                return b'"categories"' in stream.read(_BEGINNING)
        return _has_keys(_content(path)[0])
    except (OSError, DataError):
        return False


def _has_keys(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), list) for key in ("images", "categories"))
        and isinstance(content.get("annotations", []), list)
        and ("annotations" in content or all(isinstance(i, dict) and "file_name" in i for i in content["images"]))
    )


def read_coco(path: Path) -> CocoFile:
    """Read and check a file; kept until it changes.

    Raises:
        DataError: E_IO, or E_MANIFEST, naming the image or annotation, for what does not add up.
    """
    try:
        changed = path.stat().st_mtime_ns
    except (OSError, ValueError) as error:
        raise io_error(error, path) from error
    with _LOCK:  # of several readers, one parses
        return _parsed(path.absolute(), changed)


def boxes_of(path: Path, image_name: str | Path) -> list[tuple[str, float, float, float, float, bool]]:
    """The boxes around the objects of an image.

    Args:
        path: of the file.
        image_name: ``file_name`` of the image, or a path that ends with it.

    Returns:
        Category, x and y of the upper left corner, width, height in pixels, and whether it is a crowd's, for each annotation.

    Raises:
        DataError: as of :func:`read_coco`; E_MANIFEST for a box that is none, naming the annotation.
    """
    return [
        (one.category, *_box(one.content.get("bbox"), path, one.name), one.is_crowd)
        for one in read_coco(path).image(image_name).annotations
    ]


def _box(value: Any, path: Path, name: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)) or min(value[2:]) < 0:
        raise fault(path, f"{name} has the box {value!r}", "write [x, y, width, height] in pixels, with sizes above 0")
    x, y, width, height = map(float, value)
    return x, y, width, height


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- reading


def _content(path: Path) -> tuple[Any, str]:
    """The content of a file of JSON, and its sum."""
    try:
        return _json(path.absolute(), path.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError) as error:
        raise fault(path, "the file is not JSON", "save it as JSON in UTF-8", str(error)) from error


@functools.lru_cache(maxsize=2)
def _json(path: Path, _changed: int) -> tuple[Any, str]:
    text = path.read_bytes()
    return strict_json(text.decode("utf-8")), hashlib.sha256(text).hexdigest()


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, _changed: int) -> CocoFile:
    if path.stat().st_size > MOST_BYTES:
        raise fault(path, "the file is too large", "split it", f"at most {MOST_BYTES / 1e6:.0f} MB are read")
    content, digest = _content(path)
    if not _has_keys(content):
        raise fault(path, "the file is not one of COCO", "give one with images, annotations and categories")
    categories = _by_id(content["categories"], "categories", path)
    names = {key: str(item.get("name", f"category {key}")) for key, item in categories.items()}
    images: dict[Any, CocoImage] = {}
    by_name: dict[str, list[CocoImage]] = defaultdict(list)
    for key, item in _by_id(content["images"], "images", path).items():
        image = _image(item, f"image {key!r}", path)
        images[key] = image
        by_name[PurePosixPath(image.file_name).name].append(image)
    twice = [image.file_name for some in by_name.values() for image in some[1:] if image.file_name == some[0].file_name]
    if twice:
        raise fault(path, f"two images are called {twice[0]!r}", "list each image once")
    for i, item in enumerate(content.get("annotations", [])):
        if not isinstance(item, dict):
            raise fault(path, f"annotations[{i}] is {type(item).__name__}", "write an object")
        name = f"annotation {item['id']!r}" if "id" in item else f"annotations[{i}]"
        for key, known in (("image_id", images), ("category_id", names)):
            if not isinstance(item.get(key), int | str) or item[key] not in known:
                raise fault(
                    path, f"{name} has the {key} {item.get(key)!r}, which is not there", "correct it, or remove it"
                )
        annotations = images[item["image_id"]].annotations
        annotations.append(Annotation(len(annotations) + 1, name, names[item["category_id"]], item))
    return CocoFile(path, list(images.values()), list(names.values()), "annotations" in content, digest, dict(by_name))


def _by_id(items: list[Any], part: str, path: Path) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for i, item in enumerate(items):
        key = item.get("id") if isinstance(item, dict) else None
        if not isinstance(key, int | str) or key in found:
            raise fault(path, f"{part}[{i}] has the id {key!r}", "give each a number of its own")
        found[key] = item
    return found


def _image(item: Mapping[str, Any], name: str, path: Path) -> CocoImage:
    file_name = item.get("file_name")
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise fault(path, f"{name} has the file_name {file_name!r}", "write the name of its file")
    size = item.get("width"), item.get("height")
    if any(isinstance(n, bool) or not isinstance(n, int | None) or (n is not None and n < 1) for n in size):
        raise fault(path, f"{name} is {size[0]!r} × {size[1]!r} pixels", "write 'width' and 'height' in pixels")
    width, height = size
    known = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    return CocoImage(file_name.replace("\\", "/"), known, content=item)


def fault(
    path: Path, what: str, fix: str, why: str = "no object is guessed from annotations that do not add up"
) -> DataError:
    """Make the error for annotations that cannot be used."""
    return DataError(what, where=readable_name(path), why=why, fix=fix, code="E_MANIFEST")
