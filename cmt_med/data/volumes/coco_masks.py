"""The objects of an image by COCO's annotations: polygons and run lengths (RLE), numbered in the order of the annotations.

pycocotools decodes them, so that a pixel is inside a polygon where COCO says so. Run lengths that do not add up to the image, for
which it would write beyond its memory, are refused before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.coco import Annotation, CocoImage, fault, read_coco

FEWEST_NUMBERS = 6
"""Of a polygon: three corners."""


def object_masks(path: Path, image: Path, size: tuple[int, int]) -> list[tuple[int, NDArray[np.int64]]]:
    """The objects of an image that are no crowd.

    Args:
        path: of the file of COCO.
        image: whose annotations are read.
        size: its width and height.

    Returns:
        For each object its number, and its pixels as places in the flat array (width, height). Objects are numbered from 1.

    Raises:
        DataError: E_MANIFEST for annotations without a mask, and for masks that are none; E_GRID for another size.
    """
    listed = read_coco(path).image(image)
    if listed.size not in (None, size):
        raise DataError(
            "the annotations are of an image of another size", where=f"{path}: {listed.file_name}",
            why=f"they say {listed.size}, the image has {size} pixels", fix="give the image that was annotated", code="E_GRID",
        )  # fmt: skip
    kept = (one for one in listed.annotations if not one.is_crowd)
    return [(number, _places(one, size, path)) for number, one in enumerate(kept, 1)]


def key_of(path: Path, image: Path) -> str:
    """A sum of what a file of COCO says of one image; the sum of the whole would change with every other image."""
    listed = read_coco(path).image(image)
    parts = [one.content for one in listed.annotations]
    return hashlib.sha256(json.dumps([listed.size, parts], sort_keys=True).encode()).hexdigest()


def crowds(images: Sequence[CocoImage]) -> int:
    """Count the annotations that cover groups of objects."""
    return sum(one.is_crowd for image in images for one in image.annotations)


def has_mask(annotation: Annotation) -> bool:
    """Tell whether an annotation has more than a box."""
    return bool(annotation.content.get("segmentation"))


def _places(annotation: Annotation, size: tuple[int, int], path: Path) -> NDArray[np.int64]:
    said, (width, height) = annotation.content.get("segmentation"), size
    if not said:
        raise fault(path, f"{annotation.name} has no 'segmentation'", "add its mask, or remove the annotation")
    if isinstance(said, list):
        runs = rle.merge(rle.frPyObjects(_of_polygons(said, annotation, size, path), height, width))
    else:
        runs = _checked(said, annotation, size, path)
        runs = rle.frPyObjects(runs, height, width) if isinstance(runs["counts"], list) else runs
    return np.flatnonzero(rle.decode(runs).ravel(order="F"))


def _of_polygons(said: list[Any], annotation: Annotation, size: tuple[int, int], path: Path) -> list[list[float]]:
    result = []
    for polygon in said if isinstance(said[0], list) else [said]:
        numbers = polygon if isinstance(polygon, list) else []
        plain = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < np.inf for n in numbers)
        if not plain or len(numbers) < FEWEST_NUMBERS or len(numbers) % 2:
            raise fault(
                path, f"{annotation.name} has a polygon that is none", "write [x1, y1, x2, y2, x3, y3, ...] in pixels"
            )
        far = max(max(abs(n - side / 2) / side for n in numbers[axis::2]) for axis, side in enumerate(size))
        if far > 1.5:  # an edge's length is what pycocotools needs memory for
            raise fault(
                path,
                f"{annotation.name} has a polygon far outside of the image",
                f"write pixels of {size[0]} × {size[1]}",
            )
        result.append([float(n) for n in numbers])
    return result


def _checked(said: Any, annotation: Annotation, size: tuple[int, int], path: Path) -> dict[str, Any]:
    """Run lengths that add up to the image."""
    width, height = size
    counts = said.get("counts") if isinstance(said, Mapping) else None
    if not isinstance(counts, list | str) or said.get("size") != [height, width]:
        of = said.get("size") if isinstance(said, Mapping) else type(said).__name__
        raise fault(
            path, f"{annotation.name} has run lengths of {of!r}",
            f'write {{"size": [{height}, {width}], "counts": ...}}, height and width of the image',
        )  # fmt: skip
    lengths = counts if isinstance(counts, list) else list(_unpacked(counts))
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= width * height for n in lengths)
    if not whole or sum(lengths) != width * height:
        raise fault(
            path,
            f"{annotation.name} has run lengths that do not add up to {height} × {width} pixels",
            "correct 'counts'",
        )
    return {"size": [height, width], "counts": counts}


def _unpacked(counts: str) -> Iterator[int]:
    """The run lengths of compressed ones: 5 bits a letter, the sixth says that more follow, and from the fourth on, differences.

    (``rleFrString`` of pycocotools.) Letters that are none give -1.
    """
    before: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 50:
            yield -1
            return
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        value += before[-2] if len(before) > 2 else 0
        before.append(value)
        yield value
        value = shift = 0
    if shift:
        yield -1
