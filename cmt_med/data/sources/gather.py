"""The cases under a path, whatever they are, for a look at them: volumes in any folders, grouped by name as well as it goes.

Unlike what training and inference take as cases, nothing is left out here because of its name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import LABEL_WORDS, MASK_WORDS, SEQUENCES, canonical_channel
from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources.classes import class_cases, class_folders
from cmt_med.data.sources.pictures import are_pictures, image_cases, labelled_pictures
from cmt_med.data.volumes.endings import looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import kind_of
from cmt_med.data.volumes.recognise import DICOM
from cmt_med.data.volumes.streams import io_error, readable_name

MAX_DEPTH = 12
MAX_FILES = 200_000
_IMAGES = ("image", "img", "ct", "mri", "volume", "vol")


@dataclass
class Gathered:
    """Cases found under a path.

    Attributes:
        kind: ``file``, ``folder`` or ``case list``.
        case_list: its path, if there is one.
        cases: all of them.
        channels: that each case should have; empty if nothing says so.
        labels: names and values of labels; empty likewise.
        others: how many other files there are of each kind.
        problems: what could not even be looked into.
    """

    kind: str
    case_list: Path | None = None
    cases: list[Case] = field(default_factory=list)
    channels: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    problems: list[DataError] = field(default_factory=list)


def gather(path: Path) -> Gathered:
    """Find the cases under ``path``: a case list, a volume, or a folder (whose ``dataset.json`` is used if it has one).

    Raises:
        DataError: E_IO if nothing is there, E_MANIFEST for a faulty list.
    """
    try:
        folder = path.is_dir()
        if folder and (path / "dataset.json").is_file():
            path, folder = path / "dataset.json", False
        os.lstat(path)
    except (OSError, ValueError) as error:
        raise io_error(error, path) from error
    if folders := class_folders(path):
        sorted_in = class_cases(folders, None)
        return Gathered("folder of classes", None, sorted_in.cases, sorted_in.channels)
    if are_pictures(path):
        return _of_pictures(path, "folder of 2D images" if folder else "file")
    if folder:
        return _from_folder(path)
    if path.suffix.lower() == ".json":
        manifest = load_manifest(path)
        cases = [*manifest.cases, *manifest.test]
        return Gathered("case list", path, cases, manifest.channels, manifest.labels)
    return Gathered("file", cases=[_case(volume_stem(path), {_role(path)[1]: path})])


def _of_pictures(path: Path, kind: str) -> Gathered:
    try:
        found = labelled_pictures(path)
    except DataError as error:  # label maps that are none: the images can be looked at all the same
        found = image_cases(path, None)
        found.problems.append(error)
    return Gathered(kind, None, found.cases, found.channels, found.labels, problems=found.problems)


def _from_folder(root: Path) -> Gathered:
    result = Gathered("folder")
    groups: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in _all_volumes(root, result):
        name, role = _role(path)
        above = path.parent
        if re.match(r"(image|label|mask)s", above.name.lower()) or volume_stem(path) == above.name:
            above = above.parent  # images and labels in folders of their own, or a folder for every file
        group = groups.setdefault((above, name), {})
        if role in group:  # two files that mean the same by their names are looked at one by one
            group = groups.setdefault((above, path.name), {})
            role = "image"
        group[role] = path
    names = Counter(name for _, name in groups)
    for (above, name), files in groups.items():
        alone = names[name] == 1 or above == root
        result.cases.append(_case(name if alone else f"{above.relative_to(root)}/{name}", files))
    return result


def _case(name: str, files: dict[str, Path]) -> Case:
    images: dict[str, tuple[Path, int | None]] = {
        role: (path, None) for role, path in files.items() if role not in ("label", "mask")
    }
    label = files.get("label")
    return Case(readable_name(Path(name)), images, label, files.get("mask"))


def _all_volumes(root: Path, result: Gathered) -> Iterator[Path]:
    """Volumes under a folder and under folders that are linked there, as other commands take them; each folder once."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, MAX_DEPTH)]
    while waiting:  # links come last, so that what is linked within the folder goes by its own place
        yield from _volumes(*waiting.pop(0), result, waiting, seen)


def _volumes(
    folder: Path, depth: int, result: Gathered, links: list[tuple[Path, int]], seen: set[tuple[int, int]]
) -> Iterator[Path]:
    """Volumes under a folder: files that are named like one, and folders with DICOM files, whatever these are called.

    Links to folders are kept for later.
    """
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # or else a loop of links would never end
            result.others["a link to a folder that is here already"] += 1
            return
        seen.add((status.st_dev, status.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        result.problems.append(io_error(error, folder))
        return
    names = {entry.name.lower() for entry in entries}
    slices = False
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or result.others.total() > MAX_FILES:
            continue
        if path.is_dir():
            if depth and path.is_symlink():
                links.append((path, depth - 1))
            elif depth:
                yield from _volumes(path, depth - 1, result, links, seen)
        elif (what := _kind_of(path)) == DICOM.what:
            slices |= not path.name.upper().startswith("DICOMDIR")
        elif looks_like_volume(path):
            yield path
        elif re.search(r"\.img(\.gz)?$", path.name.lower()):
            if re.sub(r"img(\.gz)?$", r"hdr\1", path.name.lower()) not in names:
                yield path
        elif not path.name.upper().startswith("DICOMDIR"):
            result.others[what] += 1
    if slices:
        yield folder


def _kind_of(path: Path) -> str:
    try:
        return kind_of(path).what
    except DataError as error:
        return error.what


def _role(path: Path) -> tuple[str, str]:
    """Case name and role of a file: ``ID_t1ce``, ``ID_0001`` (a channel by number), ``T1c_anything``, ``labelsTr/ID``."""
    stem, above = volume_stem(path), path.parent.name
    if path.is_dir():
        return stem, "image"
    parts = re.split(r"[_.-]", stem)
    last, first = _word(parts[-1]), _word(parts[0])
    if last:
        return (stem[: -len(parts[-1]) - 1] or above), last
    if re.fullmatch(r"\d{4}", parts[-1]) and above.lower().startswith("images") and len(parts) > 1:
        return stem[:-5], parts[-1]
    if first in SEQUENCES:
        return above, first
    return stem, "label" if above.lower().startswith("label") else "image"


def _word(text: str) -> str:
    """The role that a word of a file name stands for, if any."""
    word = canonical_channel(text)
    if word in SEQUENCES:
        return word
    return "image" if word in _IMAGES else "label" if word in LABEL_WORDS else "mask" if word in MASK_WORDS else ""
