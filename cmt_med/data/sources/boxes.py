"""Images with boxes around objects: Pascal VOC (``Annotations/x.xml``); COCO is in :mod:`cmt_med.data.sources.coco`.

Nothing learns boxes yet: ``inspect`` shows such sets, and ``init`` says what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import image_cases
from cmt_med.data.volumes.streams import readable_name

_VOC = "Annotations"


def recognises(path: Path) -> bool:
    """Tell whether a folder has VOC's annotations."""
    return path.is_dir() and any((path / _VOC).glob("*.xml"))


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images; of boxes, what there is of each class.

    Raises:
        DataError: E_MANIFEST for annotations that cannot be read.
    """
    counts, found = _voc_classes(path / _VOC), image_cases(path, channels)
    found.kind = "images with boxes (Pascal VOC)"
    found.title = path.resolve().name
    found.boxes = dict(counts)
    classes = ", ".join(f"{count} {name}" for name, count in counts.most_common(8))
    found.notes.append(f"{counted(counts.total(), 'box').replace('boxs', 'boxes')} of {len(counts)} classes: {classes}")
    return found


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


def _fault(file: Path, why: str) -> DataError:
    return DataError("the annotations cannot be used", where=readable_name(file), why=why, fix="correct or remove the file",
                     code="E_MANIFEST")  # fmt: skip
