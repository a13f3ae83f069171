"""CSV tables: a line for each case, with a column for each channel, and for its label map, patient, fold or class."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.conventions.names import LABEL_WORDS, MASK_WORDS, SEQUENCES, canonical_channel, case_and_word
from cmt_med.data.entries import listed_file
from cmt_med.data.sources.dataset import Dataset, leave_out_incomplete
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem

MAX_CSV_BYTES = 200_000_000
_KNOWN = (*SEQUENCES, *LABEL_WORDS, *MASK_WORDS)
_COLUMNS = {
    "id": ("id", "case", "name", "subject"),
    "label": (*LABEL_WORDS, "mask_label"),
    "group": ("group", "patient"),
    "mask": MASK_WORDS,
    "fold": ("fold",),
    "class": ("class", "class_name", "category", "diagnosis"),
    "annotated": ("annotated",),
}


def recognises(path: Path) -> bool:
    """Tell whether a path is named like a table."""
    return path.suffix.lower() == ".csv"


def read(path: Path, channels: Sequence[str] | None = None) -> Dataset:
    """The data set that a CSV table lists.

    Args:
        path: of the table; its first line names the columns.
        channels: the only columns that count as channels; None for the MR sequences that have a column, or else for every
            column whose cells name volumes or 2D images.

    Raises:
        DataError: E_IO, or E_MANIFEST for a table that does not add up.
    """
    try:
        if path.exists() and not path.is_file():  # a FIFO would never end
            raise OSError("it is not a regular file")
        if path.stat().st_size > MAX_CSV_BYTES:
            raise _bad_table(path, f"it is larger than {MAX_CSV_BYTES} bytes", "split it")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            begin = stream.readline()
            stream.seek(0)
            # Where the comma is the decimal sign, spreadsheets put semicolons between columns.
            table = csv.DictReader(stream, delimiter=max(",;\t", key=begin.count))
            rows, header = list(table), list(table.fieldnames or ())
    except OSError as error:
        raise DataError(
            "the table cannot be read", where=str(path), why=error.strerror or str(error), fix="check the path",
            code="E_IO",
        ) from error  # fmt: skip
    except (UnicodeDecodeError, csv.Error) as error:
        raise _bad_table(path, str(error), "save it as CSV in UTF-8") from error
    result = Dataset("table", path.stem)
    role = {column: key for column in header for key, words in _COLUMNS.items() if column.strip().lower() in words}
    channel = {column: canonical_channel(column.strip()) for column in header if column not in role}
    wanted: Sequence[str] = SEQUENCES if channels is None else channels
    if channels is None and not set(channel.values()) & set(SEQUENCES):
        wanted = [name for column, name in channel.items() if _names_images(row[column] for row in rows)]
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
            f"name a column for each channel ({', '.join(wanted or SEQUENCES)}), and id, seg, class, patient, fold or mask",
        )
    if unused:
        result.notes.append(f"columns that nothing reads: {', '.join(unused)}")
    _require_files(path, rows, [column for column, key in role.items() if key == "label"])
    for number, row in enumerate(rows, 2):
        result.cases.append(_row_case(path, number, row, role, channel))
        annotated = next((row[column] or "" for column, key in role.items() if key == "annotated"), "").strip()
        if annotated:
            result.annotated[result.cases[-1].name] = _names(annotated)
    result.suffixes = {column.strip() for column in channel}
    result.channels = [c for c in wanted if channels is not None or c in channel.values()]
    if channels is not None:
        leave_out_incomplete(result, "zeros")  # which channels a case may lack is the network's matter
    return result


def _require_files(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    """Raise for a column that is called as of label maps, and whose cells are words."""
    for column in columns:
        cells = {row[column].strip() for row in rows if row[column] and row[column].strip()}
        if cells and not any(set(cell) & set("./\\") for cell in cells):
            raise _bad_table(
                path, f"column {column!r} is one of label maps, and {sorted(cells)[0]!r} is no file of one",
                "call a column of classes class",
            )  # fmt: skip


def _names_images(cells: Iterable[str | None]) -> bool:
    files = [Path(cell.strip()) for cell in cells if cell and cell.strip()]
    return bool(files) and all(looks_like_volume(file) or looks_like_picture(file) for file in files)


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


def _names(cell: str) -> list[str]:
    """Names of labels, apart by ``|`` or, where there is none, by spaces."""
    return [name.strip() for name in cell.split("|") if name.strip()] if "|" in cell else cell.split()


def _bad_table(path: Path, why: str, fix: str) -> DataError:
    return DataError("the table cannot be used", where=str(path), why=why, fix=fix, code="E_MANIFEST")
