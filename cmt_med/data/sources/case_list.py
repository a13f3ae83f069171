"""Case lists in JSON: a decathlon's, nnU-Net's or MONAI's ``dataset.json``, or what ``init`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmt_med.data.manifest import load_manifest
from cmt_med.data.sources.dataset import Dataset

LIST = "dataset.json"
_TRAINING, _TEST = "imagesTr", "imagesTs"


def recognises(path: Path) -> bool:
    """Tell whether a path is a ``.json`` file, a folder with a ``dataset.json``, or the ``imagesTs`` of such a folder."""
    return path.suffix.lower() == ".json" or (path / LIST).is_file() or _is_part(path)


def _is_part(path: Path) -> bool:
    """Tell whether the files of a folder are those of a list beside it, which alone says what their channels are."""
    return path.name in (_TRAINING, _TEST) and path.is_dir() and (path.parent / LIST).is_file()


def read(path: Path, channels: Sequence[str] | None) -> Dataset:
    """The cases of a list, which names its channels itself; those in ``imagesTs`` alone, if that is what is pointed at.

    Raises:
        DataError: E_IO, or E_MANIFEST for a faulty list.
    """
    part = path.name if _is_part(path) else ""
    path = path.parent / LIST if part else path / LIST if path.is_dir() else path
    manifest = load_manifest(path, strict=False)
    return Dataset(
        "case list", manifest.name or path.stem, name=manifest.name, cases=list(manifest.cases) if part != _TEST else [],
        test=list(manifest.test) if part != _TRAINING else [], channels=list(manifest.channels), labels=dict(manifest.labels),
        colours=manifest.colours, regions=manifest.regions, convention=manifest.convention, demo=manifest.demo, listed=path,
        named_by="the case list", ignore=manifest.ignore, notes=list(manifest.notes),
        problems=list(manifest.problems) if channels is None and not part else [],  # a network needs no references
    )  # fmt: skip
