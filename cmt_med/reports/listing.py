"""The volumes of a report as files: ``volumes.json``, by which ``cmt-med view`` finds them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.base.files import write_json
from cmt_med.data.case import Codes, colours_alone, segments_of

FILE = "volumes.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; ``images`` maps a channel to its file and, for a 4D file, the position in it.

    ``sha256`` has the sums that files must have, where the case list says so, ``colours`` what a reference in colour means,
    ``ignore`` the value of voxels in the reference that nobody has annotated, ``unscored`` targets that the reference lacks.
    """

    name: str
    prediction: Path | None = None
    reference: Path | None = None
    images: dict[str, tuple[Path, int | None]] = field(default_factory=dict)
    sha256: dict[Path, str] = field(default_factory=dict)
    colours: dict[int | str, int] = field(default_factory=dict)
    ignore: int | None = None
    unscored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The cases of a report, with what their label values mean in the prediction and in the reference."""

    cases: tuple[CaseFiles, ...]
    targets: dict[str, list[int]]
    reference_targets: dict[str, list[int]]


def write_listing(folder: Path, listing: Listing) -> None:
    """Write ``volumes.json``, with paths relative to ``folder``, so that a run can be moved as a whole."""
    write_json(
        folder / FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "targets": listing.targets,
            "reference_targets": listing.reference_targets,
            "cases": [
                {
                    "name": case.name,
                    "prediction": _relative(case.prediction, folder),
                    "reference": _relative(case.reference, folder),
                    "images": {n: [_relative(path, folder), at] for n, (path, at) in case.images.items()},
                    "sha256": {_relative(path, folder): digest for path, digest in case.sha256.items()},
                    **_codes(case.colours),
                    **({"ignore": case.ignore} if case.ignore is not None else {}),
                    **({"unscored": list(case.unscored)} if case.unscored else {}),
                }
                for case in listing.cases
            ],
        },
    )


def _codes(codes: Codes) -> dict[str, dict[str, int]]:
    """Colours and names of segments, apart: in JSON, both would be text."""
    found = {
        "colours": {str(colour): value for colour, value in colours_alone(codes).items()},
        "segments": segments_of(codes),
    }
    return {key: values for key, values in found.items() if values}


def read_listing(folder: Path) -> Listing:
    """Read ``volumes.json``.

    Raises:
        DataError: E_REPORT, if there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file() and (folder / "metrics.json").is_file():
        raise DataError(
            "this report has no volumes to view", where=str(folder), why="it is one of classes, or its volumes.json is gone",
            fix="open its report.html; of label maps, evaluate again", code="E_REPORT",
        )  # fmt: skip
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cases = tuple(
            CaseFiles(
                str(entry["name"]),
                _found(entry["prediction"], folder),
                _found(entry["reference"], folder),
                {
                    str(n): (folder / str(file), None if at is None else int(at))
                    for n, (file, at) in entry["images"].items()
                },
                {folder / str(file): str(digest) for file, digest in entry.get("sha256", {}).items()},
                {
                    **{int(code): int(value) for code, value in entry.get("colours", {}).items()},
                    **{str(name): int(value) for name, value in entry.get("segments", {}).items()},
                },
                None if entry.get("ignore") is None else int(entry["ignore"]),
                tuple(map(str, entry.get("unscored", ()))),
            )
            for entry in content["cases"]
        )
        targets, theirs = (
            {str(name): [int(value) for value in values] for name, values in content[key].items()}
            for key in ("targets", "reference_targets")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "where the volumes of this report lie is not known", where=str(path),
            why=f"{type(error).__name__}: {error}", fix="evaluate again, or give the run folder", code="E_REPORT",
        ) from error  # fmt: skip
    return Listing(cases, targets, theirs)


def _relative(path: Path | None, folder: Path) -> str | None:
    """The path from the folder; a link is kept: its own name says what it is, and other files lie beside it."""
    return None if path is None else os.path.relpath(path.parent.resolve() / path.name, folder.resolve())


def _found(text: str | None, folder: Path) -> Path | None:
    return None if text is None else folder / text
