"""``cmt-med compare``: are reports on the same cases different, and which is better?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def compare(
    reports: Annotated[
        list[str], typer.Argument(help="Report folders, two or more: DIR, NAME=DIR, or NAME=DIR,DIR of folds or seeds.")
    ],
    metric: Annotated[
        str | None,
        typer.Option(help="What to compare: dice, hd95, nsd_1mm, ...; of classes correct, brier, log_loss."),
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare the cases that all reports have.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for compare.json; default: print only.")] = None,
    debug: Debug = False,
) -> int:
    """Compare reports over the same cases.

    For every pair of reports and every target: the paired difference with its 95% bootstrap interval, cases won, tied
    and lost, and Wilcoxon's signed-rank test, corrected after Holm over all of them. Then how stable the ranks are.
    Folders joined by commas are one report: folds are put together, seeds averaged per case, never counted as
    independent.
    """
    from cmt_med.reports.comparison import compare_reports  # what computes takes seconds to import

    begin_work()
    return compare_reports(reports, metric=metric, common=common, output=output)


def main() -> int:
    """Run the command."""
    return run_command(compare)


if __name__ == "__main__":
    sys.exit(main())
