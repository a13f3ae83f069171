"""``cmt-med train``: train a network, or one for each fold, from one YAML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def train(
    config: Annotated[Path, typer.Option(help="The experiment, a YAML file; see configs/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that replaces a key, e.g. optimizer.lr=3e-4.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default: output of the config.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; run one step and one validation case.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=2, help="Use at most so many cases.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="With folds: train this one alone, as a job of an array.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda:0; with folds also several, cuda:0,cuda:1, one fold on each.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> int:
    """Train a network from one YAML file, then predict and score the held-out cases.

    The run folder gets model/ (give it to infer), report/report.html, checkpoints/, log.jsonl and tensorboard/. The same
    command again resumes an interrupted run (exit code 75). Runs unchanged under torchrun.

    With --set folds=5, each fold's network is trained in fold_0/, fold_1/, ...; report/ scores every case by the network
    that has not seen it, and model/ holds all networks, as an ensemble for infer.
    """
    from cmt_med.runs.training import train_from_config  # what computes takes seconds to import

    begin_work()
    return train_from_config(
        config,
        settings=settings,
        output=output,
        fresh=fresh,
        dry_run=dry_run,
        limit=limit,
        fold=fold,
        device=device,
        threads=threads,
        arguments=sys.argv[1:],
    )


def main() -> int:
    """Run the command."""
    return run_command(train)


if __name__ == "__main__":
    sys.exit(main())
