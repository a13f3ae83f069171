"""Images with boxes around objects: Pascal VOC (``Annotations/x.xml``), and tables; COCO is in :mod:`cmt_med.data.sources.coco`.

A table has a line for each box, with the file of the image and the faces (``image,class,xmin,ymin,xmax,ymax``). It is given
itself, or lies alone in a folder with the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case, first_image
from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import case_name, image_cases, in_colour
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.box_files import class_counts, fault, has_box_columns, images_in
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem

_VOC, _IMAGES = "Annotations", "JPEGImages"
_LOOKED_INTO = 50
"""Images of which one in colour makes all be read in colour."""


def recognises(path: Path) -> bool:
    """Tell whether a folder has VOC's annotations, or a path is a table of boxes or a folder with one."""
    return _is_voc(path) or _table(path) is not None


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images, and the file with the boxes of each.

    Raises:
        DataError: E_MANIFEST for annotations that cannot be read.
    """
    table = None if _is_voc(path) else _table(path)
    if table is None:
        found = image_cases(path, channels)
        counts = _add_voc(found, path / _VOC)
        found.kind = "images with boxes (Pascal VOC)"
    else:
        found, counts = _listed(table, channels), class_counts([table])
        found.kind = "images with boxes (table)"
    found.title = path.resolve().name
    name_classes(found, counts)
    return found


def name_classes(found: Dataset, counts: Counter[str]) -> None:
    """Number the classes of boxes in the order of their names, and note how many there are of each."""
    found.boxes = dict(counts)
    names = sorted({*map(canonical_label, counts)})
    found.labels = {"background": 0} | {name: number for number, name in enumerate(names, 1)}
    found.named_by = "the boxes"
    classes = ", ".join(f"{count} {name}" for name, count in counts.most_common(8))
    number = counts.total()
    rare = [name for name, count in counts.items() if count == 1 and number > 20]
    if rare:
        found.notes.append(
            f"look at: of {', '.join(rare[:8])} there is one box: a slip of the pen would look like that"
        )
    found.notes.append(
        f"{number} box{'es' if number != 1 else ''} of {counted(len(counts), 'class').replace('classs', 'classes')}: {classes}"
    )


def _is_voc(path: Path) -> bool:
    annotations = path / _VOC
    return path.is_dir() and annotations.is_dir() and ((path / _IMAGES).is_dir() or any(annotations.glob("*.xml")))


def _add_voc(found: Dataset, folder: Path) -> Counter[str]:
    """Give each image the file of its name; a file that cannot be read is its image's problem. Returns the boxes by class.

    Raises:
        DataError: E_MANIFEST, if there is not one file.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.xml"))}
    if not files:
        raise fault(folder, "there is no file of boxes in it", "put Annotations/x.xml there for each JPEGImages/x.jpg")
    counts: Counter[str] = Counter()
    cases = []
    for case in found.cases:
        file = files.pop(first_image(case).stem, None)
        try:
            counts += class_counts([file] if file is not None else [])
        except DataError as problem:
            problem.case = case.name
            found.problems.append(problem)
            continue
        cases.append(replace(case, boxes=file))
    found.cases = cases
    for stem, file in files.items():
        lacking = fault(file, "the image of its name is not there", "put it into JPEGImages, or remove the file")
        lacking.case = case_name(stem)
        found.problems.append(lacking)
    return counts


def _table(path: Path) -> Path | None:
    """The table of boxes at a path, or the only one of a folder."""
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path] if path.suffix.lower() == ".csv" else []
    tables = [file for file in files[:_LOOKED_INTO] if file.is_file() and has_box_columns(file)]
    return tables[0] if len(tables) == 1 else None


def _listed(table: Path, channels: Sequence[str] | None) -> Dataset:
    """The images that a table names, beside it or in folders beside it; and others there, which have no boxes."""
    found = Dataset("")
    files = [
        file
        for file in walk(table.parent, MAX_DEPTH, [], is_leaf=lambda _: False)
        if looks_like_picture(file) or looks_like_volume(file)
    ]
    by_name: dict[str, list[Path]] = {}
    for file in files:
        for key in {file.name, volume_stem(file)}:
            by_name.setdefault(key, []).append(file)
    if channels is None:
        pictures = list(filter(looks_like_picture, files))[:_LOOKED_INTO]
        channels = COLOURS if any(map(in_colour, pictures)) else ("image",)
    found.channels = list(channels)
    ambiguous: set[Path] = set()
    for name in images_in(table):
        there = by_name.get(name, [])
        if len(there) != 1:
            ambiguous |= set(there)  # whose boxes these are, nobody knows
            what = "is not there" if not there else "is there more than once"
            problem = fault(table, f"the image {name!r} {what}", "put it beside the table, once, or correct the name")
            problem.case = case_name(volume_stem(Path(name)))
            found.problems.append(problem)
    for file in files:
        if file in ambiguous:
            continue
        positions = {channel: (file, i if len(channels) > 1 else None) for i, channel in enumerate(channels)}
        name = case_name(volume_stem(file))
        found.cases.append(Case(name, positions, group=name, boxes=table))
    return found
