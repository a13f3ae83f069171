"""The cases of DICOM studies: one or many patients' series in any folders, with label maps from SEG and RTSTRUCT.

A case is a study; its channels are named by modality, description and timing of the series. Where a segmentation says which
series it was drawn on, the others of the study count if they lie on the same slices.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import SEQUENCES, canonical_channel, case_and_word
from cmt_med.data.conventions.series import MODALITY, channel_of_series
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.pictures import names_a_role
from cmt_med.data.sources.segment_labels import labelled_alike
from cmt_med.data.volumes.dicom_header import IMAGE_CLASSES, slices_in
from cmt_med.data.volumes.dicom_labels import series_of_labels
from cmt_med.data.volumes.dicom_series import SEGMENTATIONS, STRUCTURES, Tags, objects_in, series_path
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.streams import io_error, readable_name

SAME_PLACE = 0.02
"""Millimetres; registered series differ in the fifth digit."""
FEWEST_SLICES = 3
"""Of a series that is taken for a volume: scouts have one to three, in several directions."""


@dataclass
class _Series:
    """The slices of one series that lie in one folder."""

    uid: str
    folder: Path
    slices: list[Tags] = field(default_factory=list)
    channel: str = ""

    @property
    def path(self) -> Path:
        """The path of the series."""
        if len(self.slices) == 1:
            return self.slices[0].path  # a multi-frame file
        alone = all(tags.series == self.uid or tags.damage for tags in objects_in(self.folder))
        return self.folder if alone else series_path(self.folder, self.uid)

    def lies_on(self, other: _Series) -> bool:
        """Tell whether the slices are those of another series, as far as scanners round their places."""
        if len(self.slices) != len(other.slices):
            return False
        mine, theirs = (np.array(sorted(tags.place for tags in series.slices)) for series in (self, other))
        return mine.shape == theirs.shape and bool(np.allclose(mine, theirs, rtol=1e-4, atol=SAME_PLACE))

    def named(self) -> str:
        """Describe the series for people."""
        first = self.slices[0]
        return f"{first.description or first.protocol or first.modality} ({counted(len(self.slices), 'file')})"


@dataclass
class _Study:
    """The series and segmentations of one study."""

    patient: str
    date: str
    series: dict[tuple[str, Path], _Series] = field(default_factory=dict)
    labels: list[Tags] = field(default_factory=list)
    name: str = ""


def is_one_series(path: Path) -> bool:
    """Tell whether all files of a folder are the slices of one series, or cannot be told apart."""
    try:
        files = slices_in(path)
        if not files:
            return False
        tags = objects_in(path)
    except DataError:
        return True  # whose reader says what is wrong
    below = any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir())
    return not below and len({t.series for t in tags}) < 2


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the studies under a folder.

    Args:
        path: the folder.
        channels: that a network needs; None for all that the series have, with label maps.
    """
    found = Dataset("DICOM studies", path.resolve().name)
    studies = _studies(path, found)
    _name(studies, path, found)
    cases = [(study, _case(study, channels, found)) for study in studies]
    made = [(study, case) for study, case in cases if case is not None]
    if channels is None:
        modalities = {series.slices[0].modality for study, _ in made for series in study.series.values()}
        found.cases = labelled_alike([case for _, case in made], modalities, found)
    else:
        found.cases = [case for _, case in made]
    have = {channel for case in found.cases for channel in case.images}
    found.channels = list(channels or [*(c for c in SEQUENCES if c in have), *sorted(have - set(SEQUENCES))])
    return found


# ---- what there is


def _studies(path: Path, found: Dataset) -> list[_Study]:
    studies: dict[tuple[str, str], _Study] = {}
    others: dict[str, int] = defaultdict(int)
    for tags in _objects(path, found):
        if tags.damage:
            found.problems.append(_damaged(tags))
            continue
        study = studies.setdefault((tags.patient, tags.study), _Study(tags.patient, tags.date))
        if tags.storage in (*SEGMENTATIONS, STRUCTURES):
            study.labels.append(tags)
        elif tags.storage not in IMAGE_CLASSES:
            others[tags.modality or "unknown"] += 1
        else:
            folder = tags.path.parent
            study.series.setdefault((tags.series, folder), _Series(tags.series, folder)).slices.append(tags)
    if others:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        found.notes.append(f"DICOM files that are no volumes, and not read: {listed}")
    for study in studies.values():
        if study.labels and not study.series:
            found.problems.append(_without_images(study.labels[0], "the study has no images"))
    scouts = 0
    for study in studies.values():
        for key, series in list(study.series.items()):
            frames = sum(tags.frames for tags in series.slices)
            if "LOCALIZER" in series.slices[0].kinds or frames < FEWEST_SLICES:
                del study.series[key]
                scouts += 1
    if scouts:
        found.notes.append(f"{scouts} series left out: localizers, or fewer than {FEWEST_SLICES} slices")
    return [studies[key] for key in sorted(studies, key=lambda key: (studies[key].date, key)) if studies[key].series]


def _objects(path: Path, found: Dataset) -> Iterable[Tags]:
    for folder, folders, files in os.walk(path, onerror=lambda error: found.problems.append(io_error(error, path))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if files:
            try:
                tags = objects_in(Path(folder))
                whole = [one for one in tags if not one.damage]
                yield from whole or tags  # beside slices, the reader of their series refuses what is none
            except DataError as error:
                found.problems.append(error)


def _damaged(tags: Tags) -> DataError:
    return DataError("a DICOM file cannot be understood", where=readable_name(tags.path), why=tags.damage,
                     fix="copy or export it again, or remove it", code="E_DICOM")  # fmt: skip


def _name(studies: Sequence[_Study], root: Path, found: Dataset) -> None:
    """Name each study by as many folders as tell them apart; number them where folders do not."""
    parts = []
    for study in studies:
        folders = [tags.path.parent for series in study.series.values() for tags in series.slices]
        within = (
            Path(os.path.commonpath(folders)).relative_to(root.absolute() if folders[0].is_absolute() else root).parts
        )
        parts.append(tuple(part for part in within if not names_a_role(part)))
    for depth in range(1, 1 + max((len(p) for p in parts), default=0)):
        names = [
            "_".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", volume_stem(Path(part))) for part in p[:depth]) for p in parts
        ]
        if len({name.casefold() for name in names}) == len(names) and all(names):
            break
    else:
        names = [root.resolve().name] if len(studies) == 1 else [f"study_{i:03d}" for i in range(1, 1 + len(studies))]
        if len(studies) > 1:
            found.notes.append("studies share folders: their cases are numbered, in the order of their dates")
    for study, name in zip(studies, names, strict=True):
        study.name = name.strip("-._") or "study"


# ---- cases


def _case(study: _Study, channels: Sequence[str] | None, found: Dataset) -> Case | None:
    try:
        _require_whole(study)
        for series in study.series.values():
            series.channel = _channel(series)
        label = None if channels is not None else _label(study)
        used = _for_network(study, channels) if channels is not None else _on_one_grid(study, label, found)
        images = {channel: series.path for channel, series in _by_channel(used, study).items()}
    except DataError as error:
        error.case = readable_name(Path(study.name))
        found.problems.append(error)
        return None
    group = f"patient-{hashlib.sha256(study.patient.encode()).hexdigest()[:8]}" if study.patient else study.name
    return Case(study.name, {c: (path, None) for c, path in images.items()}, label.path if label else None, group=group)


def _require_whole(study: _Study) -> None:
    """Raise where a series goes on in another folder; copies of it may lie there."""
    folders: dict[str, list[_Series]] = defaultdict(list)
    for series in study.series.values():
        folders[series.uid].append(series)
    for parts in folders.values():
        instances = [{tags.instance for tags in part.slices} for part in parts]
        if any(one != instances[0] for one in instances):
            raise DataError(
                "the slices of one series lie in several folders", where=f"case {study.name}: {parts[0].named()}",
                why="each part would be taken for a volume", fix="put them into one folder", code="E_DICOM",
            )  # fmt: skip


def _channel(series: _Series) -> str:
    """The channel that the name of the series' own folder says, or else its header."""
    word = case_and_word(volume_stem(series.folder), "", SEQUENCES)[1] if series.path == series.folder else ""
    tags = series.slices[0]
    return canonical_channel(word) if word else channel_of_series(
        tags.modality, tags.description, tags.protocol, contrast=tags.contrast, inverted=tags.inverted, echo=tags.echo,
        repetition=tags.repetition, inversion=tags.inversion,
    )  # fmt: skip


def _label(study: _Study) -> Tags | None:
    if len(study.labels) > 1:
        raise DataError(
            f"{counted(len(study.labels), 'segmentation')} of one study", where=f"case {study.name}: "
            + ", ".join(readable_name(tags.path) for tags in study.labels[:4]),
            why="which of them is meant cannot be known", fix="keep one, or merge their segments into one SEG", code="E_LABEL",
        )  # fmt: skip
    return study.labels[0] if study.labels else None


def _without_images(label: Tags, why: str) -> DataError:
    return DataError(
        "the images that the segmentation belongs to are not there", where=readable_name(label.path), why=why,
        fix="add the series, or remove the segmentation", code="E_DICOM",
    )  # fmt: skip


def _on_one_grid(study: _Study, label: Tags | None, found: Dataset) -> list[_Series]:
    """The series on the grid that the segmentation was drawn on; without one, those on the grid that most of them share."""
    every = list(study.series.values())
    if label is not None:
        uid, instances = series_of_labels(label.path)
        drawn = [s for s in every if s.uid == uid or any(tags.instance in instances for tags in s.slices)]
        if not drawn:
            raise _without_images(label, f"the study has {', '.join(s.named() for s in every[:6])}")
        usual = drawn[0]
    else:
        usual = max(every, key=lambda series: sum(series.lies_on(other) for other in every))
    used = [series for series in every if series.lies_on(usual)]
    left = [series.named() for series in every if series not in used]
    if left:
        found.notes.append(f"case {study.name}: on other slices, and not used: {', '.join(left[:6])}")
    return used


def _for_network(study: _Study, channels: Sequence[str]) -> list[_Series]:
    """The series of a network's channels, by name; a single channel may also be named by modality, or be the only series."""
    every = list(study.series.values())
    used = [series for series in every if series.channel in channels]
    if not used and len(channels) == 1:
        kind = [s for s in every if MODALITY.get(s.slices[0].modality) in (channels[0], {"mr": "mri"}.get(channels[0]))]
        other = channels[0] in SEQUENCES and all(series.channel in SEQUENCES for series in every)
        used = kind if kind else every if not other else []
        if len(used) > 1:
            raise _several(study, channels[0], used)
        for series in used:
            series.channel = channels[0]
    if not used:
        raise DataError(
            f"the study has no {' or '.join(channels)}", where=f"case {study.name}",
            why=f"its series are {', '.join(f'{s.named()}: {s.channel}' for s in every[:6])}",
            fix="name the folder of the series with --channel NAME=FOLDER", code="E_CHANNEL",
        )  # fmt: skip
    return used


def _by_channel(used: Sequence[_Series], study: _Study) -> dict[str, _Series]:
    by_name: dict[str, list[_Series]] = defaultdict(list)
    for series in used:
        by_name[series.channel].append(series)
    for channel, several in by_name.items():
        if len(several) > 1:
            raise _several(study, channel, several)
    return {channel: several[0] for channel, several in by_name.items()}


def _several(study: _Study, channel: str, several: Sequence[_Series]) -> DataError:
    return DataError(
        f"{len(several)} series could be channel {channel}", where=f"case {study.name}",
        why=f"they are {', '.join(series.named() for series in several[:6])}; which is meant cannot be known",
        fix="keep one of them, or write a case list that names the folder of each channel", code="E_CHANNEL",
    )  # fmt: skip
