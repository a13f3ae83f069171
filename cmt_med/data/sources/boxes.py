"""Images with boxes around objects: Pascal VOC (``Annotations/x.xml``), and COCO (JSON with ``images`` and ``annotations``).

The boxes of an image lie in a file of its name; of COCO, in the one file for all.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted, strict_json
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import case_name, image_cases, in_colour
from cmt_med.data.volumes.streams import readable_name

_VOC = "Annotations"
_MOST_BYTES = 200_000_000
_LOOKED_AT = 8  # JSON files of a folder, of which one may be COCO's


def recognises(path: Path) -> bool:
    """Tell whether a folder has VOC's annotations, or a folder or file is COCO's."""
    if path.is_dir():
        return any((path / _VOC).glob("*.xml")) or _coco_file(path) is not None
    return path.suffix.lower() == ".json" and _is_coco(path)


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images; of boxes, what there is of each class.

    Raises:
        DataError: E_MANIFEST for annotations that cannot be read.
    """
    voc = path.is_dir() and (path / _VOC).is_dir()
    listed = None if voc else path if path.is_file() else _coco_file(path)
    if voc:
        counts, found = _voc_classes(path / _VOC), image_cases(path, channels)
        found.cases = [_with_file(case, path / _VOC) for case in found.cases]
    else:
        assert listed is not None  # by recognises
        counts, found = _coco(listed, channels)
    found.kind = f"images with boxes ({'Pascal VOC' if voc else 'COCO'})"
    found.title = path.resolve().name
    found.boxes = dict(counts)
    found.labels = {"background": 0} | {
        name: number for number, name in enumerate(sorted({*map(canonical_label, counts)}), 1)
    }
    found.named_by = "the boxes"
    classes = ", ".join(f"{count} {name}" for name, count in counts.most_common(8))
    found.notes.append(f"{counted(counts.total(), 'box').replace('boxs', 'boxes')} of {len(counts)} classes: {classes}")
    return found


def _with_file(case: Case, folder: Path) -> Case:
    file = folder / f"{Path(next(iter(case.images.values()))[0]).stem}.xml"
    return replace(case, boxes=file if file.is_file() else None)


def _voc_classes(folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.xml")):
        counts.update(_voc_names(file))
    return counts


def _voc_names(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="strict")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can be made to grow without end
            raise ValueError("it declares entities")
        for item in ElementTree.fromstring(text).iter("object"):  # noqa: S314 - without entities, as above
            yield (item.findtext("name") or "object").strip()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise _fault(file, str(error)) from error


def _coco_file(folder: Path) -> Path | None:
    places = [folder, folder / "annotations"]
    files = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))[:_LOOKED_AT]]
    return next(filter(_is_coco, files), None)


def _is_coco(file: Path) -> bool:
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return False
    return bool(_content(file.absolute(), changed))


@functools.lru_cache(maxsize=4)
def _content(file: Path, _changed: int) -> dict[str, list[dict[str, object]]]:
    """The content of a COCO file; nothing if it is another."""
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return {}
        content = strict_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        return {}
    return {key: [item for item in content[key] if isinstance(item, dict)] for key in keys}


def _coco(file: Path, channels: Sequence[str] | None) -> tuple[Counter[str], Dataset]:
    content = _content(file.absolute(), file.stat().st_mtime_ns)
    names = {item.get("id"): str(item.get("name", "object")) for item in content["categories"]}
    counts = Counter(names.get(item.get("category_id"), "unknown") for item in content["annotations"])
    places = [file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images"]
    places += [place / file.stem.rpartition("_")[2] for place in places]  # instances_train2017.json, train2017/
    found = Dataset("")
    files = []
    for image in content["images"]:
        name = str(image.get("file_name", ""))
        at = next((place / name for place in places if name and (place / name).is_file()), None)
        if at is None:
            found.problems.append(_fault(file, f"the image {name!r} is not there"))
        else:
            files.append(at)
    colours = channels or (COLOURS if any(map(in_colour, files[:50])) else ("image",))
    for at in files:
        positions = {channel: (at, i if len(colours) > 1 else None) for i, channel in enumerate(colours)}
        found.cases.append(Case(case_name(at.stem), positions, group=case_name(at.stem)))
    found.channels = list(colours)
    return counts, found


def _fault(file: Path, why: str) -> DataError:
    return DataError("the annotations cannot be used", where=readable_name(file), why=why, fix="correct or remove the file",
                     code="E_MANIFEST")  # fmt: skip
