"""The meaning of the values of a case list: labels, colours, classes, regions, and voxels that nobody has annotated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cmt_med.config.schema import Region
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import CONVENTIONS
from cmt_med.data.conventions.names import MEAN, canonical_label, disagreements, is_brain_tumour
from cmt_med.data.entries import fault
from cmt_med.data.nnunet import IGNORE


def label_values(content: dict[str, Any], path: Path, channels: Sequence[str]) -> dict[str, int]:
    """Label name -> value; tumour parts of the brain get their usual names, other labels their own in lower case."""
    labels = content.get("labels", {})
    if not isinstance(labels, dict):
        raise fault(path, "'labels' is not a mapping", 'write "labels": {"0": "background", "1": "tumour"}')
    pairs = [(item, key) if str(key).lstrip("-").isdigit() else (key, item) for key, item in labels.items()]
    foreground = [str(name) for name, value in pairs if str(value) != "0"]
    tumour = bool(content.get("convention")) or is_brain_tumour(foreground, channels)
    values: dict[str, int] = {}
    for name, value in pairs:
        if not (re.fullmatch("[0-9]{1,9}", str(value)) and int(value) <= 255):
            raise fault(
                path, f"label {name!r} has the value {value!r}", "use integers from 0 to 255; renumber the files"
            )
        usual = canonical_label(str(name))
        canonical = usual if tumour or name == usual or usual == "background" else str(name).lower()
        if canonical == MEAN:
            raise fault(path, f"no label can be called {MEAN!r}, as the average in reports is", "rename it")
        if canonical in values or int(value) in values.values():
            raise fault(path, f"label {name!r} = {value} repeats a name or a value", "name each value once")
        values[canonical] = int(value)
    if values and 0 not in values.values():
        raise fault(path, "no label has the value 0", 'add "0": "background"')
    return dict(sorted(values.items(), key=lambda item: item[1]))


def ignore_of(content: dict[str, Any], path: Path, labels: dict[str, int]) -> int | None:
    """Return the value of voxels that nobody has annotated; None where the list names none."""
    if IGNORE in labels:
        raise fault(
            path,
            f"a label is called {IGNORE!r}",
            f"write \"{IGNORE}\": {labels[IGNORE]} beside 'labels', and not among them",
        )
    value = content.get(IGNORE)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 255 or value in labels.values():
        raise fault(
            path,
            f"{IGNORE!r} is {value!r}",
            "write the value of voxels that nobody has annotated: 1 to 255, and no label's",
        )
    return value


def annotated_values(names: Any, where: str, path: Path, labels: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the values of the labels that a case's source annotates; None for all.

    Args:
        names: of these labels; None where nothing is said.
        where: whose they are, for messages.
        path: of the list.
        labels: name -> value.

    Raises:
        DataError: E_MANIFEST, for names of no label.
    """
    if names is None:
        return None
    form = f"write a list of names among {', '.join(labels)}, or leave it out where all are annotated"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fault(path, f"{where} has 'annotated': {names!r}", form)
    listed = [_as_listed(name, labels) for name in names]
    strange = [name for name in listed if name not in labels]
    if strange:
        raise fault(path, f"{where} has {strange[0]!r} among 'annotated', which is no label", form)
    values = tuple(sorted({labels[name] for name in listed} - {0}))
    if not values:
        raise fault(path, f"{where} annotates no label", form)
    return values


def _as_listed(name: str, labels: Mapping[str, int]) -> str:
    """The label that a name means, as ``labels`` call it; the name itself where they do not know it."""
    return next((n for n in (name, canonical_label(name), name.lower()) if n in labels), name)


def colours_in(content: dict[str, Any], path: Path, values: Sequence[int]) -> dict[int | str, int]:
    """Colour, or name of a segment or a mask, -> label value; of nothing but colours, black is the background."""
    listed = content.get("colours", {})
    form = 'write "colours": {"#ff0000": 1}, with values that \'labels\' names'
    if not isinstance(listed, dict):
        raise fault(path, "'colours' is not a mapping", form)
    colours: dict[int | str, int] = {}
    for colour, value in listed.items():
        if not re.fullmatch("#[0-9a-fA-F]{6}", str(colour)) or value not in values or isinstance(value, bool):
            raise fault(path, f"colour {colour!r} stands for {value!r}", form)
        colours[int(str(colour)[1:], 16)] = int(value)
    segments = content.get("segments", {})
    if not isinstance(segments, dict) or any(v not in (0, *values) or isinstance(v, bool) for v in segments.values()):
        form = 'write "segments": {"Liver": 1}, with values that \'labels\' names, or 0'
        raise fault(path, f"'segments' is {segments!r}", form)
    if colours:
        colours = {0: 0, **colours}
    return {**colours, **{str(name): int(value) for name, value in segments.items()}}


def classes_of(content: dict[str, Any], path: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of the classes of whole images, as listed, else sorted."""
    found = {case.class_name for case in cases if case.class_name}
    listed = content.get("classes")
    if listed is None:
        return tuple(sorted(found))
    if not isinstance(listed, list) or not all(isinstance(name, str) and name for name in listed):
        raise fault(path, "'classes' is not a list of names", 'write "classes": ["benign", "malignant"]')
    if len(set(listed)) < len(listed) or found - set(listed):
        strange = sorted(found - set(listed))
        what = f"the class {strange[0]!r} is not among 'classes'" if strange else "'classes' names one twice"
        raise fault(path, what, f"list each class once; cases have {', '.join(sorted(found))}")
    return tuple(listed)


def convention_of(content: dict[str, Any], path: Path, labels: dict[str, int]) -> str:
    word: Any = content.get("convention") or ""
    if word and (not isinstance(word, str) or word not in CONVENTIONS):
        raise fault(path, f"there is no convention {word!r}", f"use one of {', '.join(CONVENTIONS)}, or leave it out")
    numbers = CONVENTIONS[word].labels if word else {}
    against = disagreements(labels, numbers) if word else []
    if against:
        raise fault(
            path, f"the labels are not those of its convention: {', '.join(against)}",
            f"{word} has {', '.join(f'{value} {name}' for name, value in numbers.items())}; correct one of them",
        )  # fmt: skip
    return str(word)


def regions_of(content: dict[str, Any], path: Path, labels: Mapping[str, int]) -> tuple[Region, ...] | None:
    """The regions, whose labels may be written as ``labels`` has them in the file."""
    if content.get("regions") is None:
        return None

    def known(name: str) -> str:
        return _as_listed(name, labels)

    try:
        regions = [Region.model_validate(region) for region in content["regions"]]
        return tuple(Region(name=r.name, labels=[*map(known, r.labels)], write=known(r.write)) for r in regions)
    except (TypeError, ValidationError) as error:
        form = '"regions": [{"name": "WT", "labels": ["NCR", "ED", "ET"], "write": "ED"}]'
        raise fault(path, "'regions' is not a list of regions", f"write {form}") from error
