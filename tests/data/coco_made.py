"""Files of COCO, with masks in all the forms that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle


def picture(path: Path, size: tuple[int, int] = (10, 12), value: int = 0, *, colour: bool = False) -> Path:
    """A picture of width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (np.arange(size[0] * size[1], dtype=np.uint8) + value).reshape(size[1], size[0])
    Image.fromarray(np.stack([pixels, pixels[::-1], pixels], -1) if colour else pixels).save(path)
    return path


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask (height, width) as text."""
    found = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask (height, width) as numbers."""
    flat = mask.ravel(order="F").astype(np.int8)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def annotation(number: int, image: int = 1, category: int = 7, **content: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "bbox": [1, 1, 3, 4], **content}


def coco_file(
    path: Path, annotations: list[dict[str, Any]] | None, names: tuple[str, ...] = ("a.png",), **content: Any
) -> Path:
    """A file with images numbered from 1, of which nobody says the size, and the categories cell (7) and dust (8)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"id": i, "file_name": name} for i, name in enumerate(names, 1)]
    categories = [{"id": 7, "name": "cell"}, {"id": 8, "name": "dust"}]
    both = {} if annotations is None else {"annotations": annotations}
    path.write_text(json.dumps({"images": listed, "categories": categories, **both, **content}))
    return path
