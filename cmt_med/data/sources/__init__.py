"""Data sets as they come: one table of formats, and one function that finds the cases under a path, for every verb.

A format is a module with ``recognises(path)`` and ``read(path, channels)``, and a row of ``SOURCES``.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.case import CASE_NAME, COLOURS, Case
from cmt_med.data.conventions.names import SEQUENCES, case_and_word, require_distinct
from cmt_med.data.sources import (
    bids,
    boxes,
    by_channel,
    case_list,
    classes,
    coco,
    dicom,
    instances,
    pictures,
    structures,
    table,
)
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.file_names import MODALITIES
from cmt_med.data.sources.split_folders import by_place, merged, split_folders
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.streams import io_error, readable_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A way in which data sets lie on disk.

    Attributes:
        about: what it is, for messages.
        recognises: tells whether a path is one.
        read: its cases, given the channels that a network needs, or None for all.
    """

    about: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Sequence[str] | None], Dataset]


SOURCES: tuple[Source, ...] = (
    Source("images with COCO's annotations", coco.recognises, coco.read),
    Source("images with boxes", boxes.recognises, boxes.read),
    Source("a case list", case_list.recognises, case_list.read),
    Source("a BIDS data set", bids.recognises, bids.read),
    Source("a CSV table", table.recognises, table.read),
    Source("DICOM studies", dicom.recognises, dicom.read),
    Source("images with numbered objects", instances.recognises, instances.read),
    Source("a folder for each class", classes.recognises, classes.read),
    Source("a mask for each structure", structures.recognises, structures.read),
    Source("2D images", pictures.recognises, pictures.read),
    Source("volumes named by channel", by_channel.recognises, by_channel.read),
)
"""The first that recognises a path reads it: their order matters."""
LISTS = SOURCES[:5]
"""Those that say themselves what belongs together."""


def find_dataset(path: Path, channels: Sequence[str] | None = None) -> Dataset:
    """Find the cases under a path.

    Args:
        path: of a volume, a picture, a series, a folder of them, a table or a case list.
        channels: what a network needs of each case, by canonical name; None for all that is there, with label maps.

    Raises:
        DataError: E_IO if nothing is there, E_MANIFEST for a faulty list or table.
    """
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise io_error(error, path) from error
    try:
        source = next((source for source in SOURCES if source.recognises(path)), None)
    except OSError as error:  # a folder that must not be looked into
        raise io_error(error, path) from error
    if case_list.recognises(path) and bids.recognises(path):
        raise DataError(
            "the folder has two descriptions of a data set", where=readable_name(path),
            why=f"{case_list.LIST} and {bids.DESCRIPTION} may name other cases",
            fix="remove one, or give the file of the one meant", code="E_MANIFEST",
        )  # fmt: skip
    if source is None:
        raise DataError(
            "the input cannot be read", where=readable_name(path), why="it is neither a file nor a folder",
            fix="check the path", code="E_IO",
        )  # fmt: skip
    splits = {} if source in LISTS else split_folders(path)
    if splits:
        return merged({split: find_dataset(folder, channels) for split, folder in splits.items()}, path)
    return by_place(source.read(path, channels), path)


def cases_for_network(path: Path, channels: Sequence[str]) -> Dataset:
    """Find the cases under a path that a network can be given; notes are logged.

    Raises:
        DataError: as :func:`find_dataset`; E_CHANNEL if no files can be matched by name; E_MANIFEST for names of cases whose
            results would overwrite each other; the first problem, if there is no case beside it.
    """
    found = find_dataset(path, channels)
    found.cases = [case for case in [*found.cases, *found.test] if _can_be_named(case, found)]
    if not found.cases and found.problems:
        raise found.problems[0]
    if not found.cases:
        raise _unmatched(path, channels) if found.kind == "file" else _no_cases(path, channels)
    require_distinct([case.name for case in found.cases], readable_name(path))
    for note in found.notes:
        log.warning("%s: %s", readable_name(path), note)
    return found


def _can_be_named(case: Case, found: Dataset) -> bool:
    if CASE_NAME.match(case.name):
        return True
    problem = by_channel.unnamed(case.name, next(iter(case.images.values()))[0])
    problem.case = readable_name(Path(case.name))
    found.problems.append(problem)
    return False


def _unmatched(path: Path, channels: Sequence[str]) -> DataError:
    return DataError(
        "the file cannot be matched to the network's channels", where=readable_name(path),
        why=f"the network needs {', '.join(channels)}, and the file's name says something else",
        fix="use --channel NAME=FILE for each, or a case list that names the channels of a 4D file", code="E_CHANNEL",
    )  # fmt: skip


def _no_cases(path: Path, channels: Sequence[str]) -> DataError:
    """What is there, and how a file of it would have to be called."""
    files = list(walk(path, MAX_DEPTH, [], is_leaf=lambda _: False)) if path.is_dir() else [path]
    endings = Counter(_ending(file) for file in files)
    there = ", ".join(f"{count} × {ending or 'without an ending'}" for ending, count in endings.most_common(5))
    in_2d = {*channels} <= {"image", *COLOURS}
    usable = [file for file in files if looks_like_volume(file) or (in_2d and looks_like_picture(file))]
    stem, ending = (volume_stem(usable[0]), _ending(usable[0])) if usable else ("CASE", ".png" if in_2d else ".nii.gz")
    example = (
        f"{stem}{ending}"
        if in_2d
        else f"{case_and_word(stem, stem, {*SEQUENCES, *MODALITIES})[0]}_{channels[-1]}{ending}"
    )
    return DataError(
        "no cases found", where=readable_name(path),
        why=f"the network needs {', '.join(channels)}; there is {there or 'nothing'}",
        fix=f"give 2D images or a folder of them ({example})" if in_2d else
        f"name files by channel ({example}), use --channel NAME=FILE, or give a case list",
        code="E_CHANNEL",
    )  # fmt: skip


def _ending(file: Path) -> str:
    """What a file's name ends with: of a volume all of it (``.nii.gz``)."""
    return file.name[len(volume_stem(file)) :].lower() or file.suffix.lower()
