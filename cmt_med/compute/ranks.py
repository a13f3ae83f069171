"""The processes of one job under torchrun: they start together, wait for each other, and notice when one is gone."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from datetime import timedelta
from types import TracebackType

import ignite.distributed as idist
import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cmt_med.base.errors import Interrupted
from cmt_med.compute.heartbeat import Heartbeat

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""A process that has not been heard of for so long is dead, or stopped."""
COLLECTIVE_SECONDS = 1800.0
"""Operations that wait for other processes are given up after this time, where nothing has noticed before that one hangs."""


class ProcessGroup:
    """The process group of torchrun, where there is one.

    Every process counts up a number in the job's store, from a thread, and says there whether its main thread is late with
    what it does (``heartbeat``). The others' waiting for it in the middle of an operation cannot be interrupted, so a process
    that misses another one ends itself there, with a message; the same command resumes the run. When all are late, one
    hangs and the others wait for it; while one is not, it may be the one that is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self.spread = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._store: Store | None = None
        self._ended = threading.Event()
        self.heartbeat = Heartbeat()
        self._heard: dict[int, float] = {}
        self._late: dict[int, str] = {}
        self._meetings = 0

    def __enter__(self) -> ProcessGroup:
        if self.spread:
            # Depthwise kernels have an axis of length 1, whose stride means nothing; said once by every process.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
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
                failed = [rank for rank in ranks if _said(self._store, f"end/{rank}") == "failed"]
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
                store.set(f"late/{me}", self.heartbeat.late())
                for rank, before in counts.items():
                    counts[rank] = store.add(f"beat/{rank}", 0)
                    if counts[rank] != before or _said(store, f"end/{rank}") == "done":
                        self._heard[rank] = time.monotonic()
                    self._late[rank] = _said(store, f"late/{rank}")
        except RuntimeError as error:
            if not self._ended.wait(BEAT_SECONDS):
                _end_here(f"the job's store does not answer: {error}")

    def _judge(self) -> None:
        """End this process when another one is silent, or all are late; for a thread of its own."""
        while not self._ended.wait(BEAT_SECONDS):
            late = self._late | {idist.get_rank(): self.heartbeat.late()}
            if len(late) > len(self._heard) and all(late.values()):
                does = "; ".join(f"rank {rank} has been {what}" for rank, what in sorted(late.items())[:4])
                _end_here(f"one hangs, and the others wait for it: {does}")
            for rank, since in list(self._heard.items()):
                seconds = time.monotonic() - since
                if seconds > SILENT_SECONDS:
                    _end_here(f"rank {rank} has not been heard of for {seconds:.0f} s")


def _own_store() -> Store:
    """A connection to the job's store; the keys of a job that torchrun starts again are new."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SILENT_SECONDS))
    return PrefixStore(f"cmt_med/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _said(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _end_here(why: str) -> None:
    error = lost_rank(why)
    print(error.message(), file=sys.stderr, flush=True)
    os._exit(error.exit_code)  # the main thread waits for the lost process, deep in a library


def lost_rank(why: str) -> Interrupted:
    """The error for a job of which a process is gone."""
    return Interrupted(
        "another process of this job is gone", where=f"seen by rank {idist.get_rank()}", why=why.splitlines()[0][-300:],
        fix="the same command resumes from the last checkpoint", code="E_RANK",
    )  # fmt: skip
