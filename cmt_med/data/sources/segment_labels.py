"""One label value for every name of a DICOM segment over all cases of a data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.conventions.series import MODALITY
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.dicom_labels import segments_of


def labelled_alike(cases: Sequence[Case], modalities: Collection[str], found: Dataset) -> list[Case]:
    """Give every name of a segment one label value over all cases, and one name to the only channel of all.

    Args:
        cases: with the files of their segmentations; those that cannot be read become problems.
        modalities: of all series, as DICOM writes them.
        found: gets labels, table of segments, notes and problems.
    """
    names: dict[str, str] = {}
    numbers: set[tuple[str, int]] = set()
    kept = []
    for case in cases:
        try:
            for segment in segments_of(case.label) if case.label is not None else ():
                names.setdefault(segment.name, canonical_label(segment.name))
                numbers.add((segment.name, segment.number))
            kept.append(case)
        except DataError as error:
            found.problems.append(error)
    if names:
        found.labels = _numbered(names, numbers)
        found.colours = {name: found.labels[label] for name, label in names.items()}
        found.named_by = "the segmentations"
    single = all(len(case.images) == 1 for case in kept) and len({c for case in kept for c in case.images}) > 1
    if single and len(modalities) == 1:
        word = MODALITY.get(next(iter(modalities)), "image")
        kept = [replace(case, images={word: next(iter(case.images.values()))}) for case in kept]
        found.notes.append(f"every study has one series, and their descriptions differ: the channel is called {word}")
    return [replace(case, colours=found.colours) for case in kept]


def _numbered(names: Mapping[str, str], numbers: Collection[tuple[str, int]]) -> dict[str, int]:
    """Label values: the segments' own numbers where these agree over all files, else by name."""
    labels = list(dict.fromkeys(names[name] for name in sorted(names)))
    own: dict[str, set[int]] = defaultdict(set)
    for name, number in numbers:
        own[names[name]].add(number)
    each = [number for found in own.values() for number in found]
    agree = len(each) == len(own) == len(set(each)) and max(each) <= 255
    values = {label: min(own[label]) if agree else i for i, label in enumerate(labels, 1)}
    return {"background": 0} | dict(sorted(values.items(), key=lambda item: item[1]))
