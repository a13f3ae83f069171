"""Volumes named by channel: a single file, the folder of a DICOM series, or a tree of either.

Read are BraTS 2017 to 2024 (``HGG/ID/ID_t1ce.nii.gz``, ``ID/ID-t1c.nii.gz``), BRATS 2013, whose files start with the sequence
(``ID/T1c_x.nii.gz``), images and label maps in folders of their own (``images/ID.nii.gz``, ``labels/ID.nii.gz``; derivatives of
BIDS), and volumes that name no channel. Channels go by name, never by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.base.text import counted
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.conventions.names import (
    SEQUENCES,
    canonical_channel,
    case_and_word,
    place_of,
)
from cmt_med.data.sources.by_grid import pair_by_grid
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.file_names import (
    BRAIN_MASK,
    IMAGE,
    LABEL,
    MASK,
    Key,
    name_of,
    patient_of_name,
    role_for_network,
)
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.endings import VOXELS_BESIDE, looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.nifti import partner
from cmt_med.data.volumes.streams import readable_name

_PROBABILITIES = "_prob"


@dataclass
class _Files:
    """The files of one case."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    brain_masks: list[Path] = field(default_factory=list)
    again: dict[str, list[Path]] = field(default_factory=dict)  # what would be a channel a second time

    def all(self) -> list[Path]:
        """Every file."""
        again = [file for more in self.again.values() for file in more]
        return [*self.images.values(), *self.labels, *self.masks, *self.brain_masks, *again]

    def add(self, role: str, file: Path) -> None:
        """Sort in a file."""
        lists = {LABEL: self.labels, MASK: self.masks, BRAIN_MASK: self.brain_masks}
        if role in lists:
            lists[role].append(file)
        elif role in self.images:
            self.again.setdefault(role, []).append(file)
        else:
            self.images[role] = file

    def case(self, name: str, group: str) -> Case:
        """The case, of what there is twice with the first."""
        images: dict[str, tuple[Path, int | None]] = {channel: (file, None) for channel, file in self.images.items()}
        masks = [*self.brain_masks, *self.masks]
        return Case(name, images, self.labels[0] if self.labels else None, masks[0] if masks else None, group)


@dataclass(frozen=True)
class _Stray:
    """A file that names no channel, in a folder where others do."""

    folders: tuple[str, ...]
    file: Path


def recognises(path: Path) -> bool:
    """Tell whether a path is a file or a folder; its content is only looked at while it is read."""
    return path.is_file() or path.is_dir()


def read(path: Path, channels: Sequence[str] | None, *, pictures: bool = False) -> Dataset:
    """Find the cases under a path.

    Args:
        path: of a volume, a series, or a folder.
        channels: channels that a network needs; label maps are then ignored. None for all MR sequences that files name, or
            whatever the files are called if they name none, with label maps.
        pictures: read 2D images in place of volumes.
    """
    single = path.is_file() or is_series(path)
    found = Dataset("file" if single else "folder", path.resolve().name, by_name=True)
    files = [path] if single else _pictures(path, found) if pictures else _volumes(path, found)
    groups, strays = _grouped(files, path.parent if single else path, channels)
    sequences = [name for name in SEQUENCES if any(name in members.images for members in groups.values())]
    if channels is None and sequences:
        strays += _without_sequence(groups)
    found.unmatched += _misnamed_given_back(strays, groups, found)
    names = {name for members in groups.values() for name in members.images}
    found.channels = list(channels or sequences or sorted(names))
    if channels is None and not sequences and not any(members.labels for members in groups.values()):
        _masks_as_labels(groups, found)
    for (_, name), members in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        case = members.case(name, patient_of_name(name) if channels is None else "")
        twice = _twice(members)
        if twice:
            found.problems.append(_contradiction(name, *twice[0]))
            found.doubtful.append(case)
            found.duplicates += [file for _, same in twice for file in same[1:]]
        elif case.images or (case.label and channels is None):
            found.cases.append(case)
        else:
            found.unmatched += members.all()
    if channels is None:
        pair_by_grid(found)
    found.suffixes = _suffixes(found.cases)
    if found.unmatched:
        first = readable_name(Path(found.unmatched[0].name))
        found.notes.append(f"of no case, and not read: {counted(len(found.unmatched), 'file')} ({first})")
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
        beside = path.name.lower().endswith(VOXELS_BESIDE)
        if looks_like_volume(path) or path.is_dir() or (beside and not partner(path).exists()):
            yield path  # the gate says which header is missing
        elif not beside:
            found.others.append(path)


def _pictures(path: Path, found: Dataset) -> Iterator[Path]:
    return filter(looks_like_picture, walk(path, MAX_DEPTH, found.problems, is_leaf=is_series))


# ---- cases


def _grouped(
    files: Iterable[Path], root: Path, channels: Sequence[str] | None
) -> tuple[dict[Key, _Files], list[_Stray]]:
    """Sort files into cases.

    Returns:
        The files of each case; and those that name no channel where others do, in their folder (MR sequences) or their case.
    """
    groups: dict[Key, _Files] = {}
    nameless: list[tuple[Key, Path]] = []
    for file in files:
        if channels is not None and volume_stem(file).endswith(_PROBABILITIES):
            continue  # beside label maps that infer has written
        key, role = name_of(file, root, channels)
        wanted = role if channels is None else role_for_network(role, channels)
        if role == IMAGE and channels is not None and IMAGE not in channels and wanted is not None:
            nameless.append((key, file))
        elif wanted is not None:
            groups.setdefault(key, _Files()).add(wanted, file)
    sequences = channels is not None and set(channels) <= set(SEQUENCES)
    named = {key[0] if sequences else key for key, members in groups.items() if members.images}
    strays = []
    for key, file in nameless:
        if (key[0] if sequences else key) in named:
            strays.append(_Stray(key[0], file))
        elif channels is not None:
            groups.setdefault(key, _Files()).add(channels[0], file)
    return groups, strays


def _without_sequence(groups: dict[Key, _Files]) -> list[_Stray]:
    """Take out, where sequences are named, files that name none and have no label map: they are no cases."""
    strays = []
    for key, members in list(groups.items()):
        if members.images and not members.labels and not members.images.keys() & set(SEQUENCES):
            strays += [_Stray(key[0], file) for file in members.all()]
            del groups[key]
    return strays


def _misnamed_given_back(strays: Sequence[_Stray], groups: dict[Key, _Files], found: Dataset) -> list[Path]:
    """Give to a folder's only case its only misnamed label map; return the files that are of no case.

    BraTS 2020's case 355 has ``W39_1998.09.19_Segm.nii``.
    """
    left = []
    for stray in strays:
        owners = [(key[1], members) for key, members in groups.items() if key[0] == stray.folders and members.images]
        alike = [other for other in strays if other.folders == stray.folders and "seg" in other.file.name.lower()]
        if alike == [stray] and len(owners) == 1 and not owners[0][1].labels:
            name, members = owners[0]
            members.labels.append(stray.file)
            found.notes.append(f"case {name}: {stray.file.name} is taken for its misnamed label map")
        else:
            left.append(stray.file)
    return left


def _masks_as_labels(groups: Mapping[Key, _Files], found: Dataset) -> None:
    """Take files called mask for label maps where there are no others, and no sequence of the brain is named."""
    count = 0
    for members in groups.values():
        if members.images and members.masks:
            members.labels, members.masks = members.masks, []
            count += 1
    if count:
        found.notes.append(f"{counted(count, 'file')} called mask: taken for label maps, as there are no others")


def _twice(members: _Files) -> list[tuple[str, list[Path]]]:
    """What a case has more than once, and the files."""
    found = [(f"channel {channel}", [members.images[channel], *more]) for channel, more in members.again.items()]
    masks = [*members.brain_masks, *members.masks]
    return found + [pair for pair in (("the label map", members.labels), ("the mask", masks)) if len(pair[1]) > 1]


def _contradiction(name: str, what: str, files: Sequence[Path]) -> DataError:
    error = DataError(
        f"two files are {what} of case {name}", where=f"case {name}: {', '.join(map(readable_name, files))}",
        why="which of them is meant cannot be known", fix="keep one",
        code="E_LABEL" if what == "the label map" else "E_CHANNEL",
    )  # fmt: skip
    error.case = readable_name(Path(name))
    return error


def _suffixes(cases: Iterable[Case]) -> set[str]:
    """The words by which files name sequences, by which years are told apart."""
    words = set()
    for case in cases:
        for channel, (file, _) in case.images.items():
            stem = volume_stem(file)
            words.add(case_and_word(stem, place_of(file, stem).name, SEQUENCES)[1] if channel in SEQUENCES else "")
    return words - {""}
