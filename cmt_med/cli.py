"""What the commands share: options, logging, exit codes, and errors without a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

import cmt_med
from cmt_med import errors
from cmt_med.interrupts import MESSAGE, raise_interrupts, were_asked
from cmt_med.text import visible_lines

# typer keeps its own copy of click since 0.20-odd; either way, this is the UsageError that it raises.
_UsageError: Any = typer.BadParameter.__bases__[0]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

_TYPER_INTERRUPTED = 130  # it turns a KeyboardInterrupt into this exit code

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_command(command: Callable[..., int | None], arguments: list[str] | None = None) -> int:
    """Run one typer command function and return its exit code (docs: errors.py)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings=HELP_OPTIONS)(command)
    return run_app(app, arguments)


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a typer application and return its exit code; errors are printed with their four parts."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(_Readable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    for noisy in ("monai", "matplotlib", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every exception that passes; we print it once
    raise_interrupts()
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    if given[:1] == ["--version"]:
        print(f"cmt_med {cmt_med.__version__}")
        return errors.EXIT_DONE
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            return _interrupted()
        return code if isinstance(code, int) else errors.EXIT_DONE
    except errors.CmtError as error:
        if debug:
            traceback.print_exc()
        print(error.message(), file=sys.stderr)
        return error.exit_code
    except _UsageError as error:
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
    except Exception:
        if were_asked():  # a library has made another error of the interrupt
            return _interrupted()
        traceback.print_exc()
        print(
            "[E_BUG] this is a fault of cmt_med, not of your input\n  fix: report it with the lines above",
            file=sys.stderr,
        )
        return errors.EXIT_BUG


class _Readable(logging.Formatter):
    """Names in log lines cannot move the cursor or turn the line around."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def _interrupted() -> int:
    print(MESSAGE, end="", file=sys.stderr)
    return errors.EXIT_INTERRUPTED


def use_threads(count: int | None) -> None:
    """Limit the threads of tensor operations, and ready the process for them; call before long work."""
    import torch

    from cmt_med.runtime import reuse_memory

    reuse_memory()

    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)


def pick_device(name: str) -> Any:
    """A device from ``auto``, ``cpu`` or ``cuda:0``.

    Raises:
        ConfigError: for an unknown or absent device.
    """
    import torch

    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
            raise RuntimeError("not available on this machine")
    except RuntimeError as error:
        raise errors.ConfigError(
            f"device {name!r} cannot be used", where="--device", why=str(error).splitlines()[0], fix="use auto or cpu"
        ) from error
    return device
