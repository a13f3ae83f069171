"""``cmt-med infer``: segment cases with a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def infer(
    model: Annotated[
        list[Path], typer.Option(help="A run folder, or the model/ folder in it; several are averaged, as are folds.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the label maps, or for predictions.csv.")],
    cases: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="A case, a folder of cases, or a case list (.json, .csv); a CASE_mask beside MR channels is the foreground.",
        ),
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="NAME=FILE, once per channel, instead of --input.")] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0.0, max=0.95, help="Overlap of windows; default: the model's.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(help="none, or flips: average over the mirrorings seen in training.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write CASE_prob.nii.gz.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE that replaces one of the model's inference settings, e.g. min_region_mm3.ET=100, thresholds={} or "
            "min_component_mm3.WT=50 (mm³).",
        ),
    ] = None,
    convention: Annotated[
        str | None, typer.Option(help="Write the labels in the numbers of, e.g., brats2023; default: the input's.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(min=0.01, help="Time that one case may take.")] = 120.0,
    max_memory: Annotated[
        float | None, typer.Option(min=0.01, help="GB that one case may take, on a CPU; default: what is left.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> int:
    """Segment or classify cases with a trained model.

    For each case, writes OUTPUT/CASE.nii.gz (labels on exactly the input's grid; PNG for a 2D image) and OUTPUT/CASE.json
    (checksums, volumes in mL, flags); of classes OUTPUT/CASE.json with probabilities, and OUTPUT/predictions.csv. Finished
    cases are kept when the same command runs again. Exit code 2 if some cases failed; OUTPUT/failures.json names them.
    """
    from cmt_med.runs.inference import infer_into  # what computes takes seconds to import

    begin_work()
    return infer_into(
        output,
        model=model,
        cases=cases,
        channel=channel,
        overlap=overlap,
        tta=tta,
        probabilities=probabilities,
        settings=settings,
        convention=convention,
        max_minutes=max_minutes,
        max_memory=max_memory,
        device=device,
        threads=threads,
    )


def main() -> int:
    """Run the command."""
    return run_command(infer)


if __name__ == "__main__":
    sys.exit(main())
