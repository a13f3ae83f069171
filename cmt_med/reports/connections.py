"""Connections to the local page that never ask for anything: they are closed, and the others are served meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_WAITING = 32
"""Connections without a whole request that are kept; for one more, the oldest of them is closed."""


class BoundedProtocol(H11Protocol):
    """A connection on which a request has to be complete within the seconds of ``timeout_keep_alive``.

    uvicorn bounds the time between requests alone: a connection with nothing, or half a request, stayed for ever, and it
    counted towards those beyond which requests are refused.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.since = time.monotonic()
        self.deadline: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Tell whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        waiting = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.is_waiting]
        for one in sorted(waiting, key=lambda one: one.since)[: max(0, len(waiting) - MOST_WAITING)]:
            one.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on; a request that is complete stops the waiting."""
        super().data_received(data)
        if not self.is_waiting:
            self._stop()
        elif self.deadline is None:  # of a request after the first
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.since = time.monotonic()
        self.deadline = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _stop(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _give_up(self) -> None:
        self.deadline = None
        if self.is_waiting:
            self.transport.abort()
