"""``cmt-med convert``: a data set that is read here, in a layout that other tools read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def convert(
    path: Annotated[Path, typer.Argument(help="A folder as downloaded, a case list or a table; what init takes.")],
    to: Annotated[str, typer.Option(help="nnunet (raw, version 2), msd (decathlon), bids or coco (2D images).")],
    output: Annotated[
        Path, typer.Option(help="Folder to write; for nnunet one of its own, such as Dataset005_Prostate.")
    ],
    convention: Annotated[
        str | None, typer.Option(help="Whose labels, as for init; only where the question is asked.")
    ] = None,
    debug: Debug = False,
) -> int:
    """Write a data set in another layout.

    Files that fit are copied as they are; others (DICOM, 4D, other endings, label values that the layout does not
    allow) are written anew on the same grid. For COCO, numbered objects are annotations, and so are the connected parts of each
    label. The folder appears whole or not at all. Cases that cannot be used are left out and
    named (exit code 2).
    """
    from cmt_med.runs.conversion import convert_data_set  # what computes takes seconds to import

    begin_work()
    return convert_data_set(path, to, output, convention=convention)


def main() -> int:
    """Run the command."""
    return run_command(convert)


if __name__ == "__main__":
    sys.exit(main())
