"""The entries of a case list: one case each, with its files."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.data.volumes.endings import volume_stem

CASE_KEYS = ("image", "label", "id", "group", "fold", "mask", "sha256", "class", "annotated", "instances", "boxes")
"""Keys that are read of a case; others are left alone, unless they look like a slip of the pen."""


def read_entry(entry: Any, where: str, path: Path, channels: tuple[str, ...]) -> Case:
    """Make a case of an entry.

    Args:
        entry: as parsed from JSON.
        where: in the list, for messages.
        path: of the list, whose folder relative files are relative to.
        channels: that the list names, in the order of an image's files.

    Raises:
        DataError: E_MANIFEST.
    """
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict) or "image" not in entry:
        raise fault(path, f"{where} has no image", 'write {"image": ..., "label": ...}')
    for key in entry:
        near = difflib.get_close_matches(str(key), CASE_KEYS, 1, cutoff=0.7)
        if key not in CASE_KEYS and near:
            raise fault(path, f"{where} has the key {key!r}", f"did you mean {near[0]!r}?")
    image = entry["image"]
    files: dict[str, tuple[Path, int | None]]
    if isinstance(image, dict):
        files = {canonical_channel(str(name)): (listed_file(file, where, path), None) for name, file in image.items()}
        if len(files) != len(image):
            raise fault(path, f"{where} names one channel twice", "give each channel one file")
    elif isinstance(image, list):
        if len(image) != len(channels):
            raise fault(
                path, f"{where} has {len(image)} files, 'modality' names {len(channels)}", "name every file's channel"
            )
        files = {name: (listed_file(file, where, path), None) for name, file in zip(channels, image, strict=True)}
    else:
        file = listed_file(image, where, path)
        names = channels or ("image",)
        files = {name: (file, i if len(names) > 1 else None) for i, name in enumerate(names)}
    first = next(iter(files.values()))[0]
    name = str(entry.get("id", volume_stem(first)))
    if not CASE_NAME.match(name):
        raise fault(path, f"{where} has the case name {name!r}", "use letters, digits, . _ + - (at most 200)")
    label, mask, instances, boxes = (
        listed_file(_only(entry[key]), where, path) if entry.get(key) else None
        for key in ("label", "mask", "instances", "boxes")
    )
    sums = _sums(entry.get("sha256", {}), where, path)
    strange = [
        file for file in sums if file not in (*(image for image, _ in files.values()), label, mask, instances, boxes)
    ]
    if strange:
        raise fault(
            path, f"{where} has a sum for {strange[0].name!r}, which is none of its files",
            "write the file as in image, label, mask, instances or boxes, or make the sums with inspect --hash",
        )  # fmt: skip
    class_name = entry.get("class", "")
    if not isinstance(class_name, str | int) or isinstance(class_name, bool):
        raise fault(path, f"{where} has the class {class_name!r}", "write a name")
    fold = entry.get("fold")
    if fold is not None and not (isinstance(fold, int) and fold >= 0):
        raise fault(path, f"{where} has fold {fold!r}", "use whole numbers from 0 on")
    return Case(
        name=name,
        images=files,
        label=label,
        mask=mask,
        group=str(entry.get("group", name)),
        fold=fold,
        sha256=sums,
        class_name=str(class_name),
        instances=instances,
        boxes=boxes,
    )


def listed_file(value: Any, where: str, path: Path) -> Path:
    """A file that a list names, relative to the list's folder.

    Raises:
        DataError: E_MANIFEST, if it is no path, or a relative one that leads out of the folder.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise fault(path, f"{where} has {value!r} where a file is expected", "write the path as text")
    if not Path(value).is_absolute() and Path(os.path.normpath(value)).parts[:1] == ("..",):
        # A list that was sent by somebody must not reach files beside the folder that it was put into.
        raise fault(
            path, f"{where} leads out of the list's folder: {value!r}", "write an absolute path, or move the list"
        )
    return path.parent / value


def _only(value: Any) -> Any:
    """The file of a list with one, as MONAI may have it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _sums(value: Any, where: str, path: Path) -> dict[Path, str]:
    if not isinstance(value, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(digest)) for digest in value.values()):
        raise fault(
            path, f"{where} has a wrong 'sha256'", 'write {"FILE": "64 hexadecimal digits"}, or use inspect --hash'
        )
    return {listed_file(file, where, path): str(digest) for file, digest in value.items()}


def fault(path: Path, what: str, fix: str) -> DataError:
    """Make the error for a case list that cannot be used."""
    return DataError(what, where=str(path), why="no case is guessed from a list that does not add up", fix=fix,
                     code="E_MANIFEST")  # fmt: skip
