"""The present activity of a training process, for the other processes of its job, which wait for it."""

from __future__ import annotations

import math
import time
from collections import deque

LEAST_SECONDS = 40.0
"""No piece of work is late before."""
TIMES_LONGEST = 5.0
"""A piece of work is late when it takes so many times as long as the longest of its kind lately."""
LATELY = 20


class Heartbeat:
    """The present activity of the main thread, and since when; other threads may ask whether that takes too long.

    How long a kind of work takes is learned when it is done for the first time, in one or several pieces, up to work of
    another kind: compiling, cold files or a whole validation may take any time once.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}  # of the longest piece, each time that this kind of work was done
        self._longest = 0.0  # piece, since this kind of work began
        self._now = ("", time.monotonic(), math.inf)

    def at(self, what: str) -> None:
        """Note that a piece of work begins, which ends the one before; ``""`` is for what may take any time."""
        (before, since, _), now = self._now, time.monotonic()
        self._longest = max(self._longest, now - since)
        if what != before:
            self._seconds.setdefault(before, deque(maxlen=LATELY)).append(self._longest)
            self._longest = 0.0
        known = self._seconds.get(what, ()) if what else ()
        bound = max(LEAST_SECONDS, TIMES_LONGEST * max(self._longest, *known)) if known else math.inf
        self._now = (what, now, bound)  # at once, for the threads that ask

    def late(self) -> str:
        """Name what takes too long, and for how long; empty if nothing does."""
        what, since, bound = self._now
        seconds = time.monotonic() - since
        return f"{what} for {seconds:.0f} s" if seconds > bound else ""
