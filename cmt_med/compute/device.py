"""The device and the threads that a command works with."""

from __future__ import annotations

import os

import torch

from cmt_med.base.errors import ConfigError
from cmt_med.compute.machine import reuse_memory

THREADS_PER_PROCESSOR = 4
"""Threads that --threads may ask for, for each logical processor of the machine."""


def use_threads(count: int | None) -> None:
    """Limit the threads of tensor operations, and ready the process for them; call before long work.

    Raises:
        ConfigError: for far more threads than the machine has processors, which would wait for each other without end.
    """
    processors = os.cpu_count() or 1
    if count is not None and count > THREADS_PER_PROCESSOR * processors:
        raise ConfigError(
            f"{count} threads are too many", where="--threads",
            why=f"the machine has {processors} processors; more than {THREADS_PER_PROCESSOR} threads on each wait for each other",
            fix=f"give at most {THREADS_PER_PROCESSOR * processors}, or leave it out", code="E_USAGE",
        )  # fmt: skip
    reuse_memory()
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)


def pick_device(name: str) -> torch.device:
    """A device from ``auto``, ``cpu`` or ``cuda:0``.

    Raises:
        ConfigError: for an unknown or absent device.
    """
    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
            raise RuntimeError("not available on this machine")
    except RuntimeError as error:
        raise ConfigError(
            f"device {name!r} cannot be used", where="--device", why=str(error).splitlines()[0], fix="use auto or cpu"
        ) from error
    return device
