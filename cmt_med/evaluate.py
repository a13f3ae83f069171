"""``cmt-med evaluate``: score predictions against references."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def evaluate(
    predictions: Annotated[Path, typer.Option(help="Folder of label maps or of classes, as infer writes it.")],
    references: Annotated[
        Path,
        typer.Option(
            help="Label maps: a folder of the same names, a case list (.json), or a data set as downloaded. Classes: a case "
            "list, a CSV table, or a folder for each class."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Report folder.")],
    labels: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE[,VALUE...]; needed where the predictions have no run.json.")
    ] = None,
    empty: Annotated[
        str | None,
        typer.Option(
            help="Rule for empty references: diagonal, challenge, nan or skip; default: challenge for BraTS, else diagonal."
        ),
    ] = None,
    tolerance: Annotated[
        list[float] | None, typer.Option(help="Of surface Dice, in mm; repeatable. Default: 1 and 2.")
    ] = None,
    lesion_wise: Annotated[
        str | None,
        typer.Option(
            help="Lesion-wise scores after a BraTS challenge: gli, men, met, ped, ssa or none; default: the list's."
        ),
    ] = None,
    debug: Debug = False,
) -> int:
    """Score predictions against references.

    Writes OUTPUT/report.html, metrics.json and metrics.csv: Dice, IoU, sensitivity, precision, specificity, HD, HD95,
    ASSD (mm), surface Dice, volumes (mL) and their errors. A case list may number its labels differently from the
    model: targets are matched by name. With a case list, the cases scored are those that were predicted (run.json). Those that
    the model was trained on are counted, since their scores are optimistic.

    Of classes: AUC, accuracy, sensitivity, Brier score and calibration; --labels, --empty, --tolerance and --lesion-wise are
    for label maps.

    With --labels and no run.json, a value in a prediction that neither --labels, nor the case list, nor any reference has is
    an error of that case (E_LABEL), not background.
    """
    from cmt_med.runs.evaluation import score_predictions  # what computes takes seconds to import

    begin_work()
    return score_predictions(
        predictions,
        references,
        output,
        labels=labels,
        empty=empty,
        tolerance=tolerance,
        lesion_wise=lesion_wise,
    )


def main() -> int:
    """Run the command."""
    return run_command(evaluate)


if __name__ == "__main__":
    sys.exit(main())
