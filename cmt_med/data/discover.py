"""Cases from what a user points at: a file, a folder, or a case list. Channels are matched by name, never by position."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmt_med.data.manifest import CASE_NAME, Case, load_manifest
from cmt_med.data.names import LABEL_WORDS, MASK_WORDS, SEQUENCES, canonical_channel
from cmt_med.data.readers.formats import is_series, looks_like_volume, volume_stem
from cmt_med.data.readers.streams import readable_name
from cmt_med.errors import ConfigError, DataError

MAX_DEPTH = 5
_NOT_IMAGES = {*LABEL_WORDS, *MASK_WORDS, "prob"}


def find_cases(path: Path, channels: Sequence[str]) -> list[Case]:
    """The cases under ``path``.

    Args:
        path: a ``.json`` case list (all of its cases), or the folder of a ``dataset.json``; a volume, which is a file or a
            folder of DICOM slices (for networks with one channel); a folder of volumes; a folder of one case, or of case
            folders at any depth, with volumes named by channel (``NAME_t1ce.nii.gz``).
        channels: what the network needs, by canonical name.

    Raises:
        DataError: E_IO if nothing is there, E_CHANNEL if files cannot be matched by name, E_MANIFEST for a bad list or
            two cases of one name.
    """
    if path.is_dir() and (path / "dataset.json").is_file():
        path = path / "dataset.json"
    if path.suffix.lower() == ".json":
        manifest = load_manifest(path)
        cases = [*manifest.cases, *manifest.test]
    elif path.is_file() or is_series(path):
        cases = _cases_of_files([path], channels)
        if not cases:
            raise _unmatched(path, channels)
    elif path.is_dir():
        cases = [case for volumes in _volumes(path, MAX_DEPTH) for case in _cases_of_files(volumes, channels)]
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


def label_maps_in(folder: Path) -> dict[str, Path]:
    """Case name -> label map for what lies directly in a folder, as ``infer`` writes it; probabilities are left out.

    Raises:
        DataError: E_IO if it is no folder, E_MANIFEST if two files differ in their endings alone.
    """
    if not folder.is_dir():
        raise DataError("not a folder", where=readable_name(folder), fix="give a folder of label maps", code="E_IO")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = volume_stem(path)
        if path.name.startswith(".") or not looks_like_volume(path) or path.is_dir() or name.endswith("_prob"):
            continue
        if name in found:
            raise DataError(
                f"two label maps are of case {name!r}", where=f"{readable_name(found[name])}, {path.name}",
                why="which of them is meant cannot be known", fix="keep one", code="E_MANIFEST",
            )  # fmt: skip
        found[name] = path
    return found


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
    one = next(iter(files.values()))
    first = one.name if one.is_dir() else volume_stem(one)
    prefix, channel = _split_channel(first)
    return Case(prefix if channel in channels and prefix else first, {n: (p, None) for n, p in images.items()})


def _volumes(folder: Path, depth: int) -> Iterator[list[Path]]:
    """The volumes that lie directly in a folder, and those of each folder below it."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    series = {path for path in paths if is_series(path)}
    yield [path for path in paths if path in series or (looks_like_volume(path) and not path.is_dir())]
    for path in paths:
        if depth and path.is_dir() and path not in series:
            yield from _volumes(path, depth - 1)


def _cases_of_files(files: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    grouped: dict[str, dict[str, tuple[Path, int | None]]] = {}
    for file in files:
        stem = file.name if file.is_dir() else volume_stem(file)
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
                where=readable_name(file),
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
    return [Case(name, images) for name, images in grouped.items()]


def _unmatched(path: Path, channels: Sequence[str]) -> DataError:
    return DataError(
        "the file cannot be matched to the network's channels",
        where=readable_name(path),
        why=f"the network needs {', '.join(channels)}, and the file's name says something else",
        fix="use --channel NAME=FILE for each, or a case list that names the channels of a 4D file",
        code="E_CHANNEL",
    )


def _split_channel(stem: str) -> tuple[str, str]:
    """("BraTS2021_00000", "t1ce") from ``BraTS2021_00000_t1ce``; a leading channel (``Flair_x``) has no prefix."""
    match = re.match(r"^(?:(.*)[_-])?([^_-]+)$", stem)
    if match is None:
        return stem, ""
    prefix, last = match.group(1) or "", canonical_channel(match.group(2))
    first = canonical_channel(re.split(r"[_-]", stem)[0])
    return ("", first) if last not in SEQUENCES and first in SEQUENCES else (prefix, last)
