"""Case lists: MSD ``dataset.json`` and MONAI datalist JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.base.text import RepeatedKeyError, strict_json
from cmt_med.config.schema import Region
from cmt_med.data import datalist, nnunet
from cmt_med.data.case import Case, colours_alone, segments_of
from cmt_med.data.conventions.names import canonical_channel, require_distinct
from cmt_med.data.entries import fault, read_entry
from cmt_med.data.meanings import (
    annotated_values,
    classes_of,
    colours_in,
    convention_of,
    ignore_of,
    label_values,
    regions_of,
)

MAX_MANIFEST_BYTES = 200_000_000


@dataclass(frozen=True)
class Manifest:
    """A data set: its cases, channels and labels.

    ``name`` is what the list calls it, if it does. Models carry that name, so it is never made of a file's or a folder's.
    ``labels`` maps names (canonical, background first) to values in the files, ``colours`` those of masks in colour to values
    (:class:`cmt_med.data.case.Case`). ``convention`` is the challenge's way of
    naming that the data set follows, as ``init`` found it, and ``regions`` what is segmented in it by default. ``classes`` are
    those of whole images, in the order in which they are numbered. ``ignore`` is the value of voxels that nobody has annotated
    (:class:`cmt_med.data.case.Case`); it is none of the labels. ``problems`` are those of single cases, of a list that was not
    read strictly; ``notes`` say what was read in an unusual way.
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
    ignore: int | None = None
    problems: tuple[DataError, ...] = ()
    notes: tuple[str, ...] = ()


def load_manifest(path: Path, *, strict: bool = True) -> Manifest:
    """Read a case list; relative paths are relative to its folder.

    A ``dataset.json`` of nnU-Net is understood (:mod:`cmt_med.data.nnunet`); and lists of MONAI
    (:mod:`cmt_med.data.datalist`), ``training``, ``validation`` and ``test``, of ``{"image":
    ..., "label": ...}``, where an image is one 3D file, one 4D file, a list of files in the order of ``modality`` (or
    ``channel_names``), or a mapping from channel to file; optional ``id``, ``group``, ``fold`` and ``mask`` (foreground) for
    each case; ``labels`` in either direction; ``ignore``, the value of voxels that nobody has annotated; ``colours`` of masks in
    colour, from ``"#rrggbb"`` to a label value; ``segments`` of DICOM segmentations and of masks in files of their own, from a
    name to a label value; ``class`` for each case, what it shows as a whole, and ``classes`` for the order of these, which else
    is that of their names; ``annotated`` for each case, the names of the labels that its source annotates;
    ``instances`` for each case, a label image in which every object has a number of its own; ``boxes`` for each case, a file with
    boxes around objects.

    Args:
        path: of the list, or of a folder with a ``dataset.json``.
        strict: whether a case that lacks what training needs is an error; else it is among ``problems``.

    Raises:
        DataError: E_MANIFEST, naming the entry.
    """
    path = path / "dataset.json" if path.is_dir() else path
    content = datalist.unwrapped(_read(path))
    problems: list[DataError] = []
    notes: list[str] = []
    if nnunet.describes(content, path):
        understood = nnunet.as_case_list(content, path)
        content, problems, notes = understood.content, understood.problems, understood.notes
        if problems and strict:
            raise problems[0]
    channels = _channel_names(content, path)
    listed, listed_test = datalist.entries_of(content, path)
    channels = channels or datalist.channels_of([*listed, *listed_test])
    cases, test = (tuple(read_entry(e, where, path, channels) for where, e in part) for part in (listed, listed_test))
    seen: dict[str, int] = {}
    for i, case in enumerate(cases):
        if case.name in seen:
            raise fault(
                path,
                f"case name {case.name!r} stands twice",
                f"give {listed[seen[case.name]][0]} or {listed[i][0]} an id",
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
    labels = label_values(content, path, channels)
    ignore = ignore_of(content, path, labels)
    colours = colours_in(content, path, [*labels.values(), *([] if ignore is None else [ignore])])
    cases = _with_annotated(cases, listed, path, labels)
    test = _with_annotated(test, listed_test, path, labels)
    if colours or ignore is not None:
        cases, test = (tuple(replace(case, colours=colours, ignore=ignore) for case in part) for part in (cases, test))
    return Manifest(
        path=path,
        name=str(content.get("name", "")),
        cases=cases,
        channels=channels,
        labels=labels,
        demo=content.get("demo") is True,
        test=test,
        convention=convention_of(content, path, labels),
        regions=regions_of(content, path, labels),
        colours=colours,
        classes=classes_of(content, path, cases),
        ignore=ignore,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _with_annotated(
    cases: tuple[Case, ...], entries: Sequence[tuple[str, Any]], path: Path, labels: dict[str, int]
) -> tuple[Case, ...]:
    """Cases with what their entries say of the labels that are annotated."""
    return tuple(
        replace(case, annotated=annotated_values(entry["annotated"], where, path, labels))
        if isinstance(entry, dict) and entry.get("annotated") is not None
        else case
        for case, (where, entry) in zip(cases, entries, strict=True)
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
        for key, file in (
            ("label", case.label),
            ("mask", case.mask),
            ("instances", case.instances),
            ("boxes", case.boxes),
        ):
            if file is not None:
                entry[key] = place(file)
        if case.annotated is not None:
            entry["annotated"] = [name for name, value in manifest.labels.items() if value in case.annotated]
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
        **({"ignore": manifest.ignore} if manifest.ignore is not None else {}),
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
