"""Case lists: MSD ``dataset.json`` and MONAI datalist JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cmt_med.base.errors import DataError
from cmt_med.base.text import RepeatedKeyError, strict_json
from cmt_med.config.schema import Region
from cmt_med.data import nnunet
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import CONVENTIONS
from cmt_med.data.conventions.names import (
    MEAN,
    canonical_channel,
    canonical_label,
    disagreements,
    is_brain_tumour,
    require_distinct,
)
from cmt_med.data.entries import fault, read_entry
from cmt_med.data.volumes.values import colours_alone, segments_of

MAX_MANIFEST_BYTES = 200_000_000


@dataclass(frozen=True)
class Manifest:
    """A data set: its cases, channels and labels.

    ``name`` is what the list calls it, if it does. Models carry that name, so it is never made of a file's or a folder's.
    ``labels`` maps names (canonical, background first) to values in the files, ``colours`` those of masks in colour to values
    (:class:`cmt_med.data.case.Case`). ``convention`` is the challenge's way of
    naming that the data set follows, as ``init`` found it, and ``regions`` what is segmented in it by default. ``classes`` are
    those of whole images, in the order in which they are numbered.
    """

    path: Path
    name: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[str, int]
    demo: bool = False
    test: tuple[Case, ...] = field(default=())
    convention: str = ""
    regions: tuple[Region, ...] | None = None
    colours: dict[int | str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def load_manifest(path: Path) -> Manifest:
    """Read a case list; relative paths are relative to its folder.

    A ``dataset.json`` of nnU-Net is understood (:mod:`cmt_med.data.nnunet`); and ``training`` / ``test`` lists of ``{"image":
    ..., "label": ...}``, where an image is one 3D file, one 4D file, a list of files in the order of ``modality`` (or
    ``channel_names``), or a mapping from channel to file; optional ``id``, ``group``, ``fold`` and ``mask`` (foreground) for
    each case; ``labels`` in either direction; ``colours`` of masks in colour, from ``"#rrggbb"`` to a label value;
    ``segments`` of DICOM segmentations, from a segment's name to a label value; ``class`` for each case, what it shows as a
    whole, and ``classes`` for the order of these, which else is that of their names.

    Raises:
        DataError: E_MANIFEST, naming the entry.
    """
    path = path / "dataset.json" if path.is_dir() else path
    content = _read(path)
    if nnunet.describes(content, path):
        content = nnunet.as_case_list(content, path)
    channels = _channel_names(content, path)
    listed = content.get("training")
    if not isinstance(listed, list):
        raise fault(path, "the list 'training' is missing", 'add "training": [{"image": ..., "label": ...}, ...]')
    cases = tuple(read_entry(entry, f"training[{i}]", path, channels) for i, entry in enumerate(listed))
    listed_test = content.get("test", [])
    test = tuple(
        read_entry(entry, f"test[{i}]", path, channels)
        for i, entry in enumerate(listed_test if isinstance(listed_test, list) else [])
    )
    seen: dict[str, int] = {}
    for i, case in enumerate(cases):
        if case.name in seen:
            raise fault(
                path,
                f"case name {case.name!r} stands twice",
                f"give training[{seen[case.name]}] or training[{i}] an id",
            )
        seen[case.name] = i
    require_distinct(seen, str(path))
    owners: dict[tuple[tuple[Path, int | None], ...], str] = {}
    for case in cases:
        other = owners.setdefault(tuple(case.images.values()), case.name)
        if other != case.name:
            raise fault(
                path,
                f"cases {other!r} and {case.name!r} are the same files",
                "list each image once: it could else be trained on and held out",
            )
    if not channels and cases:
        channels = tuple(cases[0].images)
    labels = _label_values(content, path, channels)
    colours = _colours(content, path, labels)
    if colours:
        cases, test = (tuple(replace(case, colours=colours) for case in part) for part in (cases, test))
    return Manifest(
        path=path,
        name=str(content.get("name", "")),
        cases=cases,
        channels=channels,
        labels=labels,
        demo=content.get("demo") is True,
        test=test,
        convention=_convention(content, path, labels),
        regions=_regions(content, path, labels),
        colours=colours,
        classes=_classes(content, path, cases),
    )


def sums_of(cases: Iterable[Case]) -> dict[Path, str]:
    """The sums that the files of several cases must have."""
    return {path: digest for case in cases for path, digest in case.sha256.items()}


def colours_of(cases: Iterable[Case]) -> dict[int | str, int]:
    """The colours of several cases' masks, which are those of one case list."""
    return {code: value for case in cases for code, value in case.colours.items()}


def manifest_content(
    manifest: Manifest, cases: Sequence[Case], folder: Path | None = None, *, test: bool = False
) -> dict[str, Any]:
    """Some cases of a manifest as the content of a case list of their own.

    Paths are absolute, but relative for files below ``folder``, where the list will lie: the folder can then be moved. Links are
    kept: their names say what a file is, those of what they lead to (in git-annex) may not. ``test`` adds the cases that are
    listed apart.
    """
    base = folder.absolute() if folder is not None else None

    def place(file: Path) -> str:
        full = Path(os.path.normpath(file.absolute()))
        return (
            full.relative_to(base).as_posix()
            if base is not None and full.is_relative_to(base)
            else str(file.absolute())
        )

    def entry_of(case: Case) -> dict[str, Any]:
        positions = {position for _, position in case.images.values()}
        files = {name: place(file) for name, (file, _) in case.images.items()}
        entry: dict[str, Any] = {"id": case.name, "group": case.group}
        entry["image"] = files if positions == {None} else next(iter(files.values()))
        for key, file in (("label", case.label), ("mask", case.mask)):
            if file is not None:
                entry[key] = place(file)
        if case.class_name:
            entry["class"] = case.class_name
        if case.fold is not None:
            entry["fold"] = case.fold
        if case.sha256:
            entry["sha256"] = {place(file): digest for file, digest in case.sha256.items()}
        return entry

    colours, segments = colours_alone(manifest.colours), segments_of(manifest.colours)
    return {
        **({"name": manifest.name} if manifest.name else {}),
        "demo": manifest.demo,
        "modality": {str(i): name for i, name in enumerate(manifest.channels)},
        "labels": {str(value): name for name, value in manifest.labels.items()},
        **({"colours": {f"#{code:06x}": v for code, v in colours.items()}} if colours else {}),
        **({"segments": segments} if segments else {}),
        **({"classes": list(manifest.classes)} if manifest.classes else {}),
        **({"convention": manifest.convention} if manifest.convention else {}),
        **({"regions": [region.model_dump() for region in manifest.regions]} if manifest.regions is not None else {}),
        "training": [entry_of(case) for case in cases],
        **({"test": [entry_of(case) for case in manifest.test]} if test and manifest.test else {}),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a FIFO would never end
            raise OSError("it is not a regular file")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise fault(path, "the case list is too large", f"at most {MAX_MANIFEST_BYTES} bytes are read")
        content = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            "the case list cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            fix="check data.manifest (--set data.manifest=FILE)",
            code="E_IO",
        ) from error
    except RepeatedKeyError as error:
        raise fault(
            path, f"the key {error.key!r} stands twice in one object", "keep one: the last would replace the others"
        ) from error
    except (ValueError, RecursionError) as error:
        raise fault(
            path, f"the case list is not JSON: {error}", "see data_manifests/README.md for the format"
        ) from error
    if not isinstance(content, dict):
        raise fault(path, "the case list is not a JSON object", "see data_manifests/README.md for the format")
    return content


def _channel_names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = content.get("modality", content.get("channel_names", {}))
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise fault(path, "'modality' is not a mapping", 'write "modality": {"0": "FLAIR", ...}')
    try:
        ordered = [names[key] for key in sorted(names, key=int)]
    except ValueError as error:
        raise fault(path, "'modality' has a key that is no number", 'write "modality": {"0": "FLAIR", ...}') from error
    channels = tuple(canonical_channel(str(name)) for name in ordered)
    if len(set(channels)) != len(channels):
        raise fault(path, f"two channels mean the same: {ordered}", "give each channel a name of its own")
    return channels


def _label_values(content: dict[str, Any], path: Path, channels: Sequence[str]) -> dict[str, int]:
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


def _colours(content: dict[str, Any], path: Path, labels: dict[str, int]) -> dict[int | str, int]:
    """Colour or name of a DICOM segment -> label value; of nothing but colours, black is the background."""
    listed = content.get("colours", {})
    form = 'write "colours": {"#ff0000": 1}, with values that \'labels\' names'
    if not isinstance(listed, dict):
        raise fault(path, "'colours' is not a mapping", form)
    colours: dict[int | str, int] = {}
    for colour, value in listed.items():
        if not re.fullmatch("#[0-9a-fA-F]{6}", str(colour)) or value not in labels.values() or isinstance(value, bool):
            raise fault(path, f"colour {colour!r} stands for {value!r}", form)
        colours[int(str(colour)[1:], 16)] = int(value)
    segments = content.get("segments", {})
    known = {0, *labels.values()}
    if not isinstance(segments, dict) or any(v not in known or isinstance(v, bool) for v in segments.values()):
        raise fault(
            path,
            f"'segments' is {segments!r}",
            'write "segments": {"Liver": 1}, with values that \'labels\' names, or 0',
        )
    if colours:
        colours = {0: 0, **colours}
    return {**colours, **{str(name): int(value) for name, value in segments.items()}}


def _classes(content: dict[str, Any], path: Path, cases: Sequence[Case]) -> tuple[str, ...]:
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


def _convention(content: dict[str, Any], path: Path, labels: dict[str, int]) -> str:
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


def _regions(content: dict[str, Any], path: Path, labels: Mapping[str, int]) -> tuple[Region, ...] | None:
    """The regions, whose labels may be written as ``labels`` has them in the file."""
    if content.get("regions") is None:
        return None

    def known(name: str) -> str:
        return next((n for n in (name, canonical_label(name), name.lower()) if n in labels), name)

    try:
        regions = [Region.model_validate(region) for region in content["regions"]]
        return tuple(Region(name=r.name, labels=[*map(known, r.labels)], write=known(r.write)) for r in regions)
    except (TypeError, ValidationError) as error:
        form = '"regions": [{"name": "WT", "labels": ["NCR", "ED", "ET"], "write": "ED"}]'
        raise fault(path, "'regions' is not a list of regions", f"write {form}") from error
