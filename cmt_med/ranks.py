"""The processes of one job under torchrun: they start together, wait for each other, and notice when one is gone."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType

import ignite.distributed as idist
import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cmt_med.training.faults import lost_rank

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""A process that has not been heard of for so long is dead, or stopped."""
COLLECTIVE_SECONDS = 1800.0
"""A process whose main thread hangs while its other threads live is given up after this time."""


class ProcessGroup:
    """The process group of torchrun, where there is one.

    Every process counts up a number in the job's store, from a thread. The others' waiting for it in the middle of an
    operation cannot be interrupted, so a process that misses another one ends itself there, with a message; the same
    command resumes the run.
    """

    def __init__(self, device: torch.device) -> None:
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self.spread = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._store: Store | None = None
        self._ended = threading.Event()
        self._heard: dict[int, float] = {}
        self._meetings = 0

    def __enter__(self) -> ProcessGroup:
        if self.spread:
            idist.initialize(self.backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
            self._store = _own_store()
            others = set(range(idist.get_world_size())) - {idist.get_rank()}
            self._heard = dict.fromkeys(others, time.monotonic())
            for work in (self._listen, self._judge):  # two: the store's process may be the one that is gone
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the process that keeps it may be gone
                self._store.set(f"end/{idist.get_rank()}", "done" if kind is None else "failed")
            if kind is None:
                idist.finalize()

    def meet(self) -> None:
        """Wait until all processes are here, however long that takes; one that is gone is noticed."""
        if self._store is None:
            return
        self._meetings += 1
        key, ranks = f"meeting/{self._meetings}", range(idist.get_world_size())
        try:
            self._store.add(key, 1)
            while self._store.add(key, 0) < len(ranks):
                failed = [rank for rank in ranks if _end_of(self._store, rank) == "failed"]
                if failed:
                    raise lost_rank(f"rank {failed[0]} has failed; its own message says why")
                time.sleep(0.05)
        except RuntimeError as error:
            raise lost_rank(f"the job's store does not answer: {error}") from error

    def _listen(self) -> None:
        """Count, and see whether the others do, until the job ends; for a thread of its own."""
        try:
            store, me = _own_store(), idist.get_rank()
            counts = dict.fromkeys(self._heard, -1)
            while not self._ended.wait(BEAT_SECONDS):
                store.add(f"beat/{me}", 1)
                for rank, before in counts.items():
                    counts[rank] = store.add(f"beat/{rank}", 0)
                    if counts[rank] != before or _end_of(store, rank) == "done":
                        self._heard[rank] = time.monotonic()
        except RuntimeError as error:
            if not self._ended.wait(BEAT_SECONDS):
                _end_here(f"the job's store does not answer: {error}")

    def _judge(self) -> None:
        """End this process when another one is silent; for a thread of its own."""
        while not self._ended.wait(BEAT_SECONDS):
            for rank, since in list(self._heard.items()):
                seconds = time.monotonic() - since
                if seconds > SILENT_SECONDS:
                    _end_here(f"rank {rank} has not been heard of for {seconds:.0f} s")


def _own_store() -> Store:
    """A connection to the job's store; the keys of a job that torchrun starts again are new."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SILENT_SECONDS))
    return PrefixStore(f"cmt_med/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _end_of(store: Store, rank: int) -> str:
    key = f"end/{rank}"
    return store.get(key).decode() if store.check([key]) else ""


def _end_here(why: str) -> None:
    error = lost_rank(why)
    print(error.message(), file=sys.stderr, flush=True)
    os._exit(error.exit_code)  # the main thread waits for the lost process, deep in a library
