"""Data sets as downloaded, and CSV tables: their cases by channel, and the signs of their convention.

Read are BraTS 2017 to 2024 folders at any depth (``HGG/ID/ID_t1ce.nii.gz``, ``ID/ID-t1c.nii.gz``), BRATS-2013 folders whose files
start with the sequence (``ID/T1c_x.nii.gz``), lists in JSON (a decathlon's folder has one), and tables in CSV.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.conventions.names import (
    LABEL_WORDS,
    MASK_WORDS,
    SEQUENCES,
    canonical_channel,
    case_and_word,
    place_of,
)
from cmt_med.data.manifest import listed_file, load_manifest
from cmt_med.data.sources.classes import class_cases, class_folders
from cmt_med.data.sources.pictures import Pictures, are_pictures, labelled_pictures
from cmt_med.data.sources.walk import walk
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem

MAX_DEPTH = 5
MAX_CSV_BYTES = 200_000_000
_KNOWN = (*SEQUENCES, *LABEL_WORDS, *MASK_WORDS)
_COLUMNS = {
    "id": ("id", "case", "name", "subject"),
    "label": (*LABEL_WORDS, "mask_label"),
    "group": ("group", "patient"),
    "mask": MASK_WORDS,
    "fold": ("fold",),
    "class": ("class", "class_name", "category", "diagnosis"),
}


@dataclass
class Scan:
    """Cases found under a path.

    Attributes:
        title: of the data set, for messages.
        name: what the list calls it, if there is one that does.
        cases: complete ones, without patient or fold unless the list names them.
        suffixes: what file names (or the list) call the channels.
        named: label names and values that the list states.
        convention: that the list states.
        demo: whether the list says that its volumes are synthetic.
        notes: what was read in an unusual way, a line each.
        problems: cases that were left out, and why.
        colours: of label maps in colour (``Case.colours``).
        pictures: whether the images are 2D.
    """

    title: str
    name: str = ""
    cases: list[Case] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)
    named: dict[str, int] = field(default_factory=dict)
    convention: str = ""
    demo: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    colours: dict[int, int] = field(default_factory=dict)
    pictures: bool = False


@dataclass
class _Files:
    """The files of one case while a folder is read."""

    folder: Path
    images: dict[str, tuple[Path, int | None]] = field(default_factory=dict)
    labels: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def scan(path: Path) -> Scan:
    """The data set under ``path``: a folder, a ``.json`` list or a ``.csv`` table.

    Raises:
        DataError: E_IO if nothing is there, E_MANIFEST for a faulty list, E_CHANNEL if no file is recognised.
    """
    if path.is_dir() and (path / "dataset.json").is_file():
        path = path / "dataset.json"
    if path.suffix.lower() == ".json":
        return _from_list(path)
    if path.suffix.lower() == ".csv":
        return read_table(path)
    if not path.is_dir():
        raise DataError(
            "there is no data set here", where=str(path),
            why="it is not a folder" if path.exists() else "it does not exist",
            fix="give a folder of cases, a dataset.json or a CSV table", code="E_IO",
        )  # fmt: skip
    if folders := class_folders(path):
        return _of_images(path, class_cases(folders, None))
    return _of_images(path, labelled_pictures(path)) if are_pictures(path) else _from_folder(path)


def _of_images(path: Path, found: Pictures) -> Scan:
    result = Scan(path.resolve().name, cases=found.cases, channels=list(found.channels), named=found.labels)
    result.notes, result.problems, result.colours = found.notes, found.problems, found.colours
    result.pictures = all(looks_like_picture(file) for case in found.cases for file, _ in case.images.values())
    _keep_complete(result)
    return result


def _from_list(path: Path) -> Scan:
    manifest = load_manifest(path)
    result = Scan(manifest.name or path.stem, manifest.name, list(manifest.cases), list(manifest.channels))
    result.named, result.convention, result.demo = manifest.labels, manifest.convention, manifest.demo
    result.colours = manifest.colours
    result.pictures = all(looks_like_picture(file) for case in manifest.cases for file, _ in case.images.values())
    _keep_complete(result)
    return result


# ---- folders


def _from_folder(path: Path) -> Scan:
    result = Scan(path.resolve().name)
    found: dict[str, _Files] = {}
    for file in filter(looks_like_volume, walk(path, MAX_DEPTH, result.problems, is_leaf=lambda folder: False)):
        stem = volume_stem(file)
        place = place_of(file, stem)
        name, word = case_and_word(stem, place.name, _KNOWN)
        here = found.setdefault(name, _Files(place))
        if here.folder != place:
            raise DataError(
                f"two folders have a case {name!r}", where=f"{here.folder}, {place}",
                why="one would overwrite the other", fix="remove one, or list them with ids", code="E_MANIFEST",
            )  # fmt: skip
        _sort_in(here, name, word, file, result)
    for name, files in list(found.items()):
        if not files.images and not files.labels:  # a stray file: of the folder's only case, if there is one
            del found[name]
            owners = [n for n, f in found.items() if f.folder == files.folder and f.images]
            if len(owners) == 1:
                found[owners[0]].others += files.others
    if not any(files.images for files in found.values()):
        four = sorted(path.glob("imagesTr/*"))
        raise DataError(
            "no file can be matched to a channel by its name", where=str(path),
            why="4D files name their channels in dataset.json, which is missing" if four else
            f"a channel ends or starts a file's name: {', '.join(SEQUENCES)} or a synonym",
            fix="give the dataset.json, or a CSV table with a column per channel", code="E_CHANNEL",
        )  # fmt: skip
    for name, files in sorted(found.items()):
        label = _label_of(name, files, result)
        result.cases.append(Case(name, files.images, label, files.masks[0] if files.masks else None, name))
    result.channels = [c for c in SEQUENCES if any(c in case.images for case in result.cases)]
    labels = {case.label for case in result.cases}
    unread = [file for files in found.values() for file in files.others if file not in labels]
    if unread:
        count = f"{len(unread)} files are" if len(unread) > 1 else "a file is"
        result.notes.append(f"{count} not read ({unread[0].name}): no channel or label is known by such a name")
    _keep_complete(result)
    return result


def _sort_in(files: _Files, name: str, word: str, file: Path, result: Scan) -> None:
    channel = canonical_channel(word)
    if channel in SEQUENCES:
        if channel in files.images:
            raise DataError(
                f"two files are channel {channel} of case {name}", where=f"{files.images[channel][0]}, {file}",
                why="which of them is meant cannot be known", fix="keep one", code="E_CHANNEL",
            )  # fmt: skip
        files.images[channel] = (file, None)
        result.suffixes.add(word)
    elif word.lower() in LABEL_WORDS:
        files.labels.append(file)
    elif word.lower() in MASK_WORDS:
        files.masks.append(file)
    else:
        files.others.append(file)


def _label_of(name: str, files: _Files, result: Scan) -> Path | None:
    if len(files.labels) > 1:
        raise DataError(
            f"case {name} has two label maps", where=", ".join(map(str, files.labels)),
            why="which of them is meant cannot be known", fix="keep one", code="E_LABEL",
        )  # fmt: skip
    if files.labels:
        return files.labels[0]
    misnamed = [file for file in files.others if "seg" in file.name.lower()]
    if len(misnamed) == 1:  # BraTS 2020's case 355: W39_1998.09.19_Segm.nii
        result.notes.append(f"case {name}: {misnamed[0].name} is taken for its misnamed label map")
        return misnamed[0]
    return None


# ---- tables


def read_table(path: Path, channels: Sequence[str] | None = None) -> Scan:
    """The data set that a CSV table lists.

    Args:
        path: of the table; its first line names the columns.
        channels: the only columns that count as channels, each of which every case needs; None for the MR sequences that
            have a column.

    Raises:
        DataError: E_IO, or E_MANIFEST for a table that does not add up.
    """
    wanted = SEQUENCES if channels is None else channels
    try:
        if path.exists() and not path.is_file():  # a FIFO would never end
            raise OSError("it is not a regular file")
        if path.stat().st_size > MAX_CSV_BYTES:
            raise _bad_table(path, f"it is larger than {MAX_CSV_BYTES} bytes", "split it")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream)
            rows, header = list(table), list(table.fieldnames or ())
    except OSError as error:
        raise DataError(
            "the table cannot be read", where=str(path), why=error.strerror or str(error), fix="check the path",
            code="E_IO",
        ) from error  # fmt: skip
    except (UnicodeDecodeError, csv.Error) as error:
        raise _bad_table(path, str(error), "save it as CSV in UTF-8") from error
    result = Scan(path.stem)
    role = {column: key for column in header for key, words in _COLUMNS.items() if column.strip().lower() in words}
    channel = {column: canonical_channel(column.strip()) for column in header if column not in role}
    unused = [column for column, name in channel.items() if name not in wanted]
    channel = {column: name for column, name in channel.items() if name in wanted}
    meanings = [role.get(column) or channel.get(column) or f"column {column!r}" for column in header]
    twice = [name for name, count in Counter(meanings).items() if count > 1]
    if not channel or not rows or twice:
        raise _bad_table(
            path,
            f"two columns mean {twice[0]}"
            if twice
            else f"no column is a channel; columns: {', '.join(header) or 'none'}"
            if not channel
            else "it has no lines",
            f"name a column for each channel ({', '.join(wanted)}), and id, seg, patient, fold, mask as needed",
        )
    if unused:
        result.notes.append(f"columns that nothing reads: {', '.join(unused)}")
    for number, row in enumerate(rows, 2):
        result.cases.append(_row_case(path, number, row, role, channel))
    result.suffixes = {column.strip() for column in channel}
    result.channels = [c for c in wanted if channels is not None or c in channel.values()]
    _keep_complete(result)
    return result


def _row_case(path: Path, number: int, row: dict[str, str], role: dict[str, str], channel: dict[str, str]) -> Case:
    where = f"line {number}"
    cell = {key: (row[column] or "").strip() for column, key in role.items()}
    images = {name: (row[column] or "").strip() for column, name in channel.items()}
    files: dict[str, tuple[Path, int | None]] = {n: (listed_file(v, where, path), None) for n, v in images.items() if v}
    if not files and not cell.get("id"):
        raise _bad_table(path, f"{where} names no image", "fill the channels' columns, or remove the line")
    first = volume_stem(next(iter(files.values()))[0]) if files else ""
    name = cell.get("id") or case_and_word(first, path.parent.name, _KNOWN)[0]
    if not CASE_NAME.match(name):
        raise _bad_table(path, f"{where} has the case name {name!r}", "use letters, digits, . _ + - (at most 200)")
    fold = cell.get("fold", "")
    if fold and not fold.isdigit():
        raise _bad_table(path, f"{where} has fold {fold!r}", "use whole numbers from 0 on")
    return Case(
        name, files,
        listed_file(cell["label"], where, path) if cell.get("label") else None,
        listed_file(cell["mask"], where, path) if cell.get("mask") else None,
        cell.get("group") or name,
        int(fold) if fold else None,
        class_name=cell.get("class", ""),
    )  # fmt: skip


def _bad_table(path: Path, why: str, fix: str) -> DataError:
    return DataError("the table cannot be used", where=str(path), why=why, fix=fix, code="E_MANIFEST")


# ---- both


def _keep_complete(result: Scan) -> None:
    """Name and leave out cases that lack a channel which others have, or that stand twice."""
    seen: set[str] = set()
    owners: dict[tuple[tuple[Path, int | None], ...], str] = {}
    kept = []
    for case in result.cases:
        files = tuple(case.images[name] for name in sorted(case.images))
        owner = owners.get(files, case.name)
        missing = [name for name in result.channels if name not in case.images]
        if missing:
            fault = DataError(
                f"channel {', '.join(missing)} is missing", where=f"case {case.name}",
                why=f"{', '.join(result.channels)} are needed of every case",
                fix="add the file, or do without the case", code="E_CHANNEL",
            )  # fmt: skip
        elif case.name in seen:
            fault = DataError(
                "the case name stands twice", where=f"case {case.name}", why="one result would overwrite the other",
                fix="give it another id", code="E_MANIFEST",
            )  # fmt: skip
        elif owner != case.name:
            fault = DataError(
                f"these are the files of case {owner}", where=f"case {case.name}",
                why="it could else be trained on and held out", fix="list each image once", code="E_MANIFEST",
            )  # fmt: skip
        elif not CASE_NAME.match(case.name):
            fault = DataError(
                "this cannot be a case name", where=f"case {case.name!r}", why="it becomes the name of files",
                fix="use letters, digits, . _ + - (at most 200), or a table with ids", code="E_MANIFEST",
            )  # fmt: skip
        else:
            seen.add(case.name)
            owners[files] = case.name
            kept.append(case)
            continue
        result.problems.append(fault)
    result.cases = kept
