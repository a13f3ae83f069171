"""``cmt-med view``: look at predictions and references in a browser, on this machine alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.launch.command import Debug, begin_work, run_command


def view(
    folder: Annotated[Path, typer.Argument(help="A run, with or without folds, the --output of infer, or a report.")],
    images: Annotated[
        Path | None, typer.Option(help="For the output of infer: what its --input was (a case list brings references).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    debug: Debug = False,
) -> int:
    """Show cases with their scores, and volumes with predictions and references over them.

    Serves a page on 127.0.0.1 until Ctrl-C. Its address has a random token: who does not have it gets nothing.
    A connection without a whole request is closed after 5 seconds.
    """
    from cmt_med.reports.viewing import serve  # what computes takes seconds to import

    begin_work()
    return serve(folder, images=images, port=port, browser=browser)


def main() -> int:
    """Run the command."""
    return run_command(view)


if __name__ == "__main__":
    sys.exit(main())
