"""The files of a run folder, and how they are cleared."""

from __future__ import annotations

import shutil
from pathlib import Path

from cmt_med.base.errors import OutputError
from cmt_med.base.files import (
    LOCK_NAME,
)

RUN_FILES = (
    "finished.json", "checkpoints", "config.yaml", "environment.json", "held_out.json", "log.jsonl", "model", "plan.json",
    "pretrained.json", "report", "tensorboard", "validation",
)  # fmt: skip


def require_run(folder: Path) -> None:
    """Refuse to clear a folder that is no run: one that has other files, and no checkpoints.

    Raises:
        OutputError: naming the files.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    strangers = [path.name for path in found if path.name not in (*RUN_FILES, LOCK_NAME)]
    if strangers and not (folder / "checkpoints").is_dir():
        raise OutputError(
            "this folder is not a run",
            where=str(folder),
            why=f"--fresh clears a run's files, and here are others ({', '.join(sorted(strangers)[:3])}) but no checkpoints",
            fix="give another --output",
        )


def clear_run(folder: Path) -> None:
    """Remove a run's files.

    Raises:
        OutputError: if the folder is no run.
    """
    require_run(folder)
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
