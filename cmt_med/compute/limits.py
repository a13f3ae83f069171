"""Bounds on the time and memory of a single case, so that it fails alone: the others of its folder are still wanted."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cmt_med.base.errors import DataError
from cmt_med.compute.memory import bytes_left, bytes_used

_AGAIN = 5.0  # seconds after which a case that goes on nevertheless is stopped again
_MEMORY_WORDS = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "not enough memory",
    "could not create a memory object", "could not create a primitive",  # oneDNN's
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Bounds of a case.

    Attributes:
        minutes: from its reading to its last file; None for none.
        memory_gb: that it may allocate beside what is in use; None for what the system has left. A GPU's memory bounds
            itself, and its driver reserves addresses without end, so that there is no cap while one is used.
    """

    minutes: float | None = 120.0
    memory_gb: float | None = None


USUAL_LIMITS = Limits()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of Python, of torch's CPU or of its GPU part means that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _MEMORY_WORDS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)  # MONAI wraps what its transforms raise


class _TooLate(BaseException):
    """Raised by the timer wherever the case happens to be; as an Exception, much that is there would pass over it."""


@contextlib.contextmanager
def bounded(limits: Limits, case: str) -> Iterator[None]:
    """Within the context, the process may take no more than ``limits``.

    Time is bounded in the main thread alone, between two operations of a library; memory on systems with ``/proc``.

    Raises:
        DataError: E_TIMEOUT. What does not fit into memory is an error that :func:`is_out_of_memory` knows.
    """

    def too_late(*_: object) -> None:
        raise _TooLate

    with contextlib.ExitStack() as stack:
        before = resource.getrlimit(resource.RLIMIT_AS)
        most = None if torch.cuda.is_initialized() else _most_addresses(limits)
        if most is not None and (before[0] == resource.RLIM_INFINITY or most < before[0]):
            resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
            stack.callback(resource.setrlimit, resource.RLIMIT_AS, before)
        if limits.minutes is not None and threading.current_thread() is threading.main_thread():
            stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, too_late))
            signal.setitimer(signal.ITIMER_REAL, limits.minutes * 60.0, _AGAIN)
            stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        try:
            yield
        except _TooLate as late:
            raise DataError(
                "the case takes too long", where=case, why=f"more than {limits.minutes:g} minutes",
                fix="give more --max-minutes, less --overlap, or a GPU", code="E_TIMEOUT",
            ) from late  # fmt: skip


def _most_addresses(limits: Limits) -> int | None:
    """Bytes of addresses that the process may come to have; None where the system does not say what is left."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return bytes_used() + (bytes_left() if limits.memory_gb is None else int(limits.memory_gb * 1e9))
    return None
