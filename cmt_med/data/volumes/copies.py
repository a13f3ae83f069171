"""The files that ``inspect`` writes: repaired copies of files, and copies of case lists that point to them or carry sums."""

from __future__ import annotations

import filecmp
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

from cmt_med.base.errors import ConfigError, DataError, OutputError
from cmt_med.base.files import write_file, write_json
from cmt_med.data.case import Case
from cmt_med.data.datalist import LISTS, holder
from cmt_med.data.volumes.decoder import decode, repair
from cmt_med.data.volumes.streams import CHUNK, readable_name
from cmt_med.data.volumes.sums import volume_sum


def write_repaired(cases: Sequence[Case], base: Path, output: Path) -> tuple[dict[Path, Path], dict[Path, list[str]]]:
    """Write a repaired copy of each file that needs one, at the same place under ``output`` as under ``base``.

    Returns:
        Original -> copy, and original -> what was done, a clause each.

    Raises:
        ConfigError: if a copy would replace a file that was given.
        OutputError: if one cannot be written, or something else stands there.
    """
    roles = {path: False for case in cases for path, _ in case.images.values()}
    roles |= {path: True for case in cases for path in (case.label, case.mask) if path is not None}
    originals = {path.resolve() for path in roles}
    copies: dict[Path, Path] = {}
    done: dict[Path, list[str]] = {}
    for path, label in roles.items():
        target = output / (path.relative_to(base) if path.is_relative_to(base) else path.name)
        if target.resolve() in originals or target in copies.values():
            raise ConfigError(
                "a repaired copy would replace another file", where=str(target), why="originals are never touched",
                fix="give another --output",
            )  # fmt: skip
        try:
            made = repair(path, label=label) if path.is_file() else None
            if made is None:
                continue
            _write_copy(target, made.content)
        except (DataError, MemoryError):
            continue  # it cannot be read or is too large, or more is wrong than can be repaired; the report names it
        copies[path], done[path] = target, list(made.done)
    return copies, done


def _write_copy(target: Path, content: memoryview) -> None:
    """Write a copy that can be read; one that an earlier call has written may stand there, and nothing else.

    Raises:
        DataError: if it cannot be read.
        OutputError: if it cannot be written, or something else stands there.
    """
    packed = target.name.lower().endswith(".gz")

    def fill(stream: IO[bytes]) -> None:
        into: Any = gzip.GzipFile("", "wb", 6, stream, mtime=0) if packed else stream
        for at in range(0, len(content), CHUNK):
            into.write(content[at : at + CHUNK])
        if packed:
            into.close()

    def check(temporary: Path) -> None:
        decode(temporary)
        _require_own(target, lambda: filecmp.cmp(temporary, target, shallow=False))

    write_file(target, fill, suffix=".nii.gz" if packed else ".nii", check=check)


def _require_own(target: Path, is_same: Callable[[], bool]) -> None:
    """Refuse to replace what no earlier call for the same input has written."""
    if target.is_symlink() or (target.exists() and not (target.is_file() and is_same())):
        raise OutputError(
            "something else stands where a copy would be written", where=str(target),
            why="it is not what --fix makes of this input", fix="move it away, or give another --output",
        )  # fmt: skip


def with_copies(case: Case, copies: Mapping[Path, Path]) -> Case:
    """The case with the copies in place of the originals."""
    return replace(
        case,
        images={name: (copies.get(path, path), position) for name, (path, position) in case.images.items()},
        label=copies.get(case.label, case.label) if case.label is not None else None,
        mask=copies.get(case.mask, case.mask) if case.mask is not None else None,
        sha256={path: digest for path, digest in case.sha256.items() if path not in copies},
    )


def write_list(source: Path, target: Path, copies: Mapping[Path, Path], *, sums: bool) -> None:
    """Write a copy of a case list with absolute paths, to the copies where there are some.

    With ``sums``, each case gets ``"sha256": {FILE: SUM}``, the files as they stand in the case; reading checks them.
    Without, the sums that a list has stay with the files that are not replaced.

    Raises:
        ConfigError: if the target is the list itself.
        OutputError: if it cannot be written, or, without ``sums``, something else stands there.
    """
    if target.resolve() == source.resolve():
        raise ConfigError("the copy would replace the list", where=str(target), fix="give another --output")
    content = json.loads(source.read_text(encoding="utf-8"))

    def place(file: str, *, replaced: bool = True) -> str:
        path = source.parent / file
        # A link is kept: its own name is the case's, that of its target may not be.
        return str((copies.get(path, path) if replaced else path).absolute())

    lists = holder(content)
    for part in LISTS:
        entries = lists.get(part)
        if isinstance(entries, list):
            lists[part] = [_entry(entry, place, sums=sums) for entry in entries]
    if not sums:
        _require_own(target, lambda: _json_in(target) == content)
    write_json(target, content)


def _json_in(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


class _Place(Protocol):
    def __call__(self, file: str, *, replaced: bool = True) -> str: ...


def _entry(entry: Any, place: _Place, *, sums: bool) -> dict[str, Any]:
    result = dict(entry) if isinstance(entry, dict) else {"image": entry}
    kept = result.pop("sha256", {})
    files: list[str] = []

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [moved(item) for item in value]
        files.append(place(str(value)))
        return files[-1]

    for key in ("image", "label", "mask", "instances", "boxes"):
        if result.get(key):
            result[key] = moved(result[key])
    if sums:
        kept = {file: digest for file in dict.fromkeys(files) if (digest := _sum(Path(file)))}
    else:
        kept = {place(file): digest for file, digest in kept.items() if place(file) == place(file, replaced=False)}
    return result | ({"sha256": kept} if kept else {})


def _sum(path: Path) -> str:
    try:
        return volume_sum(path)
    except DataError:
        return ""  # a file that cannot be opened has no sum; the report names it


def describe_repairs(done: Mapping[Path, Sequence[str]], copies: Mapping[Path, Path]) -> list[dict[str, Any]]:
    """Describe what was repaired, for a report."""
    return [
        {"file": readable_name(path), "copy": readable_name(copies[path]), "done": list(clauses)}
        for path, clauses in done.items()
    ]
