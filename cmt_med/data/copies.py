"""What ``inspect`` writes: repaired copies of files, and copies of case lists that point to them or carry sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt_med.data.manifest import Case
from cmt_med.data.readers.decoder import decode
from cmt_med.data.readers.streams import readable_name
from cmt_med.data.repair import repaired
from cmt_med.data.sums import volume_sum
from cmt_med.errors import ConfigError, DataError
from cmt_med.files import write_bytes, write_json


def write_repaired(cases: Sequence[Case], base: Path, output: Path) -> tuple[dict[Path, Path], dict[Path, list[str]]]:
    """Write a repaired copy of each file that needs one, at the same place under ``output`` as under ``base``.

    Returns:
        Original -> copy, and original -> what was done, a clause each.

    Raises:
        ConfigError: if a copy would replace a file that was given.
        OutputError: if one cannot be written.
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
            made = repaired(path, label=label) if path.is_file() else None
        except DataError:
            continue  # the report names what is wrong
        if made is not None and _write_if_right(target, made[0]):
            copies[path], done[path] = target, made[1]
    return copies, done


def _write_if_right(target: Path, content: bytes) -> bool:
    write_bytes(target, content)
    try:
        decode(target)
    except DataError:  # more is wrong with it than can be repaired
        target.unlink()
        return False
    return True


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

    Raises:
        ConfigError: if the target is the list itself.
        OutputError: if it cannot be written.
    """
    if target.resolve() == source.resolve():
        raise ConfigError("the copy would replace the list", where=str(target), fix="give another --output")
    content = json.loads(source.read_text(encoding="utf-8"))

    def place(file: str) -> str:
        path = source.parent / file
        return str(copies.get(path, path).absolute())  # a link's own name is the case's, that of its target may not be

    for part in ("training", "test"):
        entries = content.get(part)
        if isinstance(entries, list):
            content[part] = [_entry(entry, place, sums=sums) for entry in entries]
    write_json(target, content)


def _entry(entry: Any, place: Callable[[str], str], *, sums: bool) -> dict[str, Any]:
    result = dict(entry) if isinstance(entry, dict) else {"image": entry}
    result.pop("sha256", None)
    files: list[str] = []

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [moved(item) for item in value]
        files.append(place(str(value)))
        return files[-1]

    for key in ("image", "label", "mask"):
        if result.get(key):
            result[key] = moved(result[key])
    if sums:
        result["sha256"] = {file: _sum(Path(file)) for file in dict.fromkeys(files)}
        result["sha256"] = {file: digest for file, digest in result["sha256"].items() if digest}
    return result


def _sum(path: Path) -> str:
    try:
        return volume_sum(path)
    except DataError:
        return ""  # a file that cannot be opened has no sum; the report names it


def describe_repairs(done: Mapping[Path, Sequence[str]], copies: Mapping[Path, Path]) -> list[dict[str, Any]]:
    """What was repaired, for a report."""
    return [
        {"file": readable_name(path), "copy": readable_name(copies[path]), "done": list(clauses)}
        for path, clauses in done.items()
    ]
