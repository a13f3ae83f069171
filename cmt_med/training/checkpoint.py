"""Checkpoints that survive: written atomically, with a checksum, three kept, a damaged one passed over."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from cmt_med.base.errors import DataError
from cmt_med.base.files import sha256, write_bytes, write_text

KEEP = 3
_NAME = re.compile(r"^step-(\d{9})\.pt$")
log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps and drop all but the newest three.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: optimizer steps done.
        state: tensors and plain values only; it is read back without pickle's freedom.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"step-{step:09d}.pt"
    # The checksum first: a kill between the two leaves a checksum of nothing, which is passed over, and no checkpoint that
    # looks damaged. A step may be saved again, and until that is done the checksums of its earlier content hold, too.
    content, before = buffer.getvalue(), _checksums(path)
    checksum = hashlib.sha256(content).hexdigest()
    write_text(path.with_suffix(".sha256"), "".join(f"{line}\n" for line in (*before, checksum)))
    write_bytes(path, content)
    if before:
        write_text(path.with_suffix(".sha256"), f"{checksum}\n")
    for old in _checkpoints(folder)[:-KEEP]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The newest state that is intact, or None if there is no checkpoint.

    Args:
        folder: the run's ``checkpoints`` folder.
        keys: what a state must have.

    Raises:
        DataError: if there are checkpoints and all are damaged.
    """
    found = _checkpoints(folder)
    for path in reversed(found):
        state = _load(path)
        if state is not None and state.keys() >= set(keys):
            return state
        log.warning("checkpoint %s is damaged; falling back to the one before", path.name)
    if found:
        raise DataError(
            "all checkpoints are damaged",
            where=str(folder),
            why="their checksums do not match their content, or they hold something else",
            fix="start over with --fresh",
            code="E_CHECKPOINT",
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.match(path.name)) if folder.is_dir() else []


def _checksums(path: Path) -> list[str]:
    """Those that the content of a checkpoint may have."""
    try:
        return path.with_suffix(".sha256").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []


def _load(path: Path) -> dict[str, Any] | None:
    try:
        if sha256(path) not in _checksums(path):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ):  # the last: it holds more than tensors
        return None
    return state if isinstance(state, dict) else None
