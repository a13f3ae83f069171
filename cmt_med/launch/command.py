"""The common part of commands: options, logging, exit codes, and errors without a traceback."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import cmt_med
from cmt_med.base import errors
from cmt_med.base.text import visible, visible_lines
from cmt_med.compute.interrupts import MESSAGE, leave_at_once, raise_interrupts, were_asked

# typer keeps its own copy of click since 0.20-odd; either way, this is the UsageError that it raises.
_UsageError: Any = typer.BadParameter.__bases__[0]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

_TYPER_INTERRUPTED = 130  # it turns a KeyboardInterrupt into this exit code

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_command(command: Callable[..., int | None], arguments: list[str] | None = None) -> int:
    """Run one typer command function and return its exit code (:mod:`cmt_med.base.errors`)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings=HELP_OPTIONS)(command)
    return run_app(app, arguments)


def begin_work() -> None:
    """Let signals raise from here on; before, while libraries are imported, they end the process with a message."""
    raise_interrupts()


def run_app(app: typer.Typer, arguments: list[str] | None = None, *, name: str | None = None) -> int:
    """Run a typer application and return its exit code; errors are printed with their four parts.

    ``name`` is what it is called in help texts and by shell completion; by default, as it was started.
    """
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(_Readable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    for noisy in ("monai", "matplotlib", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every exception that passes; we print it once
    leave_at_once()
    _print_whatever_it_is()
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    if given[:1] == ["--version"]:
        print(f"cmt_med {cmt_med.__version__}")
        return errors.EXIT_DONE
    try:
        _require_no_empty(given)
        code: Any = app(args=arguments, standalone_mode=False, prog_name=name)
        if code == _TYPER_INTERRUPTED:
            return _interrupted()
        return code if isinstance(code, int) else errors.EXIT_DONE
    except errors.CmtError as error:
        if debug:
            traceback.print_exc()
        print(error.message(), file=sys.stderr)
        return error.exit_code
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return errors.EXIT_USAGE
        command = error.ctx.command_path if error.ctx is not None else "cmt-med"
        usage = errors.ConfigError(
            "the command line is not understood", where=command, why=error.format_message(), fix=f"see {command} --help",
            code="E_USAGE",
        )  # fmt: skip
        print(usage.message(), file=sys.stderr)
        return errors.EXIT_USAGE
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except typer.Exit as leaving:
        return int(leaving.exit_code)
    except Exception as error:
        if were_asked():  # a library has made another error of the interrupt
            return _interrupted()
        known = _known(error)
        if known is not None:
            if debug:
                traceback.print_exc()
            print(known.message(), file=sys.stderr)
            return known.exit_code
        traceback.print_exc()
        print(
            "[E_BUG] this is a fault of cmt_med, not of your input\n  fix: report it with the lines above",
            file=sys.stderr,
        )
        return errors.EXIT_BUG


def _require_no_empty(arguments: Sequence[str]) -> None:
    """Raise if an argument is empty: as a path it would mean the current folder, which nobody has named.

    Raises:
        ConfigError: E_USAGE.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "" or re.fullmatch("--[a-z-]+=", argument):
            named = argument.rstrip("=") or (before if before.startswith("--") else "")
            raise errors.ConfigError(
                f"{named} has an empty value" if named else "an argument is empty", where="the command line",
                why="it may come from a shell variable that is not set; an empty path would be the current folder",
                fix="give the value; the current folder is written as .", code="E_USAGE",
            )  # fmt: skip


def _print_whatever_it_is() -> None:
    """Let names and signs through that the terminal's encoding lacks (LC_ALL=C), as question marks instead of errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _known(error: Exception) -> errors.CmtError | None:
    """The error that the system's own means wherever it comes from; None for what is a fault of ours."""
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENAMETOOLONG:
        return _too_long(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.OutputError(
            "there is no room left", where=str(error.filename or "standard output, or a temporary file"),
            why=error.strerror or str(error), fix="free space there, or write to another disk",
        )  # fmt: skip
    return None


def _too_long(error: OSError) -> errors.ConfigError:
    """The error for a path that the operating system does not take, wherever it was first used."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "a path"
    return errors.ConfigError(
        "a path is too long", where=visible(path, 200),
        why=f"it has {len(os.fsencode(path))} bytes; the system takes at most 255 for a name and 4095 for a path",
        fix="shorten it, or check how it was put together", code="E_PATH",
    )  # fmt: skip


class _Readable(logging.Formatter):
    """Names in log lines cannot move the cursor or turn the line around."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def _interrupted() -> int:
    print(MESSAGE, end="", file=sys.stderr)
    return errors.EXIT_INTERRUPTED
