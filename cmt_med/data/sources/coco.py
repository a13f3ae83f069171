"""COCO: a JSON file with ``images``, ``annotations`` and ``categories``, with the images beside it.

Images are looked for as ``file_name`` says, beside the file, in ``images`` or ``data``, in the folder above, in a folder of the
file's own (``train2017`` of ``annotations/instances_train2017.json``), and then anywhere below. Annotations with a mask are
numbered objects. Files of several splits are one data set.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.sources.boxes import name_classes
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import case_name, in_colour
from cmt_med.data.sources.split_folders import SPLITS, TRAIN, merged
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.coco import CocoFile, CocoImage, fault, is_coco, read_coco
from cmt_med.data.volumes.coco_masks import crowds, has_mask
from cmt_med.data.volumes.endings import looks_like_picture, volume_stem

_ANNOTATIONS = "annotations"
_OBJECTS = "instances"
_LOOKED_AT = 16
"""JSON files of a folder, of which some may be COCO's."""
_LOOKED_INTO = 50
"""Images of which one in colour makes all be read in colour."""


def recognises(path: Path) -> bool:
    """Tell whether a path is a file of COCO, or a folder with one in it or in its ``annotations``."""
    return bool(_files(path))


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images, with the file of annotations as their objects where these have masks.

    Raises:
        DataError: E_MANIFEST for files that do not add up, or of which two have one image.
    """
    parts: dict[str, list[CocoFile]] = defaultdict(list)
    files, notes = _of_objects(_files(path))
    for file in files:
        parts[_split(file)].append(read_coco(file))
    _require_once([file for some in parts.values() for file in some])
    if len(parts) > 1 and "" in parts:  # the others are held out of it
        parts[TRAIN] = [*parts.pop(""), *parts[TRAIN]]
    places = _Places(path)
    if channels is None:
        channels = _channels(parts, places)
    found = {split: _cases(some, places, channels) for split, some in parts.items()}
    one = TRAIN in found and len(found) > 1
    whole = merged(found, path) if one else _together(list(found.values()))
    counts = Counter(a.category for some in parts.values() for file in some for i in file.images for a in i.annotations)
    return _described(whole, path, counts, [file for some in parts.values() for file in some], notes)


# ---- files


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if is_coco(path) else []
    places = [folder for folder in (path, path / _ANNOTATIONS) if folder.is_dir()]
    return [file for folder in places for file in sorted(folder.glob("*.json"))[:_LOOKED_AT] if is_coco(file)]


def _of_objects(files: list[Path]) -> tuple[list[Path], list[str]]:
    """The files called ``instances``, where there are others of the same images, such as ``person_keypoints``."""
    named = [file for file in files if file.stem.startswith(_OBJECTS) or not read_coco(file).annotated]
    if not any(file.stem.startswith(_OBJECTS) for file in named) or len(named) == len(files):
        return files, []
    left = [file.name for file in files if file not in named]
    return named, [f"annotations are those of {named[0].name}; not read: {', '.join(left)}"]


def _split(file: Path) -> str:
    word = re.sub(r"\d+$", "", file.stem.rpartition("_")[2]).lower()
    return SPLITS.get(word, "")


def _require_once(files: Sequence[CocoFile]) -> None:
    owners: dict[str, CocoFile] = {}
    for file in files:
        for image in file.images:
            other = owners.setdefault(f"{_split(file.path)}/{image.file_name}", file)
            if other is not file:
                raise fault(
                    file.path, f"the image {image.file_name!r} is in {other.path.name}, too",
                    "give the file that is meant in place of the folder, or remove the other",
                )  # fmt: skip


class _Places:
    """The folders that images are looked for in.

    Args:
        path: that was given: a file, or the folder of a data set.
    """

    def __init__(self, path: Path) -> None:
        above = path.parent.parent if path.parent.name == _ANNOTATIONS else path.parent
        self.root = path if path.is_dir() else above
        self._below: dict[str, list[Path]] | None = None

    def image(self, file: Path, name: str) -> Path | None:
        """The image with a ``file_name`` of a file of annotations; None if it is not there, or in two places."""
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            parts = PurePosixPath(parts.name)  # a list must not reach files elsewhere
        around = [file.parent, file.parent.parent] if file.parent.name == _ANNOTATIONS else [file.parent]
        around += [folder / inner for folder in around for inner in ("images", "data")]
        around += [folder / file.stem.rpartition("_")[2] for folder in around]
        for folder in around:
            if (folder / parts).is_file():
                return folder / parts
        if self._below is None:
            self._below = defaultdict(list)
            for found in filter(looks_like_picture, walk(self.root, MAX_DEPTH, [], is_leaf=lambda _: False)):
                self._below[found.name].append(found)
        there = self._below.get(parts.name, [])
        return there[0] if len(there) == 1 else None


# ---- cases


def _cases(files: Sequence[CocoFile], places: _Places, channels: Sequence[str]) -> Dataset:
    """The images of the files of one split."""
    found = Dataset("", channels=list(channels), boxes={})
    listed = [(file, image) for file in files for image in file.images]
    names = _names([image.file_name for _, image in listed])
    every = {file.path: [one for image in file.images for one in image.annotations] for file in files if file.annotated}
    masked = {path for path, annotations in every.items() if any(map(has_mask, annotations))}
    boxed = {path for path, annotations in every.items() if all("bbox" in one.content for one in annotations)}
    for (file, image), name in zip(listed, names, strict=True):
        at = places.image(file.path, image.file_name)
        if at is None:
            found.problems.append(_not_there(file, image))
            continue
        positions = {channel: (at, i if len(channels) > 1 else None) for i, channel in enumerate(channels)}
        group, fold = image.content.get("group"), image.content.get("fold")  # as convert writes them
        found.cases.append(
            Case(
                name, positions, group=group if isinstance(group, str) and group else name,
                fold=fold if type(fold) is int and fold >= 0 else None, instances=file.path if file.path in masked else None,
                boxes=file.path if file.path in boxed else None,
            )
        )  # fmt: skip
    return found


def _names(files: Sequence[str]) -> list[str]:
    """Case names: those of the files, with the folders in front, or the endings, where they would be the same."""
    short = [case_name(volume_stem(Path(file))) for file in files]
    longer = [case_name(str(Path(file).with_name(volume_stem(Path(file)))).replace("/", "_")) for file in files]
    whole = [case_name(file.replace("/", "_")) for file in files]
    times = Counter(short), Counter(longer)
    return [
        s if times[0][s] == 1 else n if times[1][n] == 1 else w for s, n, w in zip(short, longer, whole, strict=True)
    ]


def _not_there(file: CocoFile, image: CocoImage) -> DataError:
    problem = fault(
        file.path, f"the image {image.file_name!r} is not there", "put it beside the annotations or into images/, or remove it",
        "its annotations say nothing without it",
    )  # fmt: skip
    problem.case = case_name(volume_stem(Path(image.file_name)))
    return problem


def _channels(parts: Mapping[str, Sequence[CocoFile]], places: _Places) -> Sequence[str]:
    def some() -> Iterator[Path]:
        for files in parts.values():
            for file in files:
                yield from filter(
                    None, (places.image(file.path, image.file_name) for image in file.images[:_LOOKED_INTO])
                )

    return COLOURS if any(map(in_colour, some())) else ("image",)


def _together(parts: Sequence[Dataset]) -> Dataset:
    whole, *others = parts
    for part in others:
        whole.cases += part.cases
        whole.problems += part.problems
    return whole


def _described(
    found: Dataset, path: Path, counts: Counter[str], files: Sequence[CocoFile], notes: Sequence[str]
) -> Dataset:
    objects = any(case.instances for case in (*found.cases, *found.test))
    found.kind = "images with numbered objects (COCO)" if objects else "images with boxes (COCO)"
    found.title = path.resolve().name
    found.notes += notes
    name_classes(found, counts)
    if objects and len(counts) > 1:
        found.notes.append(
            "objects of all classes are learned as objects of one kind; --task detection tells classes apart"
        )
    left = sum(crowds(file.images) for file in files)
    if objects and left:
        found.notes.append(f"{counted(left, 'region')} of crowds (iscrowd), whose objects are not told apart, left out")
    return found
