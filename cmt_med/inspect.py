"""``cmt-med inspect``: what is there, and what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.base.errors import ConfigError
from cmt_med.launch.command import Debug, begin_work, run_command


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A volume, a folder (cases, files, DICOM slices), a case list (.json) or a table (.csv)."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write repaired copies of what needs no guess into --output.")
    ] = False,
    hashes: Annotated[bool, typer.Option("--hash", help="Write a copy of the case list with SHA-256 sums.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for what --fix and --hash write.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read headers alone, and print what they have in common; for large sets.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Show what is there: format, cases, channels, labels, geometry and problems.

    Every file is read to its end and checked as training and inference would. In memory are the voxels of one file at a time, as
    they are stored, and 0.2 GB beside; a file too large for that is E_MEMORY, and the others are read. Exit code 0 if all is well
    (or was repaired), 2 if some cases are faulty, 65 if none can be used.

    --fix repairs lengths in other units, headers of which one side was plainly never set, axes that rounding has bent, and
    labels that are nearly whole numbers. It writes copies, never over other files, and says what it did; the originals stay
    as they are.

    --quick reads no voxels: 100,000 files take about a minute. What it has seen is kept in the cache; killed, it goes on.

    --hash writes OUTPUT/LIST.sha256.json; wherever that list is used, a file that has changed since is refused.
    """
    from cmt_med.runs.inspection import inspect_path  # what computes takes seconds to import

    begin_work()
    if quick and (fix or hashes):
        raise ConfigError("--quick reads headers alone", where="--quick", why="--fix and --hash need whole files",
                          fix="leave out one of them")  # fmt: skip
    if quick:
        from cmt_med.runs.quick import quick_report

        return quick_report(path, as_json=as_json)
    return inspect_path(path, as_json=as_json, fix=fix, hashes=hashes, output=output)


def main() -> int:
    """Run the command."""
    return run_command(inspect)


if __name__ == "__main__":
    sys.exit(main())
