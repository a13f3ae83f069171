"""BIDS: a folder for each subject, with label maps under ``derivatives``, their names in ``dseg.tsv``, and ``participants.tsv``.

Files are found as :mod:`cmt_med.data.sources.by_channel` finds them; what is read here is what the data set says of itself.
(BIDS 1.9, "Imaging derivatives: segmentations" and "Participants file".)
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted, strict_json
from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.sources import by_channel
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.sources.split_folders import SPLITS, TEST
from cmt_med.data.sources.walk import MAX_DEPTH, walk
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.formats import is_series
from cmt_med.data.volumes.streams import readable_name

DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"
_MOST_BYTES = 20_000_000
_CLASS_COLUMNS = ("diagnosis", "dx", "class", "group")
_OF_A_LESION = re.compile(r"(?:^|_)(?:label|desc)-(?!brain)[A-Za-z0-9]+_(?:.*_)?mask\Z")


def recognises(path: Path) -> bool:
    """Tell whether a folder has BIDS' description."""
    return (path / DESCRIPTION).is_file()


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """Find the cases; with what they are called, if no channels are asked for.

    Raises:
        DataError: E_MANIFEST for tables that contradict each other or cannot be read.
    """
    found = by_channel.read(path, channels)
    if channels is not None:
        return found
    found.kind = "BIDS data set"
    found.title = _name(path) or found.title
    _lesion_masks(found)
    _test_subjects(path, found)
    names = _label_names(path)
    if names and any(case.label for case in found.cases):
        found.labels, found.named_by = names, "dseg.tsv"
    if not any(case.label for case in found.cases):
        _classes(path, found)
    return found


def _name(path: Path) -> str:
    try:
        name = strict_json((path / DESCRIPTION).read_text(encoding="utf-8")).get("Name")
    except (OSError, ValueError, AttributeError):
        return ""  # which the data can do without
    return name if isinstance(name, str) else ""


def _lesion_masks(found: Dataset) -> None:
    """Take masks of something else than the brain (``label-lesion_mask``) for label maps, where there are no others."""
    if any(case.label for case in found.cases):
        return
    taken = [case for case in found.cases if case.mask and _OF_A_LESION.search(volume_stem(case.mask))]
    if taken:
        found.cases = [replace(case, label=case.mask, mask=None) if case in taken else case for case in found.cases]
        example = taken[0].label
        found.notes.append(
            f"{counted(len(taken), 'mask')} of more than the brain taken for label maps ({example.name if example else ''})"
        )


def _rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, ValueError, csv.Error) as error:
        raise _fault(file, str(error), "write tab-separated columns in UTF-8") from error


def _label_names(path: Path) -> dict[str, int]:
    """Name -> value by all ``dseg.tsv`` of the data set, which must agree."""
    names: dict[int, tuple[str, Path]] = {0: ("background", path)}
    for file in walk(path, MAX_DEPTH, [], is_leaf=is_series):
        if not file.name.endswith("dseg.tsv"):
            continue
        for row in _rows(file):
            index, name = row.get("index", ""), row.get("name", "")
            if not re.fullmatch(r"\d{1,3}", index) or int(index) > 255 or not name:
                raise _fault(
                    file, f"a row has index {index!r} and name {name!r}", "write a number up to 255 and a name"
                )
            if int(index) == 0:
                continue
            name = name if canonical_label(name) == name else name.lower()
            other, where = names.setdefault(int(index), (name, file))
            if other != name:
                raise _fault(
                    file, f"{index} is {name!r} here and {other!r} in {readable_name(where)}", "name each number alike"
                )
    labels = {name: value for value, (name, _) in sorted(names.items())}
    if len(labels) < len(names):
        raise _fault(path, "two numbers have one name in dseg.tsv", "give each its own")
    return labels if len(labels) > 1 else {}


def _test_subjects(path: Path, found: Dataset) -> None:
    """List cases apart whose subject's ``split`` is ``test`` in ``participants.tsv``."""
    table = path / PARTICIPANTS
    rows = list(_rows(table)) if table.is_file() else []
    held = {row.get("participant_id", "") for row in rows if SPLITS.get(row.get("split", "").lower()) == TEST}
    found.test = [case for case in found.cases if case.group in held]
    found.cases = [case for case in found.cases if case.group not in held]
    if found.test:
        found.notes.append(f"{counted(len(found.test), 'case')} of test, by the column 'split' of {table.name}")


def _classes(path: Path, found: Dataset) -> None:
    """Give each case the class of its subject, by ``participants.tsv``."""
    table = path / PARTICIPANTS
    if not table.is_file():
        return
    rows = list(_rows(table))
    key = next((key for column in _CLASS_COLUMNS for row in rows[:1] for key in row if key.lower() == column), "")
    if not key:
        return
    classes = {row.get("participant_id", ""): row[key] for row in rows if row[key] != "n/a"}
    found.cases = [replace(case, class_name=classes.get(case.group, "")) for case in found.cases]
    found.notes.append(f"classes are the column {key!r} of {table.name}")


def _fault(file: Path, why: str, fix: str) -> DataError:
    return DataError(
        "a table of the data set cannot be used", where=readable_name(file), why=why, fix=fix, code="E_MANIFEST"
    )
