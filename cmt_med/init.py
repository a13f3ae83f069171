"""``cmt-med init``: a config and a case list for a data set as downloaded."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


class Task(StrEnum):
    """The answers to ``--task``."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    DETECTION = "detection"
    INSTANCES = "instances"


class Missing(StrEnum):
    """The answers to ``--missing``."""

    DROP = "drop"
    ZEROS = "zeros"


def init(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder as downloaded (volumes, 2D images, a folder for each class), a dataset.json or a CSV table."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The config to write, or a folder for it; its case list goes beside it.")
    ],
    convention: Annotated[
        str | None,
        typer.Option(
            help="Whose labels: none, brats2013, brats2017 to brats2021, brats2023, brats2024 (or in full: brats2023-men), msd; "
            "only where init asks."
        ),
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What is learned, where that can be several things.")] = None,
    missing: Annotated[
        Missing | None,
        typer.Option(help="Cases that lack a channel: drop leaves them out, zeros has 0 for it; only where init asks."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the two files if they exist.")] = False,
    debug: Debug = False,
) -> int:
    """Write a commented config and a case list for a data set.

    Every file is read and checked. Year, channels, labels and regions are told from names and from the label values; where
    they disagree, or are not enough, nothing is written and the question to answer with --convention is printed. Cases that
    cannot be used are left out and named (exit code 2, failures.json).

    The config names the case list beside it, and the case list those files that lie below its folder, by relative paths: such a
    folder can be moved as a whole. Other files are named by absolute paths.
    """
    from cmt_med.runs.setup import set_up  # what computes takes seconds to import

    begin_work()
    return set_up(
        path,
        output,
        convention=convention,
        task=task.value if task else None,
        missing=missing.value if missing else None,
        force=force,
    )


def main() -> int:
    """Run the command."""
    return run_command(init)


if __name__ == "__main__":
    sys.exit(main())
