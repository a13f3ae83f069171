"""``cmt-med VERB``, the same commands as ``python -m cmt_med.VERB``."""

from __future__ import annotations

import sys

import typer

from cmt_med.compare import compare
from cmt_med.convert import convert
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import HELP_OPTIONS, run_app
from cmt_med.train import train
from cmt_med.view import view


def main() -> int:
    """Run the command named on the command line."""
    app = typer.Typer(
        pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True, context_settings=HELP_OPTIONS,
        help="Segmentation and classification of medical images with CMT networks: inspect, init, convert, train, infer, "
        "evaluate, view, compare. --version prints the version.",
    )  # fmt: skip
    for command in (inspect, init, convert, train, infer, evaluate, view, compare):
        app.command(context_settings=HELP_OPTIONS)(command)
    return run_app(app, name="cmt-med")


if __name__ == "__main__":
    sys.exit(main())
