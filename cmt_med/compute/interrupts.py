"""Ctrl-C and SIGTERM from the first moment of a command: importing the libraries takes seconds, and is no time for tracebacks."""

from __future__ import annotations

import os
import signal
import sys
import threading

EXIT_INTERRUPTED = 75  # as in cmt_med.base.errors, which is not imported yet
MESSAGE = "[E_INTERRUPTED] interrupted\n  fix: the same command resumes it\n"

_asked = False


def leave_at_once() -> None:
    """Let both signals end the process with a message; for the time before anything is read or written."""
    _handle(_leave)


def raise_interrupts() -> None:
    """Let both signals raise KeyboardInterrupt; for the time in which open files must be closed and locks released."""
    global _asked
    _asked = False
    _handle(_raise)


def were_asked() -> bool:
    """Tell whether a signal has come since :func:`raise_interrupts`: a library may have made another error of it."""
    return _asked


def _handle(handler: object) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, handler)  # type: ignore[arg-type]


def _leave(*_: object) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, MESSAGE.encode())
    os._exit(EXIT_INTERRUPTED)


def _raise(*_: object) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
