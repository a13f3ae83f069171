"""Preprocessed cases on disk, memory-mapped, and never stale.

An entry's key is a hash of the content of the case's files and of the transforms; a changed file or setting is another
entry. Pages are shared between processes by the operating system, so the data costs one copy in memory at most.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.data.gate import load_case, of_case
from cmt_med.data.manifest import Case
from cmt_med.data.sums import content_key
from cmt_med.data.transforms import POINTS_PER_LABEL, as_dictionary, preprocessing
from cmt_med.errors import DataError
from cmt_med.files import write_file, write_json

CACHE_VERSION = 2


@dataclass(frozen=True)
class Entry:
    """A preprocessed case; its arrays are opened as memory maps."""

    name: str
    folder: Path

    def image(self) -> NDArray[np.float32]:
        """(C, *S), read-only."""
        return np.load(self.folder / "image.npy", mmap_mode="r", allow_pickle=False)

    def label(self) -> NDArray[np.uint8]:
        """(1, *S), read-only."""
        return np.load(self.folder / "label.npy", mmap_mode="r", allow_pickle=False)

    def points(self) -> list[NDArray[np.int16]]:
        """For each label but background, voxels of it (n, 3)."""
        rows = np.load(self.folder / "points.npy", allow_pickle=False)
        return [rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])]

    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


def default_cache_folder() -> Path:
    """``$CMT_CACHE``, else ``cmt_med`` in the user's cache folder."""
    if os.environ.get("CMT_CACHE"):
        return Path(os.environ["CMT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmt_med"


def prepare(
    case: Case, *, channels: Sequence[str], labels: Mapping[str, int], settings: Mapping[str, Any], folder: Path
) -> Entry:
    """The entry of a case, made if there is none for exactly these files and settings.

    Raises:
        DataError: from the gate, naming the case.
    """
    entry = Entry(case.name, folder / _key(case, channels, labels, settings))
    if (entry.folder / "meta.json").exists():
        return entry
    loaded = load_case(case, channels, list(labels.values()), need_label=True)
    data = preprocessing(settings, with_label=True)(as_dictionary(loaded))
    image = np.ascontiguousarray(data["image"].numpy(), dtype=np.float32)
    label = np.ascontiguousarray(data["label"].numpy(), dtype=np.uint8)
    for name, array in (("image", image), ("label", label), ("points", _sample_points(label[0]))):
        write_file(entry.folder / f"{name}.npy", lambda stream, a=array: np.save(stream, a, allow_pickle=False))  # type: ignore[misc]
    # Written last: an entry without it was cut short and is made again.
    write_json(entry.folder / "meta.json", {"version": CACHE_VERSION, "shape": list(image.shape)})
    return entry


def _key(case: Case, channels: Sequence[str], labels: Mapping[str, int], settings: Mapping[str, Any]) -> str:
    files = {
        name: [_content(case.images[name][0], case), case.images[name][1]] for name in channels if name in case.images
    }
    extra = [_content(path, case) if path is not None else None for path in (case.label, case.mask)]
    described = [CACHE_VERSION, files, extra, list(channels), sorted(labels.values()), dict(settings)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _content(path: Path, case: Case) -> str:
    try:
        return content_key(path, case.sha256)
    except DataError as error:
        raise of_case(error, case) from error


def _sample_points(label: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Rows (label, i, j, k): at most ``POINTS_PER_LABEL`` voxels of each label, evenly over its scan order."""
    rows = []
    for value in np.unique(label):
        if value == 0:
            continue
        found = np.argwhere(label == value)
        chosen = found[np.linspace(0, len(found) - 1, min(len(found), POINTS_PER_LABEL)).astype(int)]
        rows.append(np.column_stack([np.full(len(chosen), value), chosen]).astype(np.int16))
    return np.concatenate(rows) if rows else np.zeros((0, 4), dtype=np.int16)
