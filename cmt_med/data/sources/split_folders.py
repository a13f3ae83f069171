"""Splits by folder: ``train/``, ``val/`` and ``test/`` with a data set of one kind in each, or within ``images``, ``labels``.

What was held out for validation is fold 0, what was trained on fold 1; cases of ``test`` are listed apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cmt_med.base.text import counted
from cmt_med.data.case import Case
from cmt_med.data.sources.dataset import Dataset

TRAIN, VALIDATION, TEST = "train", "val", "test"
SPLITS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "dev": VALIDATION,
          "test": TEST, "testing": TEST}  # fmt: skip

_FOLD = {VALIDATION: 0, TRAIN: 1}


def split_folders(path: Path) -> dict[str, Path]:
    """Split -> its folder, where all folders of a path (but hidden ones) are splits, and one of them is for training."""
    if not path.is_dir():
        return {}
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    found = {SPLITS.get(folder.name.lower(), ""): folder for folder in folders}
    return found if len(folders) > 1 and len(found) == len(folders) and "" not in found and TRAIN in found else {}


def merged(parts: Mapping[str, Dataset], path: Path) -> Dataset:
    """The data sets of several splits as one; names that occur in two splits get the split's in front."""
    first = parts[TRAIN]
    labels, codes = _one_numbering(parts)
    times = Counter(case.name.casefold() for part in parts.values() for case in (*part.cases, *part.test))
    whole = replace(first, title=path.resolve().name, cases=[], test=[], notes=[], problems=[], unmatched=[], doubtful=[],
                    duplicates=[], others=[], repeated=[], labels=labels, colours=codes, annotated={}, boxes={},
                    channels=[])  # fmt: skip
    for split, part in parts.items():
        again = {case.name: times[case.name.casefold()] > 1 for case in (*part.cases, *part.test)}
        cases = [replace(_named(c, split, again=again[c.name]), colours=codes) for c in (*part.cases, *part.test)]
        for name, annotated in part.annotated.items():
            whole.annotated[f"{split}_{name}" if again.get(name) else name] = annotated
        if split == TEST:
            whole.test += cases
        else:
            whole.cases += [replace(case, fold=_FOLD[split]) for case in cases] if VALIDATION in parts else cases
        whole.notes += [note for note in part.notes if note not in whole.notes]
        whole.boxes = dict(Counter(whole.boxes) + Counter(part.boxes))
        for name in ("problems", "unmatched", "doubtful", "duplicates", "others", "repeated"):
            getattr(whole, name).extend(getattr(part, name))
        whole.channels += [channel for channel in part.channels if channel not in whole.channels]
    listed = ", ".join(
        f"{counted(len(part.cases) + len(part.test), 'case')} of {split}" for split, part in parts.items()
    )
    whole.notes.append(f"splits by folder: {listed}")
    return whole


def _one_numbering(parts: Mapping[str, Dataset]) -> tuple[dict[str, int], dict[int | str, int]]:
    """Labels, and the values of colours and segments, of all splits.

    Each split has numbered the colours or structures that it has: those of the training cases keep their numbers, and the
    others follow.
    """
    every = [parts[TRAIN], *(part for split, part in parts.items() if split != TRAIN)]
    labels: dict[str, int] = {}
    if not any(part.colours for part in every):  # the files have the numbers themselves
        for part in every:
            labels |= {name: value for name, value in part.labels.items() if value not in labels.values()}
        return labels, {}
    codes: dict[int | str, int] = {}
    for part in every:
        name_of = {value: name for name, value in part.labels.items()}
        for name in sorted(part.labels, key=part.labels.__getitem__):
            labels.setdefault(name, len(labels))
        codes |= {code: labels[name_of[value]] for code, value in part.colours.items()}
    return labels, codes


def by_place(found: Dataset, path: Path) -> Dataset:
    """Where every image lies below a folder of a split, the same as if the splits were folders of their own."""
    if not path.is_dir() or found.listed is not None:
        return found
    place = {c.name: split_word(next(iter(c.images.values()))[0], path) if c.images else "" for c in found.cases}
    splits = {split for split in place.values() if split}
    if not found.cases or not all(place.values()) or TRAIN not in splits or len(splits) < 2:
        return found
    found.test += [case for case in found.cases if place[case.name] == TEST]
    found.cases = [
        replace(case, fold=_FOLD[place[case.name]]) if VALIDATION in splits else case
        for case in found.cases
        if place[case.name] != TEST
    ]
    counts = Counter(place.values())
    listed = ", ".join(f"{counted(count, 'case')} of {split}" for split, count in counts.items())
    found.notes.append(f"splits by folder: {listed}")
    return found


def split_word(file: Path, root: Path) -> str:
    """The split that a folder around a file names, or ""."""
    parts = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    words = {SPLITS[part.lower()] for part in parts if part.lower() in SPLITS}
    return words.pop() if len(words) == 1 else ""


def without_splits(folder: Path) -> Path:
    """The path of a folder without those of splits."""
    return Path(*(part for part in folder.parts if part.lower() not in SPLITS))


def _named(case: Case, split: str, *, again: bool) -> Case:
    if not again:
        return case
    name = f"{split}_{case.name}"
    return replace(case, name=name, group=name if case.group in ("", case.name) else case.group)
