"""The content of a path, and what is wrong with it: the report of ``cmt-med inspect``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cmt_med.base.errors import EXIT_DATA, EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError
from cmt_med.base.files import require_writable_folder
from cmt_med.base.text import counted, visible_lines
from cmt_med.compute.memory import within_what_is_left
from cmt_med.data.case import Case
from cmt_med.data.nnunet import IGNORE
from cmt_med.data.sources import find_dataset
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.copies import describe_repairs, with_copies, write_list, write_repaired
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.examine import CaseReport, examine
from cmt_med.data.volumes.recognise import kind_of
from cmt_med.data.volumes.streams import readable_name

MAX_FILES = 200_000
"""Other files whose beginnings are read to say what they are."""


def inspect_path(
    path: Path, *, as_json: bool = False, fix: bool = False, hashes: bool = False, output: Path | None = None
) -> int:
    """Print what lies under a path, repair it if asked to, and return the exit code; arguments as of ``cmt-med inspect``.

    Raises:
        ConfigError: for --fix or --hash without what they need; DataError: if nothing is there.
    """
    if (fix or hashes) and output is None:
        raise ConfigError(
            "--fix and --hash need a folder to write to",
            where="--output",
            why="nothing is written beside or over the data",
            fix="add --output DIR",
        )
    found = _all_of(path)
    if hashes and found.listed is None:
        raise ConfigError(
            "--hash needs a case list",
            where=str(path),
            why="the sums are kept in it",
            fix="give a .json, or make one with init",
        )
    if not found.cases:
        raise found.problems[0] if found.problems else _nothing(path, found)
    reports = _examined(found, found.cases)
    content = _content(path, found, reports)
    if fix and output is not None:
        require_writable_folder(output)
        copies, done = write_repaired(found.cases, path if path.is_dir() else path.parent, output)
        content["repaired"] = describe_repairs(done, copies)
        if found.listed is not None and copies:
            write_list(found.listed, output / found.listed.name, copies, sums=False)
            content["list"] = str(output / found.listed.name)
        reports = _examined(found, [with_copies(case, copies) for case in found.cases])
        content["faulty_after"] = [report.name for report in reports if report.problems]
    if hashes and output is not None and found.listed is not None:
        target = output / f"{found.listed.stem}.sha256.json"
        write_list(found.listed, target, {}, sums=True)
        content["sums"] = str(target)
    print(json.dumps(content, indent=1) if as_json else visible_lines("\n".join(_text(content))))
    return _exit_code(reports, found)


def _all_of(path: Path) -> Dataset:
    """Find what is under a path, with a case for each volume that belongs to none; every name is there once."""
    found = find_dataset(path)
    strays = [Case(volume_stem(f), {"image": (f, None)}) for f in (*found.unmatched, *found.duplicates)]
    cases = [*found.cases, *found.test, *found.doubtful, *strays]
    times = Counter(case.name for case in cases)
    taken: Counter[str] = Counter()
    found.cases = []
    for case in cases:
        name = readable_name(Path(case.name if times[case.name] == 1 else _place(case, path)))
        taken[name] += 1
        found.cases.append(replace(case, name=name if taken[name] == 1 else f"{name} ({taken[name]})"))
    return found


def _place(case: Case, root: Path) -> Path:
    """Where a case lies below ``root``: its folder and name, or the path of its only file."""
    files = [
        *(file for file, _ in case.images.values()),
        *(file for file in (case.label, case.mask, case.instances, case.boxes) if file),
    ]
    if not files or not files[0].is_relative_to(root):
        return Path(case.name)
    return files[0].relative_to(root) if len(files) == 1 else files[0].parent.relative_to(root) / case.name


def _other_files(found: Dataset) -> Counter[str]:
    """Count what is no volume, by what its content says that it is."""
    counts = Counter(map(_kind_of, found.others[:MAX_FILES]))
    counts.update(["a link to a folder that is here already"] * len(found.repeated))
    return counts


def _kind_of(path: Path) -> str:
    try:
        return kind_of(path).what
    except DataError as error:
        return error.what


def _examined(found: Dataset, cases: Sequence[Case]) -> list[CaseReport]:
    allowed = [*found.labels.values(), *([] if found.ignore is None else [found.ignore])] if found.labels else None
    console = Console(stderr=True)
    progress = Progress(console=console, disable=not console.is_terminal, transient=True)
    with within_what_is_left(), progress as bar:
        return [
            examine(case, () if found.by_name else tuple(found.channels), allowed, listed=found.listed is not None)
            for case in bar.track(cases, description="reading")
        ]


def _exit_code(reports: Sequence[CaseReport], found: Dataset) -> int:
    faulty = sum(bool(report.problems) for report in reports)
    if faulty == len(reports):
        return EXIT_DATA
    return EXIT_SOME_FAILED if faulty or found.problems else EXIT_DONE


def _nothing(path: Path, found: Dataset) -> DataError:
    there = ", ".join(f"{count} × {what}" for what, count in _other_files(found).most_common(5))
    return DataError(
        "there is no volume here", where=readable_name(path), why=f"there is {there or 'nothing'}",
        fix="give a NIfTI, NRRD or MetaImage file, a folder of them or of DICOM slices, or a case list", code="E_FORMAT",
    )  # fmt: skip


def _content(path: Path, found: Dataset, reports: Sequence[CaseReport]) -> dict[str, Any]:
    files = [file for report in reports for file in report.files]
    sound = [file for file in files if file.format]
    values = Counter(value for report in reports for value in {v for file in report.files for v in file.labels or ()})
    names = {value: name for name, value in found.labels.items()}
    if found.ignore is not None:
        names[found.ignore] = IGNORE
    return {
        "path": readable_name(path),
        "kind": found.kind,
        "summary": {
            "cases": len(reports),
            "faulty": sum(bool(report.problems) for report in reports),
            "flagged": sum(bool(report.flags) for report in reports),
            "without_label": sum(bool(case.images) and not _teaches(case) for case in found.cases)
            if not found.boxes
            else 0,
            "without_image": sum(not case.images for case in found.cases),
            "formats": Counter(file.format for file in sound),
            "channels": Counter(name for case in found.cases for name in case.images),
            "labels": {value: {"name": names.get(value, ""), "cases": values[value]} for value in sorted(values)},
            "shapes": _counted("×".join(map(str, file.shape)) for file in sound),
            "spacings_mm": _counted("×".join(f"{v:.4g}" for v in file.spacing) for file in sound),
            "axes": _counted(file.axes + (" (oblique)" if file.oblique_degrees > 0.1 else "") for file in sound),
            "other_files": _other_files(found),
        },
        "notes": found.notes,
        "cases": [asdict(report) for report in reports],
        "problems": [error.as_dict() for error in found.problems],
    }


def _teaches(case: Case) -> bool:
    """Tell whether there is something to learn from a case."""
    return bool(case.label or case.instances or case.class_name)


def _counted(items: Iterator[str]) -> dict[str, int]:
    return dict(Counter(items).most_common())


def _text(content: dict[str, Any]) -> Iterator[str]:
    summary = content["summary"]
    counts = f"{counted(summary['cases'], 'case')}, {summary['faulty']} faulty, {summary['flagged']} flagged"
    yield f"{content['path']}: {content['kind']}, {counts}"
    for name in ("formats", "channels", "shapes", "spacings_mm", "axes", "other_files"):
        yield from _row(name.replace("_", " "), summary[name])
    yield from _row(
        "labels", {f"{v} {label['name']}".strip(): label["cases"] for v, label in summary["labels"].items()}
    )
    for key, meaning in (
        ("without_label", "label map: can be only predicted"),
        ("without_image", "image: a label map alone"),
    ):
        if summary[key]:
            yield f"  look at:       {summary[key]} of {counted(summary['cases'], 'case')} without {meaning}"
    yield from (f"  note:          {note}" for note in content["notes"])
    for case in content["cases"]:
        yield f"\n{'FAULTY' if case['problems'] else 'flag' if case['flags'] else 'ok':7s}{case['name']}"
        for file in case["files"]:
            yield f"       {file['role']}: {_file(file)}"
        yield from (f"       flag: {flag}" for flag in case["flags"])
        yield from _problems(case["problems"])
    yield from _problems(content["problems"])
    for repair in content.get("repaired", ()):
        yield f"\nrepaired {repair['file']}\n  as {repair['copy']}:"
        yield from (f"  {clause}" for clause in repair["done"])
    if "faulty_after" in content:
        yield f"\nfaulty after repair: {', '.join(content['faulty_after']) or 'none'}"
    for key in ("list", "sums"):
        if key in content:
            yield f"wrote {content[key]}"


def _row(name: str, counts: dict[str, int]) -> Iterator[str]:
    shown = [f"{what} ({count})" for what, count in list(counts.items())[:8]]
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    if shown:
        yield f"  {name + ':':14s} {', '.join(shown)}{more}"


def _file(file: dict[str, Any]) -> str:
    if not file["format"]:
        return file["path"]
    if not file["shape"]:  # a list, and no array
        return ", ".join([file["path"], *file["notes"]])
    parts = [
        f"{file['format']} {file['dtype']} {'×'.join(map(str, file['shape']))}",
        f"{'×'.join(f'{v:.4g}' for v in file['spacing'])} mm {file['axes']}",
    ]
    if file["oblique_degrees"] > 0.1:
        parts.append(f"{file['oblique_degrees']:.3g}° oblique")
    if file["range"] is not None:
        parts.append(f"{file['range'][0]:.5g} to {file['range'][1]:.5g}")
    if file["labels"] is not None:
        parts.append("labels " + ", ".join(f"{value}: {count}" for value, count in file["labels"].items()))
    return ", ".join([*parts, *file["notes"]])


def _problems(problems: Sequence[dict[str, str]]) -> Iterator[str]:
    for problem in problems:
        yield f"       [{problem['code']}] {problem['what']}"
        yield from (f"         {part}: {problem[part]}" for part in ("where", "why", "fix") if problem[part])
