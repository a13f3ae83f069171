"""Case lists in JSON: a decathlon's or MONAI's ``dataset.json``, or what ``init`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources.dataset import Dataset


def recognises(path: Path) -> bool:
    """Tell whether a path is a ``.json`` file, or a folder with a ``dataset.json``."""
    return path.suffix.lower() == ".json" or (path / "dataset.json").is_file()


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """The cases of a list, which names its channels itself.

    Raises:
        DataError: E_IO, or E_MANIFEST for a faulty list.
    """
    path = path / "dataset.json" if path.is_dir() else path
    manifest = load_manifest(path)
    return Dataset(
        "case list", manifest.name or path.stem, name=manifest.name, cases=list(manifest.cases), test=list(manifest.test),
        channels=list(manifest.channels), labels=dict(manifest.labels), colours=manifest.colours,
        convention=manifest.convention, demo=manifest.demo, listed=path,
    )  # fmt: skip
