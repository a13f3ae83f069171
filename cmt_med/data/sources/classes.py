"""A folder for each class, with the 2D images of it: ``glioma/g1.png``, ``none/n1.png``.

Volumes in folders are of patients: their classes come from a case list or a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cmt_med.data.case import COLOURS, Case
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import case_name, in_colour, names_a_role
from cmt_med.data.sources.walk import walk
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series


def recognises(path: Path) -> bool:
    """Tell whether a folder is sorted by class."""
    return bool(class_folders(path))


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find a case for each image, with the name of its folder as its class."""
    folders = class_folders(path)
    found = class_cases(folders, channels)
    empty = sorted(p.name for p in walk(path, 0, [], is_leaf=lambda _: True) if p.is_dir() and p.name not in folders)
    found.notes += [f"no image in folder {name}: it is no class" for name in empty]
    found.title = path.resolve().name
    return found


def class_folders(path: Path) -> dict[str, list[Path]]:
    """The images in each folder of a class; empty if a folder is not sorted by class.

    It is if two or more folders, whose names mean neither images nor label maps, hold 2D images and nothing deeper.
    """
    if not path.is_dir():
        return {}
    found: dict[str, list[Path]] = {}
    for folder in walk(path, 0, [], is_leaf=lambda _: True):
        if not folder.is_dir():
            if looks_like_picture(folder) or looks_like_volume(folder):
                return {}
            continue
        inside = list(walk(folder, 0, [], is_leaf=lambda _: True))
        if names_a_role(folder.name) or any(file.is_dir() or looks_like_volume(file) for file in inside):
            return {}
        images = list(filter(looks_like_picture, inside))
        if images and is_series(folder):  # of slices with a preview
            return {}
        if images:
            found[folder.name] = images
    return found if len(found) > 1 else {}


def class_cases(folders: dict[str, list[Path]], channels: Sequence[str] | None) -> Dataset:
    """A case for each image, with the name of its folder as its class.

    Args:
        folders: as :func:`class_folders` found them.
        channels: names of the channels of a case; None to look whether the images are in colour.
    """
    result = Dataset("folder of classes")
    files = [file for images in folders.values() for file in images]
    if channels is None:
        channels = COLOURS if any(map(in_colour, files)) else ("image",)
    result.channels = list(channels)
    times = Counter(case_name(volume_stem(file)) for file in files)
    taken: Counter[str] = Counter()
    for name, images in folders.items():
        for file in images:
            stem = case_name(volume_stem(file))
            case = stem if times[stem] == 1 else f"{case_name(name)}_{stem}"
            taken[case] += 1
            if taken[case] > 1:  # "image (1)" beside "image(1)"
                case = f"{case}_{taken[case]}"
            positions = {channel: (file, i if len(channels) > 1 else None) for i, channel in enumerate(channels)}
            result.cases.append(Case(case, positions, group=case, class_name=name))
    return result
