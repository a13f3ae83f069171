"""Label maps whose names do not say which image they belong to, paired by their grids: shape, place and voxel size."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import LABEL_WORDS
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.decoder import header
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.streams import readable_name

MOST = 2_000
"""Files whose headers are read."""
_MODALITIES = {"ct": "ct", "cta": "ct", "cbct": "ct", "mr": "mri", "mri": "mri", "pet": "pet", "pt": "pet", "us": "us"}


def pair_by_grid(found: Dataset) -> None:
    """Give label maps without an image to images without a label map, where every grid is that of just one of both.

    Both lie in one folder: the label maps of another are never taken.
    """
    stray = [case for case in found.cases if not case.images and case.label is not None]
    labels = [case.label for case in stray if case.label is not None]
    doubtful = [case for case in found.doubtful if not case.images and case.label is not None]
    labels += [case.label for case in doubtful if case.label is not None]
    labels += [file for file in found.duplicates if _called_label(file)]
    bare = [case for case in found.cases if case.images and case.label is None]
    if not labels or not bare or len(labels) + len(bare) > MOST:
        return
    files = {case.name: next(iter(case.images.values()))[0] for case in bare}
    grids = {name: _grid(file) for name, file in files.items()}
    pairs: dict[str, Path] = {}
    for file in labels:
        own = _grid(file)
        beside = [(name, grid) for name, grid in grids.items() if files[name].parent == file.parent]
        fitting = [name for name, grid in beside if own is not None and grid is not None and own.reordering(grid)]
        if len(fitting) != 1 or fitting[0] in pairs:
            return
        pairs[fitting[0]] = file
    found.cases = [replace(case, label=pairs.get(case.name, case.label)) for case in found.cases if case not in stray]
    names = {readable_name(Path(case.name)) for case in doubtful}
    found.problems = [problem for problem in found.problems if problem.case not in names]
    found.doubtful = [case for case in found.doubtful if case not in doubtful]
    found.duplicates = [file for file in found.duplicates if file not in pairs.values()]
    listed = ", ".join(f"{file.name} for {name}" for name, file in sorted(pairs.items())[:4])
    found.notes.append(f"{counted(len(pairs), 'label map')} paired by shape, place and voxel size: {listed}")
    _tell_modalities_apart(found)


def _tell_modalities_apart(found: Dataset) -> None:
    """Name the only channel of each case by the modality in its name, if all have one and not all the same."""
    words = {case.name: _modality(case) for case in found.cases}
    if not all(words.values()) or len(set(words.values())) < 2 or any(len(case.images) != 1 for case in found.cases):
        return
    found.cases = [replace(case, images={words[case.name]: next(iter(case.images.values()))}) for case in found.cases]
    found.channels = sorted(set(words.values()))


def keep_one_modality(found: Dataset) -> None:
    """Where every case has one image, and not all of one modality, keep the cases of the most frequent.

    Raises:
        DataError: E_CHANNEL, if none has two thirds of the cases.
    """
    kinds = Counter(next(iter(case.images)) for case in found.cases if len(case.images) == 1)
    if len(kinds) < 2 or kinds.total() != len(found.cases) or set(kinds) != set(found.channels):
        return
    (usual, count), total = kinds.most_common(1)[0], len(found.cases)
    listed = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
    if 3 * count < 2 * total:
        raise DataError(
            f"the cases have different channels: {listed}", where=found.title, why="one network takes the same channels of each",
            fix="give a folder with the cases of one kind, or a table that names the channels", code="E_CHANNEL",
        )  # fmt: skip
    for case in found.cases:
        if usual not in case.images:
            problem = DataError(
                f"the case is {next(iter(case.images))}, most are {usual}", where=f"case {case.name}",
                why="one network takes the same channels of each", fix="give the others a folder of their own", code="E_CHANNEL",
            )  # fmt: skip
            problem.case = case.name
            found.problems.append(problem)
    found.cases = [case for case in found.cases if usual in case.images]
    found.channels = [usual]


def _modality(case: Case) -> str:
    words = {_MODALITIES[word] for word in re.split(r"[^a-z0-9]+", case.name.lower()) if word in _MODALITIES}
    return words.pop() if len(words) == 1 else ""


def _called_label(file: Path) -> bool:
    return bool({*re.split(r"[^a-z0-9]+", volume_stem(file).lower())} & {*LABEL_WORDS})


def _grid(file: Path) -> Grid | None:
    try:
        said = header(file)
        return Grid(said.shape[:3], np.array(said.affine))
    except DataError:
        return None
