"""Errors of libraries when a process, or the memory, is gone, in words that name it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator

import ignite.distributed as idist
import torch

from cmt_med.base.errors import CmtError, ConfigError, Interrupted
from cmt_med.compute.limits import is_out_of_memory
from cmt_med.compute.ranks import lost_rank
from cmt_med.config.schema import Train
from cmt_med.data.patches.loader import SHARED_MEMORY, WorkerGoneError, WorkerHangsError


@contextlib.contextmanager
def explained(train: Train) -> Iterator[None]:
    """Turn faults of workers, ranks and memory within the context into errors that name them.

    Raises:
        Interrupted: E_WORKER for a dead or hung data worker, E_RANK for a lost process of the job.
        ConfigError: E_MEMORY.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        found = _explanation(error, train)
        if found is None:
            raise
        for child in multiprocessing.active_children():
            child.kill()  # a hung one would not leave when asked
        raise found from error


def _explanation(error: Exception, train: Train) -> CmtError | None:
    text = str(error)
    again = "the same command resumes from the last checkpoint"
    ended = error.exit_code if isinstance(error, WorkerGoneError) else None
    # Torch has no type of its own for shared memory that is full: a worker says it, or is ended by SIGBUS at its first write.
    if ended == -signal.SIGBUS or "unable to allocate shared memory" in text:
        return ConfigError(
            "shared memory is full", where=f"{SHARED_MEMORY}, through which data workers hand over batches", code="E_MEMORY",
            why=text.splitlines()[-1][-200:], fix="set data.workers=0, or give the container more (docker run --shm-size=1g)",
        )  # fmt: skip
    if ended == -signal.SIGTERM and idist.get_world_size() > 1:
        return lost_rank(
            "its data worker was ended by SIGTERM, as torchrun does when another process is gone, or the job is stopped"
        )
    if isinstance(error, WorkerGoneError):
        return Interrupted(
            "a data worker is gone", where=f"process {', '.join(map(str, error.pids))}",
            why=f"it has ended with exit code {ended}", code="E_WORKER",
            fix=f"{again}; if the system killed it for want of memory, with fewer data.workers",
        )  # fmt: skip
    if isinstance(error, WorkerHangsError):
        return Interrupted(
            "a data worker hangs", where=f"one of the processes {', '.join(map(str, error.pids))}, which were killed",
            why=f"it gave no batch within {error.seconds:g} s", code="E_WORKER",
            fix=f"look at the disk that holds the cache; {again}",
        )  # fmt: skip
    if is_out_of_memory(error):
        size = "×".join(str(n) for n in train.patch_size)
        return ConfigError(
            "training does not fit into memory", where=f"train.batch_size={train.batch_size}, patches of {size}",
            why=text.splitlines()[0][-200:] or "the system gives no more", code="E_MEMORY",
            fix="set a smaller train.batch_size or train.patch_size with --fresh; network.options.checkpointing saves some",
        )  # fmt: skip
    if idist.get_world_size() > 1 and isinstance(error, torch.distributed.DistError):
        return lost_rank(text)
    gone = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "Connection refused")
    if idist.get_world_size() > 1 and any(part in text for part in gone):
        return lost_rank(text)
    return None
