"""Images with numbered objects: ``images/1.png`` and ``instances/1.png``, or as the Data Science Bowl 2018 has them.

A file in the folder of instances (``instance_masks``, ``instance_maps``) is a label image of the image of its name, with a number
for each object. The Data Science Bowl has a folder for each image, ``ID/images/ID.png``, and ``ID/masks/*.png`` with a mask for
each object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import case_name, in_colour, names_images
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem

_INSTANCES = re.compile(r"^instances?(?:[_-]?(?:masks?|maps?|labels?|segmentations?))?$")
_ENOUGH = 3
"""Folders that tell whether all of them hold an image and its masks."""


def recognises(path: Path) -> bool:
    """Tell whether a path is a folder with images and instances, or with folders of an image and its masks each."""
    try:
        return path.is_dir() and (_two_folders(path) is not None or _is_bowl(path))
    except OSError:  # a folder within that must not be looked into: other formats name it
        return False


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """The images with their numbered objects, where they have some; channels as of a picture in grey or in colour."""
    folders = _two_folders(path)
    found = Dataset("folder of images with numbered objects", path.resolve().name)
    images, instances = _listed(*folders) if folders else _bowl(path)
    if channels is None:
        pictures = filter(looks_like_picture, images.values())
        channels = COLOURS if any(map(in_colour, pictures)) else ("image",)
    found.channels = list(channels)
    for name, file in images.items():
        files = {channel: (file, i if len(channels) > 1 else None) for i, channel in enumerate(channels)}
        found.cases.append(Case(name, files, group=name, instances=instances.get(name)))
    left = sorted(instances.keys() - images.keys())
    if left:
        found.notes.append(f"{counted(len(left), 'label image')} not read ({left[0]}): no image has such a name")
    return found


def _two_folders(path: Path) -> tuple[Path, Path] | None:
    """The folders of images and of instances."""
    inside = sorted(_folders(path))
    instances = next((folder for folder in inside if _INSTANCES.match(folder.name.lower())), None)
    images = next((folder for folder in inside if names_images(folder.name)), None)
    if images is None or instances is None or not any(map(_is_image, instances.iterdir())):
        return None
    return images, instances


def _listed(images: Path, instances: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    first, second = (
        {case_name(volume_stem(file)): file for file in sorted(folder.iterdir()) if _is_image(file)}
        for folder in (images, instances)
    )
    return first, second


def _is_bowl(path: Path) -> bool:
    some = [folder for folder, _ in zip(_folders(path), range(_ENOUGH), strict=False)]
    if not some or not all(map(_bowl_image, some)):
        return False
    stems = [{volume_stem(file) for file in (folder / "masks").iterdir()} for folder in some]
    words = {stem for stem in set.intersection(*stems) if not any(char.isdigit() for char in stem)}
    return len(some) == 1 or not words  # words that all share are names of structures, numbers count objects


def _bowl(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    images, instances = {}, {}
    for folder in sorted(_folders(path)):
        image = _bowl_image(folder)
        if image is not None:
            name = case_name(folder.name)
            mask = next(filter(_is_image, (folder / "masks").iterdir()))
            images[name], instances[name] = image, folder / "masks" / f"*{mask.suffix}"
    return images, instances


def _bowl_image(folder: Path) -> Path | None:
    """The image of ``ID/images/ID.png`` with masks under other names beside it."""
    inside, masks = folder / "images", folder / "masks"
    if not (inside.is_dir() and masks.is_dir()):
        return None
    files = [file for file in inside.iterdir() if _is_image(file)]
    if len(files) != 1 or volume_stem(files[0]) != folder.name:
        return None
    stems = [volume_stem(file) for file in masks.iterdir() if _is_image(file)]
    return files[0] if stems and folder.name not in stems else None


def _folders(path: Path) -> Iterator[Path]:
    return (inside for inside in path.iterdir() if inside.is_dir() and not inside.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and (looks_like_picture(file) or looks_like_volume(file))
