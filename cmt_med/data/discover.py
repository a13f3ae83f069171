"""Cases from what a user points at: a file, a folder, or a case list. Channels are matched by name, never by position."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmt_med.data.manifest import CASE_NAME, Case, load_manifest
from cmt_med.data.names import canonical_channel
from cmt_med.errors import ConfigError, DataError

_ENDING = re.compile(r"\.nii(\.gz)?$", re.I)
SEQUENCES = {"t1", "t1ce", "t2", "flair"}
_NOT_IMAGES = {"seg", "label", "labels", "mask", "brainmask", "gtv", "prob"}


def find_cases(path: Path, channels: Sequence[str]) -> list[Case]:
    """The cases under ``path``.

    Args:
        path: a ``.json`` case list (all of its cases); a NIfTI file (for networks with one channel); a folder of such
            files; a folder of one case, or of case folders, with files named by channel (``NAME_t1ce.nii.gz``).
        channels: what the network needs, by canonical name.

    Raises:
        DataError: E_IO if nothing is there, E_CHANNEL if files cannot be matched by name, E_MANIFEST for a bad list or
            two cases of one name.
    """
    if path.suffix.lower() == ".json":
        manifest = load_manifest(path)
        cases = [*manifest.cases, *manifest.test]
    elif path.is_file():
        cases = _cases_of_files([path], channels)
    elif path.is_dir():
        cases = _cases_of_files(_volumes(path), channels)
        for folder in sorted(p for p in path.iterdir() if p.is_dir()):
            cases += _cases_of_files(_volumes(folder), channels)
    else:
        raise DataError(
            "the input does not exist", where=str(path), why="neither a file nor a folder", fix="check --input",
            code="E_IO",
        )  # fmt: skip
    if not cases:
        raise DataError(
            "no cases found",
            where=str(path),
            why=f"the network needs {', '.join(channels)}",
            fix="name files by channel (CASE_t1ce.nii.gz), use --channel NAME=FILE, or give a case list",
            code="E_CHANNEL" if path.exists() else "E_IO",
        )
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            "two cases have the same name", where=", ".join(twice[:5]),
            why="one result would overwrite the other", fix="rename one, or list them with ids", code="E_MANIFEST",
        )  # fmt: skip
    return cases


def case_of_channels(files: Mapping[str, Path], channels: Sequence[str]) -> Case:
    """One case from ``--channel NAME=FILE`` items.

    Raises:
        ConfigError: for a channel that the network does not have.
    """
    images = {canonical_channel(name): path for name, path in files.items()}
    if len(images) != len(files):
        raise ConfigError(
            "two names mean the same channel", where=f"--channel {', '.join(files)}",
            why=f"they stand for {', '.join(images)}", fix="give each channel once",
        )  # fmt: skip
    unknown = [name for name in images if name not in channels]
    if unknown:
        raise ConfigError(
            f"the network has no channel {', '.join(unknown)}",
            where="--channel",
            fix=f"its channels are {', '.join(channels)}",
        )
    first = _ENDING.sub("", next(iter(files.values())).name)
    prefix, channel = _split_channel(first)
    return Case(prefix if channel in channels and prefix else first, {n: (p, None) for n, p in images.items()})


def _volumes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _ENDING.search(p.name) and not p.name.startswith("."))


def _cases_of_files(files: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    grouped: dict[str, dict[str, tuple[Path, int | None]]] = {}
    for file in files:
        stem = _ENDING.sub("", file.name)
        if re.split(r"[_-]", stem)[-1].lower() in _NOT_IMAGES:
            continue
        prefix, channel = _split_channel(stem)
        if channel not in channels:
            if len(channels) > 1 or channel in SEQUENCES:  # another sequence is never taken for the network's
                continue
            prefix, channel = stem, channels[0]
        name = prefix or file.parent.name
        if not CASE_NAME.match(name):
            raise DataError(
                f"{name!r} cannot be a case name",
                where=str(file),
                fix="use letters, digits, . _ + -",
                code="E_MANIFEST",
            )
        if channel in grouped.setdefault(name, {}):
            raise DataError(
                f"two files are channel {channel} of case {name}",
                where=f"{file}, {grouped[name][channel][0]}",
                fix="keep one",
                code="E_CHANNEL",
            )
        grouped[name][channel] = (file, None)
    if len(files) == 1 and not grouped:
        raise DataError(
            "the file cannot be matched to the network's channels",
            where=str(files[0]),
            why=f"the network needs {', '.join(channels)}, and the file's name says something else",
            fix="use --channel NAME=FILE for each, or a case list that names the channels of a 4D file",
            code="E_CHANNEL",
        )
    return [Case(name, images) for name, images in grouped.items()]


def _split_channel(stem: str) -> tuple[str, str]:
    """("BraTS2021_00000", "t1ce") from ``BraTS2021_00000_t1ce``; a leading channel (``Flair_x``) has no prefix."""
    match = re.match(r"^(?:(.*)[_-])?([^_-]+)$", stem)
    if match is None:
        return stem, ""
    prefix, last = match.group(1) or "", canonical_channel(match.group(2))
    first = canonical_channel(re.split(r"[_-]", stem)[0])
    return ("", first) if last not in SEQUENCES and first in SEQUENCES else (prefix, last)
