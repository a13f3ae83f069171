"""Cases from what a user points at: a file, a folder, or a case list. Channels are matched by name, never by position."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.data.case import CASE_NAME, COLOURS, Case
from cmt_med.data.conventions.brats import CONVENTIONS
from cmt_med.data.conventions.names import (
    LABEL_WORDS,
    MASK_WORDS,
    SEQUENCES,
    canonical_channel,
    case_and_word,
    place_of,
    require_distinct,
)
from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources.classes import class_cases, class_folders
from cmt_med.data.sources.foreign import read_table
from cmt_med.data.sources.pictures import are_pictures, image_cases
from cmt_med.data.sources.walk import walk
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.streams import io_error, readable_name

log = logging.getLogger(__name__)

MAX_DEPTH = 5
_NOT_IMAGES = {*LABEL_WORDS, *MASK_WORDS, "prob"}
_MASK = "the mask"  # a role that no channel can have: channels have no spaces


@dataclass
class Found:
    """Cases found under a path, and the problems of single cases.

    ``labels`` are the label names and numbers that a case list states, itself or by its convention.
    """

    cases: list[Case] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def find_cases(path: Path, channels: Sequence[str]) -> Found:
    """The cases under ``path``.

    Args:
        path: a ``.json`` case list (all of its cases), or the folder of a ``dataset.json``; a ``.csv`` table; a volume,
            which is a file or a folder of DICOM slices (for networks with one channel); a 2D image, or a folder of them, if
            no volumes lie beside them (:mod:`cmt_med.data.sources.pictures`); a folder of volumes; a folder of
            one case, or of case folders at any depth, with volumes named by channel (``NAME_t1ce.nii.gz``). A
            ``NAME_mask`` beside them is the case's foreground, label maps are left alone.
        channels: what the network needs, by canonical name.

    Raises:
        DataError: E_IO if nothing is there, E_CHANNEL if no files can be matched by name, E_MANIFEST for a bad list or
            names of cases whose results would overwrite each other; the first problem, if there is no case beside it.
    """
    try:
        if path.is_dir() and (path / "dataset.json").is_file():
            path = path / "dataset.json"
        os.lstat(path)
    except (OSError, ValueError) as error:
        raise io_error(error, path) from error
    found = Found()
    if path.suffix.lower() == ".json":
        manifest = load_manifest(path)
        found.cases = [*manifest.cases, *manifest.test]
        found.labels = manifest.labels or (CONVENTIONS[manifest.convention].labels if manifest.convention else {})
    elif path.suffix.lower() == ".csv":
        table = read_table(path, channels)
        for note in table.notes:
            log.warning("%s: %s", readable_name(path), note)
        found = Found(table.cases, table.problems)
    elif folders := class_folders(path):
        found.cases = class_cases(folders, channels).cases
    elif are_pictures(path):
        _add_pictures(found, path, channels)
    elif path.is_file() or is_series(path):
        _add_cases(found, [path], channels)
        if not found.cases and not found.problems:
            raise _unmatched(path, channels)
    elif path.is_dir():
        _add_cases(found, _volumes(path, found), channels)
    else:
        raise DataError(
            "the input cannot be read", where=readable_name(path), why="it is neither a file nor a folder",
            fix="check --input", code="E_IO",
        )  # fmt: skip
    if not found.cases and found.problems:
        raise found.problems[0]
    if not found.cases:
        raise DataError(
            "no cases found", where=readable_name(path), why=f"the network needs {', '.join(channels)}",
            fix="name files by channel (CASE_t1ce.nii.gz), use --channel NAME=FILE, or give a case list",
            code="E_CHANNEL",
        )  # fmt: skip
    require_distinct([case.name for case in found.cases], readable_name(path))
    return found


def label_maps_in(folder: Path) -> dict[str, Path]:
    """Case name -> label map for what lies directly in a folder, as ``infer`` writes it; probabilities are left out.

    Raises:
        DataError: E_IO if it is no folder, E_MANIFEST if two files differ in their endings alone.
    """
    if not folder.is_dir():
        raise DataError("not a folder", where=readable_name(folder), fix="give a folder of label maps", code="E_IO")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    files = [path for path in files if not volume_stem(path).endswith("_prob")]
    # Beside volumes, pictures are previews.
    maps = list(filter(looks_like_volume, files)) or list(filter(looks_like_picture, files))
    found: dict[str, Path] = {}
    for path in maps:
        name = volume_stem(path)
        if name in found:
            raise DataError(
                f"two label maps are of case {name!r}", where=f"{readable_name(found[name])}, {path.name}",
                why="which of them is meant cannot be known", fix="keep one", code="E_MANIFEST",
            )  # fmt: skip
        found[name] = path
    return found


def case_of_channels(files: Mapping[str, Path], channels: Sequence[str]) -> Case:
    """One case from ``--channel NAME=FILE`` items.

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
            f"the network has no channel {', '.join(unknown)}",
            where="--channel",
            fix=f"its channels are {', '.join(channels)}",
        )
    one = next(iter(files.values()))
    first = volume_stem(one)
    name, role = _name_and_role(first, first, channels)
    name = name if role in channels else first
    if not CASE_NAME.match(name):
        raise _unnamed(name, one)
    return Case(name, {n: (p, None) for n, p in images.items()})


def _add_pictures(found: Found, path: Path, channels: Sequence[str]) -> None:
    """A case for each picture; where the network takes several channels that are no colours, files named by channel."""
    if len(channels) > 1 and tuple(channels) != COLOURS:
        _add_cases(
            found, filter(looks_like_picture, walk(path, MAX_DEPTH, found.problems, is_leaf=is_series)), channels
        )
        return
    pictures = image_cases(path, channels)
    for note in pictures.notes:
        log.warning("%s: %s", readable_name(path), note)
    found.cases, found.problems = pictures.cases, pictures.problems


def _volumes(folder: Path, found: Found) -> Iterator[Path]:
    """The volumes in a folder and below it: files that are named like one, and folders of DICOM slices."""
    for path in walk(folder, MAX_DEPTH, found.problems, is_leaf=is_series):
        if looks_like_volume(path) or path.is_dir():
            yield path


def _add_cases(found: Found, files: Iterable[Path], channels: Sequence[str]) -> None:
    grouped: dict[tuple[Path, str], dict[str, Path]] = {}
    faults: dict[tuple[Path, str], DataError] = {}
    for file in files:
        stem = volume_stem(file)
        place = place_of(file, stem)
        name, role = _name_and_role(stem, place.name, channels)
        if role is None:
            continue
        here = grouped.setdefault((place, name), {})
        if not CASE_NAME.match(name):
            faults.setdefault((place, name), _unnamed(name, file))
        elif role in here:
            faults[place, name] = DataError(
                f"two files are {'the mask' if role == _MASK else f'channel {role}'} of case {name}",
                where=f"{readable_name(file)}, {readable_name(here[role])}",
                fix="keep one",
                code="E_CHANNEL",
            )
        here[role] = file
    found.problems += faults.values()
    found.cases += [
        Case(name, {role: (file, None) for role, file in here.items() if role != _MASK}, mask=here.get(_MASK))
        for (place, name), here in grouped.items()
        if set(here) - {_MASK} and (place, name) not in faults
    ]


def _name_and_role(stem: str, folder: str, channels: Sequence[str]) -> tuple[str, str | None]:
    """Case and role of a file: a channel, a mask of the foreground, or None for what is neither."""
    name, word = case_and_word(stem, folder, {*channels, *SEQUENCES, *_NOT_IMAGES})
    role = canonical_channel(word)
    # Beside images that name no sequence, "mask" may well be the label map.
    if role == "brainmask" or (role == "mask" and set(channels) <= set(SEQUENCES)):
        return name, _MASK
    if role in _NOT_IMAGES:
        return name, None
    if role in channels:
        return name, role
    if len(channels) > 1 or role in SEQUENCES:  # another sequence is never taken for the network's
        return name, None
    return stem, channels[0]


def _unnamed(name: str, file: Path) -> DataError:
    return DataError(
        f"{name!r} cannot be a case name", where=readable_name(file), why="results are files of that name",
        fix="use letters, digits, . _ + -", code="E_MANIFEST",
    )  # fmt: skip


def _unmatched(path: Path, channels: Sequence[str]) -> DataError:
    return DataError(
        "the file cannot be matched to the network's channels",
        where=readable_name(path),
        why=f"the network needs {', '.join(channels)}, and the file's name says something else",
        fix="use --channel NAME=FILE for each, or a case list that names the channels of a 4D file",
        code="E_CHANNEL",
    )
