"""Whose the files of an inference folder are: what is no result of an earlier run is never replaced or removed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmt_med.base.errors import OutputError
from cmt_med.base.files import sha256
from cmt_med.data.case import Case
from cmt_med.data.sources.predicted import label_maps_in
from cmt_med.data.volumes.endings import is_tiff, looks_like_picture
from cmt_med.tasks.task import Task

Probabilities = Literal["none", "float32", "uint8"]
"""Of ``CASE_prob.nii.gz``: whether it is written, and how; uint8 keeps steps of 1/255."""


@dataclass(frozen=True)
class Results:
    """The files of one case's results.

    Attributes:
        record: what is known of them.
        labels: the label map: of a picture PNG, else NIfTI.
        pages: the label map of a TIFF that has several pages; None where there can be none.
        chances: the probabilities.
        boxes: boxes around objects.
    """

    record: Path
    labels: Path
    pages: Path | None
    chances: Path
    boxes: Path

    @classmethod
    def of(cls, case: Case, folder: Path) -> Results:
        """The result files of a case in a folder."""
        source = next(iter(case.images.values()))[0] if case.images else Path()
        ending = ".png" if looks_like_picture(source) else ".nii.gz"
        return cls(
            folder / f"{case.name}.json", folder / f"{case.name}{ending}",
            folder / f"{case.name}.tif" if is_tiff(source) else None, folder / f"{case.name}_prob.nii.gz",
            folder / f"{case.name}.boxes.json",
        )  # fmt: skip

    def of_slices(self, count: int) -> Path:
        """The label map of a case with so many slices."""
        return self.pages if self.pages is not None and count > 1 else self.labels

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, the record first: without it, the others count for nothing."""
        return self.record, self.labels, self.chances, self.boxes, *((self.pages,) if self.pages is not None else ())


def require_own(folder: Path, cases: Sequence[Case]) -> None:
    """Refuse a folder where a result would replace a file that belongs to a case, or that no earlier run has written.

    A run that was killed may have left results without a record: they are known by the list of cases in its ``run.json``.

    Raises:
        OutputError: naming the file.
    """
    inputs = {_identity(path) for case in cases for path in _named_by(case)} - {None}
    run = read_record(folder / "run.json")
    begun = run.get("cases") if "weights_sha256" in run else None
    known = set(map(str, begun)) if isinstance(begun, list) else None
    for name in ("run.json", "failures.json"):
        _require(folder / name, inputs, ours=known is not None)
    for case in cases:
        results = Results.of(case, folder)
        record = read_record(results.record)
        ours = case.name in (known or ()) or (record.get("case") == case.name and "weights_sha256" in record)
        for path in results.files:
            _require(path, inputs, ours=ours)


def predictions_in(folder: Path) -> dict[str, Path]:
    """Case name -> label map, without what an earlier run has left of cases that have failed in the last one.

    Raises:
        DataError: see :func:`label_maps_in`.
    """
    failed = read_record(folder / "run.json").get("failed")
    left_out = failed if isinstance(failed, list) else []
    return {name: path for name, path in label_maps_in(folder).items() if name not in left_out}


def read_record(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}  # a FIFO would never end
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _require(path: Path, inputs: set[tuple[int, int] | None], *, ours: bool) -> None:
    if not os.path.lexists(path):
        return
    if _identity(path) in inputs:
        raise OutputError(
            "a result would overwrite an input", where=str(path), why="it is a file of one of the cases",
            fix="choose another --output",
        )  # fmt: skip
    if not ours:
        raise OutputError(
            "a result would overwrite a file that is not one", where=str(path),
            why="no record beside it says that an earlier run has written it",
            fix="choose another --output, or move the file away",
        )  # fmt: skip


def _named_by(case: Case) -> list[Path]:
    named = (*(path for path, _ in case.images.values()), case.label, case.mask, case.instances, case.boxes)
    return [path for path in named if path is not None]


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names of a file: links, and other capitals where the file system does not tell them apart."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def is_done(results: Results, key: Mapping[str, Any], *, task: Task) -> bool:
    """Tell whether a case has results of these inputs, model and settings (``key``), as they were written."""
    content = read_record(results.record)
    if not content or any(content.get(name) != value for name, value in key.items()):
        return False
    if not task.dense:
        return True  # the record is all there is
    if task.boxes:
        return results.boxes.is_file() and sha256(results.boxes) == content.get("output_sha256")
    target = results.pages if results.pages is not None and results.pages.is_file() else results.labels
    wanted = {target: "output_sha256"}
    if "probabilities" in key:
        wanted[results.chances] = "probabilities_sha256"
    return all(path.is_file() and sha256(path) == content.get(name) for path, name in wanted.items())
