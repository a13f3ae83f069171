"""Folders of 2D images, with masks in folders or files beside them.

``images/21.png`` and ``masks/21.png`` (or ``labels``, ``1st_manual``, ``gt``, ...), or ``21.png`` and ``21_mask.png``. Where
there are label maps and files called masks, as in fundus photographs, the masks are the field of view.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cmt_med.base.errors import DataError
from cmt_med.base.files import sha256
from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.conventions.names import labels_by_number
from cmt_med.data.sources import by_channel
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.split_folders import split_word, without_splits
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.decoder import Volume, decode
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.gate import as_listed
from cmt_med.data.volumes.header import IN_COLOUR
from cmt_med.data.volumes.streams import readable_name

MOST_COLOURS = 32
"""Colours in all masks of a data set, above which they are no labels."""
_LABELS = re.compile(r"(?:^|[^a-z])(?:label|seg|ground|truth|annot|manual|target|gt(?![a-z]))")
_IMAGES = re.compile(
    r"^(?:images?|imgs?|pictures?|photos?|inputs?|originals?|raw|train|training|test|val|validation|data)(?:tr|ts)?$"
)
_MASKS = re.compile(r"(?:^|[^a-z])(?:mask|fov(?![a-z])|roi(?![a-z]))")
_WORD = re.compile(
    r"[_\-. ]+(mask|fov|label|labels|seg|segmentation|gt|groundtruth|manual\d*|annotation)\s*\Z", re.IGNORECASE
)
_IMAGE, _LABEL, _MASK = "image", "label", "mask"


def recognises(path: Path) -> bool:
    """Tell whether a path is a 2D image, or a folder of such, with no volume beside them: those may be previews."""
    if path.is_file():
        return looks_like_picture(path)
    if is_series(path):
        return False
    found = False
    for file in walk(path, MAX_DEPTH, [], is_leaf=is_series):
        if looks_like_volume(file) or file.is_dir():
            return False
        found |= looks_like_picture(file)
    return found


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images under a path; with label maps, if no channels are asked for.

    Channels that are no colours are those of several grey images, named by them (:mod:`cmt_med.data.sources.by_channel`).
    """
    if channels is None:
        try:
            return labelled_pictures(path)
        except DataError as error:  # label maps that are none: the images can be looked at all the same
            found = image_cases(path, None)
            found.problems.insert(0, error)
            return found
    if len(channels) > 1 and tuple(channels) != COLOURS:
        return by_channel.read(path, channels, pictures=True)
    return image_cases(path, channels)


def image_cases(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the images under a path, each a case without a label map.

    Args:
        path: of an image or a folder.
        channels: names of the channels of a case; None to look whether the images are in colour.
    """
    found, images, labels, masks = _sorted_out(path)
    if channels is None:
        channels = COLOURS if any(map(in_colour, images.values())) else (_IMAGE,)
    found.channels = list(channels)
    # Beside images alone, files called masks are as likely label maps.
    matched = _matched(images, masks, found, "field of view") if masks and labels else {}
    for name, file in images.items():
        found.cases.append(Case(name, _files(file, channels), mask=matched.get(name), group=name))
    return found


def labelled_pictures(path: Path) -> Dataset:
    """Find the images under a folder with their label maps, and what the values in these stand for.

    Raises:
        DataError: E_LABEL for label maps with shades between the labels, or with more colours than labels can have.
    """
    found, images, labels, masks = _sorted_out(path)
    channels = COLOURS if any(map(in_colour, images.values())) else (_IMAGE,)
    found.channels = list(channels)
    if not labels:
        labels, masks = masks, {}
    of_case = _matched(images, labels, found, "label map") if labels else {}
    view = _matched(images, masks, found, "field of view") if masks else {}
    codes = {name: _codes(file) for name, file in of_case.items()}
    values = sorted(set().union(*codes.values())) if codes else []
    if values and values[-1] > 255:
        found.colours = {code: value for code, value in _colour_map(values, path).items()}  # noqa: C416 - of a wider type
        found.labels = {"background": 0} | {f"colour_{code:06x}": v for code, v in found.colours.items() if v}
    elif values:
        found.labels = labels_by_number(values)
    if found.labels:
        meaning = {v: f"#{code:06x} = " for code, v in found.colours.items()}
        listed = ", ".join(f"{meaning.get(v, '')}{v} {name}" for name, v in found.labels.items())
        found.notes.append(f"label values as in the files: {listed}; rename them under 'labels' in the case list")
    for name, file in images.items():
        found.cases.append(
            Case(name, _files(file, channels), of_case.get(name), view.get(name), name, colours=dict(found.colours))
        )
    return found


def _files(file: Path, channels: Sequence[str]) -> dict[str, tuple[Path, int | None]]:
    return {name: (file, i if len(channels) > 1 else None) for i, name in enumerate(channels)}


def in_colour(file: Path) -> bool:
    """Tell whether a picture has colours that differ; not of one that cannot be read, which the gate will name."""
    try:
        as_listed(decode(file), None, "")
    except DataError as error:
        return error.code == "E_CHANNEL"
    return False


def _codes(file: Path) -> set[int]:
    """The values of a label map; none of one that cannot be read, which the gate will name."""
    try:
        volume: Volume = decode(file, labels=True)
    except DataError:
        return set()
    return {int(value) for value in np.unique(volume.array)} if volume.array.dtype.kind in "ui" else set()


def _colour_map(codes: Sequence[int], path: Path) -> dict[int, int]:
    """Colour -> label value: black is the background, the others are numbered as their hexadecimal names go."""
    if any(255 < code < IN_COLOUR for code in codes):
        raise DataError(
            f"the masks have values up to {max(codes)}", where=readable_name(path),
            why="label maps have at most 255: these number instances, or are images",
            fix="call their folder instances, if each number is an object; else give label maps", code="E_LABEL",
        )  # fmt: skip
    colours = [
        code - IN_COLOUR if code >= IN_COLOUR else code * 0x010101 for code in codes if code not in (0, IN_COLOUR)
    ]
    if len(colours) > MOST_COLOURS:
        raise DataError(
            f"the masks have {len(colours)} colours", where=readable_name(path),
            why=f"more than {MOST_COLOURS} are no labels: they were saved as JPEG, smoothed, or are numbered instances",
            fix="save them as PNG without smoothing, or with one number per pixel", code="E_LABEL",
        )  # fmt: skip
    return {0: 0} | {code: i for i, code in enumerate(sorted(colours), 1)}


# ---- which file is what


def _sorted_out(path: Path) -> tuple[Dataset, dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Images by case name; label maps and masks by the names of their files."""
    found = Dataset("file" if path.is_file() else "folder of 2D images", path.resolve().name)
    files = (
        [path]
        if path.is_file()
        else list(filter(looks_like_picture, walk(path, MAX_DEPTH, found.problems, is_leaf=_no)))
    )
    roles: dict[str, dict[str, Path]] = {_IMAGE: {}, _LABEL: {}, _MASK: {}}
    doubtful: set[tuple[str, str]] = set()
    folders: list[Path] = []
    unread: list[Path] = []
    apart = _names_of_several_splits(files, path)
    for file in sorted(files, key=lambda file: volume_stem(file) != volume_stem(file).strip()):  # exact names first
        role, stem = _role(file, path)
        if apart:
            stem = f"{split_word(file, path)}_{stem}"
        observer = without_splits(file.parent)
        if role == _LABEL and observer not in folders:
            folders.append(observer)
        if role == _LABEL and observer != folders[0]:
            continue  # a second observer's
        name = case_name(stem) if role == _IMAGE else stem
        other = roles[role].setdefault(name, file)
        if other is file or sha256(other) == sha256(file):
            continue
        if volume_stem(file) != volume_stem(file).strip():  # "23_mask .gif" beside "23_mask.gif": a wrong copy
            unread.append(file)
            continue
        doubtful.add((role, name))
        found.problems.append(
            DataError(
                f"two pictures are {'called' if role == _IMAGE else f'the {role} of'} {name}",
                where=f"case {name}: {readable_name(other)}, {readable_name(file)}", why="one would replace the other",
                fix="rename one, or list them with ids in a case list", code="E_MANIFEST",
            )
        )  # fmt: skip
    for role, name in doubtful:  # which of them is meant is not for us to say
        del roles[role][name]
    if unread:
        found.notes.append(f"{counted(len(unread), 'file')} not read ({unread[0].name!r}): another has the same name")
    if len(folders) > 1:
        first, *others = (folder.name for folder in folders)
        found.notes.append(f"label maps are those of {first}; not read: {', '.join(others)}")
    return found, roles[_IMAGE], roles[_LABEL], roles[_MASK]


def _names_of_several_splits(files: Sequence[Path], root: Path) -> bool:
    """Tell whether images of one name lie in folders of several splits (``images/train/1.png``, ``images/val/1.png``)."""
    seen: dict[str, str] = {}
    images = ((volume_stem(file), split_word(file, root)) for file in files if _role(file, root)[0] == _IMAGE)
    return any(split and seen.setdefault(stem, split) != split for stem, split in images)


def _no(folder: Path) -> bool:
    return False


def names_a_role(folder: str) -> bool:
    """Tell whether a folder's name means images, label maps or masks, and so no class."""
    return bool(_IMAGES.search(folder.lower()) or _LABELS.search(folder.lower()) or _MASKS.search(folder.lower()))


def names_labels(folder: str) -> bool:
    """Tell whether a folder's name means label maps or masks."""
    return bool(_LABELS.search(folder.lower()) or _MASKS.search(folder.lower()))


def names_images(folder: str) -> bool:
    """Tell whether a folder's name means images."""
    return bool(_IMAGES.search(folder.lower()))


def _role(file: Path, root: Path) -> tuple[str, str]:
    """Role and name of a file, by the folder it lies in below ``root``, or by the word that its own name ends with."""
    stem = volume_stem(file).strip()
    word = _WORD.search(stem)
    bare = stem[: word.start()] if word else stem
    folder = " ".join(file.relative_to(root).parts[:-1]).lower() if file != root else ""
    for pattern, role in ((_MASKS, _MASK), (_LABELS, _LABEL)):
        if pattern.search(folder):
            return role, bare
    if word and file != root:
        return (_MASK if _MASKS.search(word.group(1).lower()) else _LABEL), bare
    return _IMAGE, stem


def case_name(stem: str) -> str:
    """A case name from a file's: letters, digits, and ``. _ + -``."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", stem).strip("_.+-")[:200] or "picture"


def _matched(images: Mapping[str, Path], others: Mapping[str, Path], found: Dataset, what: str) -> dict[str, Path]:
    """For each image its label map: by the same name, else by the part of the names that tells all files apart."""
    keys: list[tuple[str, Callable[[str], str]]] = [
        ("the same names", case_name),
        ("the beginnings of their names", lambda name: re.split(r"[_\-. ]", name)[0]),
        ("the numbers in their names", lambda name: "-".join(re.findall(r"\d+", name))),
    ]
    for how, key in keys:
        mine, theirs = {key(name): name for name in images}, {key(name): file for name, file in others.items()}
        shared = mine.keys() & theirs.keys()
        if len(mine) == len(images) and len(theirs) == len(others) and shared and len(shared) >= len(theirs):
            if how != keys[0][0]:
                example = next(iter(shared))
                found.notes.append(
                    f"each {what} belongs to an image by {how}: {theirs[example].name} to {images[mine[example]].name}"
                )
            return {mine[k]: theirs[k] for k in shared}
    mine, theirs = {case_name(name): name for name in images}, {case_name(n): file for n, file in others.items()}
    left = sorted(theirs.keys() - mine.keys())
    if left:
        found.notes.append(f"{len(left)} files are not read ({theirs[left[0]].name}): no image has such a name")
    return {mine[k]: theirs[k] for k in mine.keys() & theirs.keys()}
