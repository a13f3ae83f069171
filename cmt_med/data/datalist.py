"""MONAI's datalists: ``training``, ``validation`` and ``testing`` or ``test``, also in an object within the file.

Cases of ``validation`` are fold 0, and those of ``training`` fold 1, as with folders of splits.
(``monai.data.load_decathlon_datalist``, which reads one of the lists at a time.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError

TRAINING, VALIDATION = "training", "validation"
TESTS = ("test", "testing")
LISTS = (TRAINING, VALIDATION, *TESTS)


def holder(content: dict[str, Any]) -> dict[str, Any]:
    """The object that has the lists: the content itself, or the only one within it that has a list of cases."""
    if any(isinstance(content.get(name), list) for name in LISTS):
        return content
    inner = [value for value in content.values() if isinstance(value, dict) and isinstance(value.get(TRAINING), list)]
    return inner[0] if len(inner) == 1 else content


def unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its lists, and what an object within says beside them, at its top."""
    return content | holder(content)


def entries_of(content: Mapping[str, Any], path: Path) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The entries for training, those held out included, and for testing, each with its place for messages.

    Raises:
        DataError: E_MANIFEST, if there are none, or folds beside a list for validation.
    """
    lists = {name: content[name] for name in LISTS if isinstance(content.get(name), list)}
    if not lists or not isinstance(content.get(TRAINING, []), list):
        raise _fault(path, "the list 'training' is missing", 'add "training": [{"image": ..., "label": ...}, ...]')
    parts = {name: [(f"{name}[{i}]", entry) for i, entry in enumerate(entries)] for name, entries in lists.items()}
    training, validation = parts.get(TRAINING, []), parts.get(VALIDATION, [])
    if validation:
        folded = [where for where, entry in (*training, *validation) if isinstance(entry, dict) and "fold" in entry]
        if folded:
            raise _fault(
                path,
                f"there is a list 'validation', and {folded[0]} has a fold",
                "keep one of the two: both say what is held out",
            )
        training = [*((w, _with_fold(e, 1)) for w, e in training), *((w, _with_fold(e, 0)) for w, e in validation)]
    return training, [pair for name in TESTS for pair in parts.get(name, [])]


def channels_of(entries: list[tuple[str, Any]]) -> tuple[str, ...]:
    """Names of the channels of images that are lists of files, where nothing names them; else none."""
    first = next((entry["image"] for _, entry in entries if isinstance(entry, dict) and "image" in entry), None)
    if not isinstance(first, list) or not first:
        return ()
    return tuple(f"channel_{i}" for i in range(len(first))) if len(first) > 1 else ("image",)


def _with_fold(entry: Any, fold: int) -> Any:
    """An entry with its fold; what is none is left to who reads the list, and is refused there."""
    plain = {"image": entry} if isinstance(entry, str) else entry
    return {**plain, "fold": fold} if isinstance(plain, dict) else plain


def _fault(path: Path, what: str, fix: str) -> DataError:
    return DataError(what, where=str(path), why="no case is guessed from a list that does not add up", fix=fix,
                     code="E_MANIFEST")  # fmt: skip
