"""What of a data set is learned: label maps or classes; and copies of images, which must not be on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.base.text import counted
from cmt_med.data.case import ANY_OBJECT
from cmt_med.data.preprocessing.survey import Survey
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.boxes import with_one_source
from cmt_med.data.volumes.instances import is_annotations

_TAUGHT = {
    "classification": "a class",
    "segmentation": "a label map",
    "instances": "numbered objects",
    "detection": "boxes",
}
"""What a case must have for a task."""


def ask_about_incomplete(found: Dataset) -> None:
    """Raise where a third of the cases or more lack a channel.

    Raises:
        DataError: E_CHANNEL, with the answers.
    """
    lacking, total = len(found.incomplete), len(found.incomplete) + len(found.cases)
    if lacking and 3 * lacking >= total:
        raise DataError(
            f"{lacking} of {counted(total, 'case')} lack a channel", where=found.title,
            why=f"of {', '.join(found.channels)}, not all are there: {', '.join(found.incomplete[:5])}",
            fix="--missing drop leaves these cases out, --missing zeros uses them with 0 for the channel; a case list can name "
            "fewer channels", code="E_CHANNEL",
        )  # fmt: skip


def require_one_foreground(seen: Survey, path: Path) -> None:
    """Raise where the foreground is 1 in some cases and 255 in others, and nothing says that these are two labels.

    Raises:
        DataError: E_LABEL.
    """
    if set(seen.values) - {0} == {1, 255} and not any({1, 255} <= values for values in seen.values_in.values()):
        raise DataError(
            f"the foreground is 1 in {counted(seen.values[1], 'case')} and 255 in {seen.values[255]}", where=str(path),
            why="if both mean the same, two labels would be learned in place of one",
            fix="rewrite one kind; if they are two labels, name them in a case list", code="E_LABEL",
        )  # fmt: skip


def leave_out_unnamed(seen: Survey, labels: Mapping[str, int], named_by: str) -> None:
    """Move cases whose label maps have values that no label has from ``cases`` to ``problems``.

    Raises:
        DataError: E_LABEL, if no case is left.
    """
    known, kept = set(labels.values()), []
    for case in seen.cases:
        strange = sorted(seen.values_in.get(case.name, frozenset()) - known)
        if not strange:
            kept.append(case)
            continue
        problem = DataError(
            f"label values {', '.join(map(str, strange[:8]))} have no name", where=f"case {case.name}",
            why=f"{named_by or 'the case list'} names {', '.join(f'{v} {name}' for name, v in list(labels.items())[:8])}",
            fix="name them, or correct the label map", code="E_LABEL",
        )  # fmt: skip
        problem.case = case.name
        seen.problems.append(problem)
    if not kept:
        raise seen.problems[0]
    seen.cases = kept
    seen.labelled = sum(case.label is not None for case in kept)


def choose(found: Dataset, seen: Survey, task: str | None, path: Path) -> None:
    """Leave of label maps and classes what the task learns.

    Raises:
        DataError: E_TASK, where both are there and no task is chosen, or what the task learns is not there.
    """
    classes = {case.class_name for case in seen.cases} - {""}
    if task == "segmentation" and any(case.instances for case in seen.cases):
        _objects_as_label(found, seen, path)
    if task is None and classes and seen.labelled:
        raise DataError(
            "there are label maps and classes", where=str(path),
            why=f"{counted(seen.labelled, 'case')} with a label map; the classes are {', '.join(sorted(classes)[:6])}",
            fix="choose what is learned: --task segmentation or --task classification", code="E_TASK",
        )  # fmt: skip
    objects = any(case.instances for case in seen.cases)
    nothing = {
        "classification": not classes,
        "segmentation": not seen.labelled,
        "instances": not objects,
        "detection": not (objects or seen.labelled or any(case.boxes for case in seen.cases)),
    }
    if task is not None and nothing[task]:
        raise DataError(
            f"there is nothing for {task} to learn", where=str(path),
            why=f"no case has {_TAUGHT[task]}",
            fix="leave --task out to see what is there", code="E_TASK",
        )  # fmt: skip
    if task == "detection":
        seen.cases = [with_one_source(replace(case, class_name="")) for case in seen.cases]
    elif objects:
        seen.cases = [replace(case, boxes=None) for case in seen.cases]
    if task == "segmentation":
        seen.cases = [replace(case, class_name="") for case in seen.cases]
    if task == "classification":
        seen.cases = [replace(case, label=None) for case in seen.cases]


def note_covered(found: Dataset, seen: Survey) -> None:
    """Note how much of the objects is lost because smaller ones lie on top of them."""
    if seen.covered:
        covered, shown = (sum(pair[i] for pair in seen.covered.values()) for i in (0, 1))
        found.notes.append(
            f"objects overlap in {counted(len(seen.covered), 'image')}: smaller ones lie on top, and "
            f"{covered / (covered + shown):.1%} of the pixels of objects there are lost"
        )


def _objects_as_label(found: Dataset, seen: Survey, path: Path) -> None:
    """Make of numbered objects one label, whatever their numbers."""
    if any(case.instances and is_annotations(case.instances) for case in seen.cases):
        raise DataError(
            "the annotations of COCO are no label maps", where=str(path), why="their objects may overlap",
            fix="leave --task out, or --task instances", code="E_TASK",
        )  # fmt: skip
    found.labels, found.named_by, found.colours = (
        {"background": 0, "object": 1},
        "the numbers of objects",
        {ANY_OBJECT: 1},
    )
    seen.cases = [
        replace(case, label=case.instances, instances=None, colours=dict(found.colours)) if case.instances else case
        for case in seen.cases
    ]
    labelled = sum(case.label is not None for case in seen.cases)
    seen.values.clear()
    seen.values.update({0: labelled, 1: labelled})
    found.notes.append("numbered objects are one label, object: --task instances tells them apart")


def keep_copies_together(found: Dataset, seen: Survey) -> None:
    """Make cases with equal images those of one patient: one could else be trained on, and the other held out."""
    cases = {case.name: case for case in seen.cases}
    groups: dict[str, str] = {}
    for names in seen.same.values():
        together = {cases[name].group or name for name in names}
        groups |= dict.fromkeys(together, min(together))
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        classes = {cases[name].class_name for name in names} - {""}
        folds = {cases[name].fold for name in names}
        found.notes.append(
            f"equal images: {listed}"
            + (f"; their classes differ: {', '.join(sorted(classes))}" if len(classes) > 1 else "")
            + ("; they lie in several folds, so that scores are optimistic" if len(folds) > 1 else "")
            + ("; they count as one patient" if len(together) > 1 and folds == {None} else "")
        )
    if groups:
        seen.cases = [
            replace(case, group=groups.get(case.group or case.name, case.group)) if case.fold is None else case
            for case in seen.cases
        ]


def require_distinct_classes(classes: list[str], path: Path) -> None:
    """Raise for classes whose names differ in capitals, spaces or underscores alone.

    Raises:
        DataError: E_LABEL, naming both.
    """
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(re.sub(r"[\s_]+", "", name).casefold(), name)
        if other != name:
            raise DataError(
                f"two classes have almost the same name: {other!r} and {name!r}", where=str(path),
                why="one is more often a slip of the pen than a class of its own", fix="write both alike, or name them apart",
                code="E_LABEL",
            )  # fmt: skip
