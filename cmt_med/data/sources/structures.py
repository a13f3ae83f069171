"""One mask for each structure, in files of their own.

``s001/ct.nii.gz`` with ``s001/segmentations/liver.nii.gz`` (TotalSegmentator's layout), ``images/x.png`` with
``masks/cup/x.png`` or with ``masks/x_cup.png``. The label map of a case is a path with a ``*`` where the structure's name stands
(:mod:`cmt_med.data.volumes.mask_files`).
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.sources import by_channel
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.file_names import MODALITIES
from cmt_med.data.sources.pictures import case_name, in_colour, names_images, names_labels
from cmt_med.data.sources.split_folders import SPLITS
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.mask_files import ANY

SHARED = 0.5
"""Of the cases that have a mask of a structure, on average over the structures: names that few share number objects."""


MOST_CHANNELS = 6


@dataclass
class _Found:
    """The images of one case, and its masks by the names of the structures."""

    images: list[Path] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    pattern: Path | None = None


def recognises(path: Path) -> bool:
    """Tell whether a folder has a mask for each of several structures."""
    return path.is_dir() and bool(_cases(path))


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the cases under a folder; with masks, if no channels are asked for."""
    cases = _cases(path)
    if channels is not None and not any(looks_like_picture(file) for case in cases.values() for file in case.images):
        return by_channel.read(path, channels)
    found = Dataset("folder with a mask for each structure", path.resolve().name, by_name=True)
    if channels is not None:
        return _images_alone(cases, channels, found)
    names = sorted({name for case in cases.values() for name in case.masks})
    found.labels = {"background": 0} | {name.lower(): i for i, name in enumerate(names, 1)}
    found.colours = {name: i for i, name in enumerate(names, 1)}
    found.named_by = "the files' names"
    colour = any(in_colour(case.images[0]) for case in cases.values() if looks_like_picture(case.images[0]))
    for name, case in sorted(cases.items()):
        images = _channels(case.images, name, colour=colour)
        found.cases.append(Case(name, images, case.pattern, group=name, colours=dict(found.colours)))
        missing = [n for n in names if n not in case.masks]
        if missing:
            found.annotated[name] = [n.lower() for n in names if n in case.masks]
            found.notes.append(
                f"case {name} has no mask of {', '.join(missing[:6])}: where these are, is not known there"
            )
    have = {channel for case in found.cases for channel in case.images}
    found.channels = list(COLOURS) if have == {*COLOURS} else sorted(have)
    found.notes.append(f"a mask for each of {counted(len(names), 'structure')}: {', '.join(names[:8])}")
    return found


def _images_alone(cases: Mapping[str, _Found], channels: Sequence[str], found: Dataset) -> Dataset:
    """The pictures of the cases, for a network."""
    for name, case in sorted(cases.items()):
        positions = {channel: (case.images[0], i if len(channels) > 1 else None) for i, channel in enumerate(channels)}
        found.cases.append(Case(name, positions, group=name))
    found.channels = list(channels)
    return found


def _channels(files: Sequence[Path], case: str, *, colour: bool) -> dict[str, tuple[Path, int | None]]:
    if colour:
        return {channel: (files[0], i) for i, channel in enumerate(COLOURS)}
    if len(files) == 1:
        words = set(re.split(r"[^a-z0-9]+", volume_stem(files[0]).lower())) & {*MODALITIES}
        return {words.pop() if len(words) == 1 else "image": (files[0], None)}
    named = {volume_stem(file).removeprefix(case).strip("_-. ").lower() or "image": file for file in files}
    return {channel: (file, None) for channel, file in named.items()}


def _cases(path: Path) -> dict[str, _Found]:
    """Name -> images and masks; nothing if no or only one structure has masks, or their names tell objects apart."""
    files = [file for file in walk(path, MAX_DEPTH, [], is_leaf=is_series) if _is_data(file)]
    labelled = [file for file in files if _role_folder(file, path) is not None]
    images = [file for file in files if _role_folder(file, path) is None]
    if not labelled or not images:
        return {}
    for layout in (_folder_of_each_case, _folder_of_each_structure, _affixed):
        cases = {name: case for name, case in layout(path, images, labelled).items() if case.masks and case.images}
        times = Counter(name for case in cases.values() for name in case.masks)
        if len(times) > 1 and sum(times.values()) >= SHARED * len(times) * len(cases) and len(times) <= 255:
            return cases
    return {}


def _is_data(file: Path) -> bool:
    return looks_like_volume(file) or looks_like_picture(file) or file.is_dir()


def _role_folder(file: Path, root: Path) -> Path | None:
    """The outermost folder below the root, around a file, whose name means label maps."""
    return _outermost_role(file.parent, root)


@functools.lru_cache(maxsize=65_536)
def _outermost_role(folder: Path, root: Path) -> Path | None:
    if folder == root or not folder.is_relative_to(root):
        return None
    return _outermost_role(folder.parent, root) or (folder if names_labels(folder.name) else None)


def _folder_of_each_case(root: Path, images: Sequence[Path], labelled: Sequence[Path]) -> dict[str, _Found]:
    """``CASE/image`` (or ``CASE/images/image``) with ``CASE/masks/NAME``."""
    cases: dict[Path, _Found] = defaultdict(_Found)
    for file in images:
        cases[
            file.parent.parent if names_images(file.parent.name) and file.parent != root else file.parent
        ].images.append(file)
    for file in labelled:
        folder = _role_folder(file, root)
        if folder is not None and folder == file.parent and folder.parent in cases:
            case = cases[folder.parent]
            case.masks[volume_stem(file)] = file
            case.pattern = folder / f"{ANY}{file.name[len(volume_stem(file)) :]}"
    cases = {folder: case for folder, case in cases.items() if case.masks and _is_one_case(case)}
    return {
        case_name("_".join(folder.relative_to(root).parts) or root.resolve().name): case
        for folder, case in cases.items()
    }


def _is_one_case(case: _Found) -> bool:
    """Tell whether images in one folder are of one case: one picture, or a few volumes none of which a mask is named after."""
    if not 0 < len(case.images) <= (1 if looks_like_picture(case.images[0]) else MOST_CHANNELS):
        return False
    stems = [volume_stem(file) for file in case.images]
    return not any(stem.startswith(name) or name.startswith(stem) for stem in stems for name in case.masks)


def _folder_of_each_structure(root: Path, images: Sequence[Path], labelled: Sequence[Path]) -> dict[str, _Found]:
    """``images/x`` with ``masks/NAME/x``."""
    cases = {volume_stem(file): _Found([file]) for file in images}
    for file in labelled:
        folder = _role_folder(file, root)
        case = cases.get(volume_stem(file))
        if (
            case is not None
            and folder is not None
            and file.parent.parent == folder
            and file.parent.name.lower() not in SPLITS
        ):
            case.masks[file.parent.name] = file
            case.pattern = folder / ANY / file.name
    return {case_name(stem): case for stem, case in cases.items()}


def _affixed(root: Path, images: Sequence[Path], labelled: Sequence[Path]) -> dict[str, _Found]:
    """``images/x`` with ``masks/x_NAME``."""
    cases = {volume_stem(file): _Found([file]) for file in images}
    for file in labelled:
        stem = volume_stem(file)
        match = re.match(r"(.+)[_-]([A-Za-z][A-Za-z0-9]*)\Z", stem)
        case = cases.get(match[1]) if match else None
        if case is not None and match is not None:
            case.masks[match[2]] = file
            case.pattern = file.with_name(file.name.replace(stem, f"{stem[: match.start(2)]}{ANY}", 1))
    return {case_name(stem): case for stem, case in cases.items()}
