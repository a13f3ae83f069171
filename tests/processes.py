"""Commands in processes of their own, which a test may kill, stop or starve; forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
# what the verbs import once they begin, which takes seconds
_BODIES = ("runs.training", "runs.inference", "runs.evaluation", "runs.inspection", "runs.setup", "reports.comparison")
_context.set_forkserver_preload([*(f"cmt_med.{body}" for body in _BODIES), "tests.processes"])


class Running:
    """A function in a process of its own; its output goes to a file.

    Args:
        function: importable by name; what it returns is the exit code.
        arguments: its arguments.
        log: for standard output and error.
        environment: set in the process.
        file_size: largest file that it may write, in bytes.
        memory: bytes that it may allocate beside what is loaded.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: object,
        log: Path,
        environment: Mapping[str, str] | None = None,
        file_size: int | None = None,
        memory: int | None = None,
    ) -> None:
        inherited = {key: os.environ[key] for key in ("CMT_CACHE", "OMP_NUM_THREADS") if key in os.environ}
        settings = inherited | dict(environment or {})
        self.log = log
        self.process = _context.Process(target=_run, args=(function, arguments, log, settings, file_size, memory))
        self.process.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 300.0) -> int:
        """The exit code, which must come in time."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it still runs after {seconds} s:\n{self.said()}"
        return self.process.exitcode

    def wait_for(self, ready: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until something has happened, which must while it runs."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.is_running(), f"it ended with {self.process.exitcode}:\n{self.said()}"
            assert time.monotonic() < end, self.said()
            time.sleep(0.002)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def command(verb: str, *arguments: object, log: Path, **settings: Any) -> Running:
    """``cmt-med VERB ARGUMENTS`` in a process of its own."""
    return Running(cmt_med_main, verb, [str(item) for item in arguments], log=log, **settings)


def cmt_med_main(verb: str, arguments: list[str]) -> int:
    """Runs in the process."""
    from cmt_med.__main__ import main

    sys.argv = ["cmt-med", verb, *arguments]
    return main()


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], log: Path, environment: Mapping[str, str],
    file_size: int | None, memory: int | None,
) -> None:  # fmt: skip
    import torch

    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    keeper = None
    if file_size is not None:  # what this process says must not be cut by the limit on what it writes
        keeper = subprocess.Popen(["tee", "-a", log], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert keeper.stdin is not None
        output = os.dup(keeper.stdin.fileno())
        keeper.stdin.close()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    # the streams still know what they wrote to in pytest's process: a file that can be sought in
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    code = function(*arguments)
    if keeper is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.close(stream)
    keeper.wait()
    os._exit(code or 0)
