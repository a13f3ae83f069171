"""Data sets of 2D images as COCO: ``images``, and ``annotations/instances.json`` with a mask in run lengths for each object.

Boxes are an annotation each, without a mask. Numbered objects are one each, in the order of their numbers; of label maps, each
connected part of each label is one (pixels that touch at a corner are connected), whose category is the label. Test cases are in
``instances_test.json``, those without a reference in ``image_info_test.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy import ndimage

from cmt_med.base.errors import DataError
from cmt_med.base.files import write_json
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.volumes.boxes import load_boxes
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.instances import load_instances
from cmt_med.runs.converted import (
    are_pictures,
    copy_file,
    require_whole_annotations,
    taught_and_tests,
    values_of,
    write_colours,
)

OBJECT = 1
"""Category of numbered objects."""
_TOUCHING = np.ones((3, 3), bool)


def write_coco(manifest: Manifest, folder: Path) -> None:
    """Write a data set of 2D images.

    Raises:
        DataError: E_NDIM for volumes, E_LABEL for voxels or labels that nobody has annotated, and those of the gate.
    """
    if not are_pictures(manifest):
        raise _of_volumes(str(manifest.path), "these are volumes")
    require_whole_annotations(manifest, "COCO")
    if manifest.ignore is not None:
        raise DataError(
            "COCO has no value for pixels that nobody has annotated", where=str(manifest.path),
            why="they would become background", fix="use --to nnunet", code="E_LABEL",
        )  # fmt: skip
    objects, boxes = (any(getattr(case, kind) for case in manifest.cases) for kind in ("instances", "boxes"))
    kind = "instances" if objects else "boxes" if boxes else "label"
    names = {OBJECT: "object"} if objects else {value: name for name, value in manifest.labels.items() if value}
    untaught = [case.name for case in manifest.cases if not getattr(case, kind)]
    taught, every = taught_and_tests(manifest, untaught)
    tests = [case for case in every if getattr(case, kind)]
    others = [case for case in every if case not in tests]
    for name, cases, below in (
        ("instances", taught, ""),
        ("instances_test", tests, "test/"),
        ("image_info_test", others, "test/"),
    ):
        if not cases and name != "instances":
            continue
        content = _content(cases, manifest, folder, below, kind, annotated=name != "image_info_test")
        categories = [{"id": value, "name": label, "supercategory": ""} for value, label in names.items()]
        about = {"description": manifest.name or "data set", "version": "1"}
        write_json(
            folder / f"annotations/{name}.json", {"info": about, "licenses": []} | content | {"categories": categories}
        )


def _content(
    cases: Sequence[Case], manifest: Manifest, folder: Path, below: str, kind: str, *, annotated: bool
) -> dict[str, list[dict[str, Any]]]:
    """Write the images of cases; returns what a file says of them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for case in cases:
        number = len(images) + 1
        name, width, height = _write_picture(case, manifest, folder / "images", below)
        own = {"group": case.group} if case.group not in ("", case.name) else {}
        fold = {} if case.fold is None else {"fold": case.fold}
        images.append({"id": number, "file_name": name, "width": width, "height": height, **own, **fold})
        for category, described in _objects(case, manifest, kind) if annotated else ():
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, **described})
    return {"images": images} | ({"annotations": annotations} if annotated else {})


def _write_picture(case: Case, manifest: Manifest, folder: Path, below: str) -> tuple[str, int, int]:
    """Copy the file of a case, or write one of its channels; returns name, width and height."""
    width, height, pages = load_case(case, manifest.channels).grid.shape  # what is damaged is refused here
    files = {file for file, _ in case.images.values()}
    if pages > 1:
        raise _of_volumes(f"case {case.name}: {next(iter(files))}", f"the image has {pages} pages")
    if len(files) == 1:
        source = files.pop()
        name = f"{below}{case.name}{source.suffix.lower()}"
        copy_file(source, folder / name)
        return name, width, height
    if set(manifest.channels) != set(COLOURS):
        raise DataError(
            "COCO has one file for an image", where=f"case {case.name}",
            why=f"this has {', '.join(manifest.channels)}, a file each", fix="use --to nnunet", code="E_CHANNEL",
        )  # fmt: skip
    write_colours(case, folder / f"{below}{case.name}.png")
    return f"{below}{case.name}.png", width, height


def _objects(case: Case, manifest: Manifest, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Category of each object, and what an annotation says of it."""
    drawn = kind == "label"
    loaded = load_case(case, manifest.channels, values_of(manifest) if drawn else None, need_label=drawn)
    if kind == "boxes":
        found = load_boxes(case, manifest.labels, loaded.grid)
        for value, low, size, ignored in zip(found.classes, found.low, found.sizes, found.ignored, strict=True):
            box, area = [float(v) for v in (*low[:2], *size[:2])], float(size[0] * size[1])
            yield int(value), {"area": area, "bbox": box, "iscrowd": int(ignored)}
        return
    if kind == "instances":
        numbers = load_instances(case, loaded.grid)[0][..., 0].T
        yield from ((OBJECT, _described(numbers == number)) for number in np.unique(numbers[numbers > 0]))
        return
    assert loaded.label is not None  # asked for
    label = loaded.label[..., 0].T
    for value in np.unique(label[label > 0]):
        parts, count = ndimage.label(label == value, _TOUCHING)
        yield from ((int(value), _described(parts == part)) for part in range(1, count + 1))


def _described(mask: NDArray[np.bool_]) -> dict[str, Any]:
    runs = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "segmentation": {"size": [int(n) for n in runs["size"]], "counts": runs["counts"].decode()},
        "area": int(rle.area(runs)), "bbox": [float(v) for v in rle.toBbox(runs)], "iscrowd": 0,
    }  # fmt: skip


def _of_volumes(where: str, why: str) -> DataError:
    return DataError(
        "COCO holds 2D images", where=where, why=why,
        fix="use --to nnunet, msd or bids; or save the slices as pictures, and convert those", code="E_NDIM",
    )  # fmt: skip
