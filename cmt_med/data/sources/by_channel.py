"""Volumes named by channel: a file, the folder of a DICOM series, or such at any depth below a folder.

Read are BraTS 2017 to 2024 (``HGG/ID/ID_t1ce.nii.gz``, ``ID/ID-t1c.nii.gz``), BRATS 2013, whose files start with the sequence
(``ID/T1c_x.nii.gz``), images and label maps in folders of their own (``imagesTr/ID_0000.nii.gz``, ``labelsTr/ID.nii.gz``;
derivatives of BIDS), and volumes that name no channel. Channels go by name, never by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.base.text import counted
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.conventions.names import (
    LABEL_WORDS,
    MASK_WORDS,
    SEQUENCES,
    canonical_channel,
    case_and_word,
    place_of,
)
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.walk import walk
from cmt_med.data.volumes.endings import VOXELS_BESIDE, looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.streams import readable_name

MAX_DEPTH = 12
IMAGE, LABEL, MASK = "image", "label", "mask"
_IMAGE_WORDS = ("image", "img", "ct", "mri", "volume", "vol")
_PROBABILITIES = "prob"
_ROLE_FOLDER = re.compile(r"(image|label|mask|segmentation|annotation)s?(?:tr|ts|val)?\Z")


@dataclass
class _Files:
    """The files of one case: a place, which is a folder, and a name."""

    place: Path
    images: dict[str, Path] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    again: dict[str, list[Path]] = field(default_factory=dict)  # what would be a channel a second time

    def all(self) -> list[Path]:
        return [
            *self.images.values(),
            *self.labels,
            *self.masks,
            *(file for more in self.again.values() for file in more),
        ]


def recognises(path: Path) -> bool:
    """Tell whether a path is a file or a folder; what it holds, is seen while it is read."""
    return path.is_file() or path.is_dir()


def read(path: Path, channels: Sequence[str] | None, *, pictures: bool = False) -> Dataset:
    """Find the cases under a path.

    Args:
        path: of a volume, a series, or a folder.
        channels: what a network needs, whose cases have these channels alone, and no label maps; None for all that is there:
            the MR sequences that any file names, else whatever the files are called.
        pictures: read 2D images in place of volumes.
    """
    single = path.is_file() or is_series(path)
    found = Dataset("file" if single else "folder", path.resolve().name, by_name=True)
    files = [path] if single else _pictures(path, found) if pictures else _volumes(path, found)
    groups, strays = _grouped(files, channels)
    sequences = [name for name in SEQUENCES if any(name in files.images for files in groups.values())]
    if sequences and channels is None:
        strays += _without_sequence(groups)
    _join_places(groups)
    found.unmatched += _given_back(strays, groups, found)
    found.channels = list(channels or sequences or sorted({c for files in groups.values() for c in files.images}))
    if channels is None and not sequences and not any(files.labels for files in groups.values()):
        _masks_as_labels(groups, found)
    for (_, name), members in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        fault = _contradiction(name, members)
        if fault is not None:
            found.problems.append(fault)
            found.unmatched += members.all()
        elif members.images or (members.labels and channels is None):
            images: dict[str, tuple[Path, int | None]] = {
                channel: (file, None) for channel, file in members.images.items()
            }
            label, mask = (files[0] if files else None for files in (members.labels, members.masks))
            found.cases.append(Case(name, images, label, mask, _patient(name) if channels is None else ""))
        else:
            found.unmatched += members.all()
    found.suffixes = _suffixes(found)
    if found.unmatched:
        first = readable_name(Path(found.unmatched[0].name))
        are = "file is" if len(found.unmatched) == 1 else "files are"
        found.notes.append(
            f"{len(found.unmatched)} {are} not read ({first}): no channel or label is known by such a name"
        )
    return found


def case_of_channels(files: Mapping[str, Path], channels: Sequence[str]) -> Case:
    """Make a case of ``--channel NAME=FILE`` items.

    Raises:
        ConfigError: for a channel that the network does not have.
        DataError: E_MANIFEST if the file's name gives none to the case.
    """
    images = {canonical_channel(name): path for name, path in files.items()}
    if len(images) != len(files):
        raise ConfigError(
            "two names mean the same channel", where=f"--channel {', '.join(files)}",
            why=f"they stand for {', '.join(images)}", fix="give each channel once",
        )  # fmt: skip
    unknown = [name for name in images if name not in channels]
    if unknown:
        raise ConfigError(
            f"the network has no channel {', '.join(unknown)}", where="--channel", why="channels go by name",
            fix=f"its channels are {', '.join(channels)}",
        )  # fmt: skip
    one = next(iter(files.values()))
    first = volume_stem(one)
    name, word = case_and_word(first, first, channels)
    name = name if canonical_channel(word) in channels else first
    if not CASE_NAME.match(name):
        raise unnamed(name, one)
    return Case(name, {n: (p, None) for n, p in images.items()})


def unnamed(name: str, file: Path) -> DataError:
    """Make the error for a file whose name gives none to a case."""
    return DataError(
        f"{name!r} cannot be a case name", where=readable_name(file), why="results are files of that name",
        fix="use letters, digits, . _ + -", code="E_MANIFEST",
    )  # fmt: skip


# ---- files


def _volumes(folder: Path, found: Dataset) -> Iterator[Path]:
    """Files that are named like volumes, folders of DICOM slices, and voxels whose header is missing."""
    for path in walk(folder, MAX_DEPTH, found.problems, is_leaf=is_series, repeated=found.repeated):
        if looks_like_volume(path) or path.is_dir() or _lacks_header(path):
            yield path
        elif not path.name.lower().endswith(VOXELS_BESIDE):
            found.others.append(path)


def _lacks_header(path: Path) -> bool:
    """Tell whether a file holds voxels and there is no header beside it; the gate says what is missing."""
    name = path.name.lower()
    if not name.endswith(VOXELS_BESIDE):
        return False
    wanted = re.sub(r"img(\.gz)?\Z", r"hdr\1", name)
    return all(other.name.lower() != wanted for other in path.parent.iterdir())


def _pictures(path: Path, found: Dataset) -> Iterator[Path]:
    return filter(looks_like_picture, walk(path, MAX_DEPTH, found.problems, is_leaf=is_series))


# ---- names


def _name_of(file: Path, channels: Sequence[str] | None) -> tuple[Path, str, str]:
    """Place, case and role of a file: a channel, "image" where it names none, "label", "mask" or "prob"."""
    stem = volume_stem(file)
    place = place_of(file, stem)
    known = {*SEQUENCES, *LABEL_WORDS, *MASK_WORDS, _PROBABILITIES, *(channels or ())}
    name, word = case_and_word(stem, place.name, known)
    folder = _ROLE_FOLDER.match(file.parent.name.lower())
    if folder and place == file.parent:
        place = place.parent
    if not word:
        parts = re.match(r"(.+)[_.-]([A-Za-z0-9]+)\Z", stem, re.DOTALL)
        if stem.lower() in _IMAGE_WORDS and not folder:
            name = place.name
        elif parts and parts[2].lower() in _IMAGE_WORDS:
            name = parts[1]
        elif parts and folder and folder[1] == "image" and re.fullmatch(r"\d{4}", parts[2]):
            name, word = parts[1], parts[2]
        elif folder and folder[1] != "image":
            word = MASK if folder[1] == "mask" else LABEL
    role = canonical_channel(word) if word else IMAGE
    if role in (channels or SEQUENCES):
        return place, name, role
    return place, name, LABEL if role in LABEL_WORDS else MASK if role in MASK_WORDS and role != "brainmask" else role


def _for_network(role: str, name: str, channels: Sequence[str]) -> str | None:
    """Return the role of a file where a network needs ``channels``; None for what it has no use for."""
    if role in channels:
        return role
    # Beside images that name no sequence, "mask" may well be the label map.
    if role == "brainmask" or (role == MASK and set(channels) <= set(SEQUENCES)):
        return MASK
    if role in (LABEL, MASK, _PROBABILITIES) or len(channels) > 1 or role in SEQUENCES:
        return None  # another sequence is never taken for the network's
    return channels[0] if role == IMAGE or not role.strip("0") else None


# ---- cases


def _grouped(
    files: Iterable[Path], channels: Sequence[str] | None
) -> tuple[dict[tuple[Path, str], _Files], list[tuple[Path, Path]]]:
    """Group files by place and case.

    Returns:
        The groups; and, each with its place, the files that name no channel where others do.
    """
    groups: dict[tuple[Path, str], _Files] = {}
    nameless: list[tuple[Path, str, Path]] = []
    for file in files:
        place, name, role = _name_of(file, channels)
        if role == _PROBABILITIES:
            continue
        wanted = (MASK if role == "brainmask" else role) if channels is None else _for_network(role, name, channels)
        if wanted is None:
            continue
        if role == IMAGE and channels is not None and set(channels) <= set(SEQUENCES):
            nameless.append((place, name, file))
        else:
            _sort_in(groups.setdefault((place, name), _Files(place)), wanted, file)
    named = {place for place, _ in groups}
    strays = [(place, file) for place, _, file in nameless if place in named]
    for place, name, file in nameless:
        if place not in named and channels is not None:
            _sort_in(groups.setdefault((place, name), _Files(place)), channels[0], file)
    return groups, strays


def _sort_in(files: _Files, role: str, file: Path) -> None:
    if role == LABEL:
        files.labels.append(file)
    elif role == MASK:
        files.masks.append(file)
    elif role in files.images:
        files.again.setdefault(role, []).append(file)
    else:
        files.images[role] = file


def _without_sequence(groups: dict[tuple[Path, str], _Files]) -> list[tuple[Path, Path]]:
    """Take out, where sequences are named, files that name none and have no label map: they are no cases."""
    strays = []
    for key, files in list(groups.items()):
        if files.images and not files.labels and not files.images.keys() & set(SEQUENCES):
            strays += [(key[0], file) for file in files.all()]
            del groups[key]
    return strays


def _join_places(groups: dict[tuple[Path, str], _Files]) -> None:
    """Give label maps and masks that lie apart to the only images of their case's name."""
    owners: dict[str, list[_Files]] = {}
    for (_, name), files in groups.items():
        if files.images:
            owners.setdefault(name, []).append(files)
    for (place, name), files in list(groups.items()):
        if not files.images and len(owners.get(name, ())) == 1:
            owners[name][0].labels += files.labels
            owners[name][0].masks += files.masks
            del groups[place, name]


def _given_back(
    strays: Sequence[tuple[Path, Path]], groups: dict[tuple[Path, str], _Files], found: Dataset
) -> Iterator[Path]:
    """Give to a folder's only case its misnamed label map; the others are of no case."""
    for place, file in strays:
        owners = [(name, files) for (where, name), files in groups.items() if where == place and files.images]
        if len(owners) == 1 and not owners[0][1].labels and "seg" in file.name.lower():
            name, files = owners[0]  # BraTS 2020's case 355: W39_1998.09.19_Segm.nii
            files.labels.append(file)
            found.notes.append(f"case {name}: {file.name} is taken for its misnamed label map")
        else:
            yield file


def _masks_as_labels(groups: Mapping[tuple[Path, str], _Files], found: Dataset) -> None:
    """Take masks for label maps where there are no others, and no sequence of the brain is named."""
    count = 0
    for files in groups.values():
        if files.images and files.masks:
            files.labels, files.masks = files.masks, []
            count += 1
    if count:
        found.notes.append(f"{counted(count, 'file')} called mask: taken for label maps, as there are no others")


def _contradiction(name: str, files: _Files) -> DataError | None:
    """Find what a case has twice."""
    twice = [(f"channel {channel}", [files.images[channel], *more]) for channel, more in files.again.items()]
    twice += [("the label map", files.labels)] * (len(files.labels) > 1)
    twice += [("the mask", files.masks)] * (len(files.masks) > 1)
    if not twice:
        return None
    return DataError(
        f"two files are {twice[0][0]} of case {name}", where=", ".join(map(readable_name, twice[0][1])),
        why="which of them is meant cannot be known", fix="keep one",
        code="E_LABEL" if twice[0][1] is files.labels else "E_CHANNEL",
    )  # fmt: skip


def _patient(name: str) -> str:
    """The patient of a case: of BIDS the subject, whatever the session and the run; else the case itself."""
    subject = re.match(r"sub-[A-Za-z0-9]+(?=_)", name)
    return subject[0] if subject else name


def _suffixes(found: Dataset) -> set[str]:
    """The words by which files name sequences, by which years are told apart."""
    words = set()
    for case in found.cases:
        for channel, (file, _) in case.images.items():
            stem = volume_stem(file)
            words.add(case_and_word(stem, place_of(file, stem).name, SEQUENCES)[1] if channel in SEQUENCES else "")
    return words - {""}
