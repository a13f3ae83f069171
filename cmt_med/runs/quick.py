"""A first look at a large data set, by the headers of its files alone: ``cmt-med inspect --quick``."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from cmt_med.base.errors import EXIT_DATA, EXIT_DONE, EXIT_SOME_FAILED, DataError
from cmt_med.base.text import counted, visible_lines
from cmt_med.data.case import Case
from cmt_med.data.preprocessing.cache import default_cache_folder
from cmt_med.data.sources import find_dataset
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.decoder import header
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.journal import LARGE, Journal, journal_of
from cmt_med.data.volumes.streams import readable_name

READERS = 4
AT_ONCE = 1_000  # cases whose answers are in memory
MOST_PROBLEMS = 1_000
"""Problems that are kept to be named; the others are counted."""


def quick_report(path: Path, *, as_json: bool) -> int:
    """Print what the headers under a path say, and return the exit code; arguments as of ``cmt-med inspect``.

    Raises:
        DataError: if nothing is there.
    """
    begun = time.monotonic()
    found = find_dataset(path)
    cases = [*found.cases, *found.test, *found.doubtful]
    if not cases:
        raise found.problems[0] if found.problems else DataError(
            "there is no volume here", where=readable_name(path), why="no case was found", fix="give the folder of the images",
            code="E_FORMAT",
        )  # fmt: skip
    journal = journal_of(default_cache_folder(), path, "headers") if len(cases) >= LARGE else None
    summary = _summarised(cases, found, journal)
    content = (
        {"path": readable_name(path), "kind": found.kind} | summary | {"seconds": round(time.monotonic() - begun, 1)}
    )
    print(json.dumps(content, indent=1) if as_json else visible_lines("\n".join(_text(content))))
    if summary["faulty"] == len(cases):
        return EXIT_DATA
    return EXIT_SOME_FAILED if summary["faulty"] or summary["problems"] else EXIT_DONE


def _summarised(cases: list[Case], found: Dataset, journal: Journal | None) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("formats", "shapes", "spacings_mm", "axes")}
    problems = [error.as_dict() for error in found.problems]
    faulty = files = 0
    console = Console(stderr=True)
    with (
        Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
        ThreadPoolExecutor(min(READERS, 2 * (os.cpu_count() or 1))) as pool,
    ):
        task = bar.add_task("reading headers", total=len(cases))
        for begin in range(0, len(cases), AT_ONCE):
            some = cases[begin : begin + AT_ONCE]
            for seen, errors in pool.map(lambda case: _look(case, journal), some):
                files += len(seen)
                for row in seen:
                    for name, counter in counts.items():
                        counter[row[name]] += 1
                faulty += bool(errors)
                problems += errors[: max(0, MOST_PROBLEMS - len(problems))]
            bar.advance(task, len(some))
    if journal is not None:
        journal.close()
    return {
        "cases": len(cases), "files": files, "faulty": faulty, "labelled": sum(case.label is not None for case in cases),
        "channels": Counter(name for case in cases for name in case.images),
        **{name: dict(counter.most_common(20)) for name, counter in counts.items()},
        "notes": found.notes, "problems": problems,
    }  # fmt: skip


def _look(case: Case, journal: Journal | None) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What the headers of a case's files say, and what is wrong with them; grids that differ, too."""
    seen: list[dict[str, str]] = []
    errors: list[dict[str, str]] = []
    first: dict[str, str] | None = None
    for file in dict.fromkeys([*(file for file, _ in case.images.values()), *filter(None, (case.label, case.mask))]):
        try:
            row = _row(file) if journal is None else journal.remembered([file], "1", lambda file=file: _row(file))  # type: ignore[misc]
        except DataError as error:
            errors.append(error.as_dict() | {"where": f"case {case.name}: {readable_name(file)}"})
            continue
        seen.append(row)
        first = first or row
        if row["grid"] != first["grid"]:
            problem = DataError(
                "the files of the case have different sizes", where=f"case {case.name}: {readable_name(file)}",
                why=f"{row['grid']}, not {first['grid']}", fix="look at both with cmt-med inspect, without --quick",
                code="E_GRID",
            )  # fmt: skip
            errors.append(problem.as_dict())
    return seen, errors


def _row(file: Path) -> dict[str, str]:
    said = header(file)
    grid = Grid(said.shape[:3], np.array(said.affine))
    shape = "×".join(map(str, said.shape))
    return {
        "formats": f"{said.format} {np.dtype(said.dtype).name}", "shapes": shape,
        "spacings_mm": "×".join(f"{v:.4g}" for v in grid.spacing), "axes": grid.axes,
        "grid": "×".join(map(str, sorted(said.shape[:3]))),
    }  # fmt: skip


def _text(content: dict[str, Any]) -> Iterator[str]:
    counts = f"{counted(content['cases'], 'case')}, {content['labelled']} with label maps, {counted(content['files'], 'file')}"
    yield f"{content['path']}: {content['kind']}, {counts}, {content['faulty']} faulty"
    yield f"  headers alone, in {content['seconds']:g} s"
    for name in ("channels", "formats", "shapes", "spacings_mm", "axes"):
        shown = [f"{what} ({count})" for what, count in list(content[name].items())[:8]]
        more = f" and {len(content[name]) - 8} more" if len(content[name]) > 8 else ""
        yield f"  {name.replace('_', ' ') + ':':14s} {', '.join(shown)}{more}"
    yield from (f"  note:          {note}" for note in content["notes"])
    for problem in content["problems"][:20]:
        yield f"[{problem['code']}] {problem['what']}"
        yield from (f"  {part}: {problem[part]}" for part in ("where", "why", "fix") if problem[part])
    if len(content["problems"]) > 20:
        yield f"and {len(content['problems']) - 20} more problems (--json names them)"
