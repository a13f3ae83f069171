"""The surroundings of a run: processes, signals, versions and the speed of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

import cmt_med

log = logging.getLogger(__name__)


LEAVE_SECONDS = 25
"""A stop that was asked for and has not come about by then is forced: nothing newer than the last checkpoint is saved."""


def listen_for_signals() -> Callable[[], bool]:
    """Note SIGINT and SIGTERM; returns whether one has arrived. The second one, or 25 s, interrupts at once."""
    asked = {"stop": False}

    def note(number: int, _: object) -> None:
        if asked["stop"]:
            raise KeyboardInterrupt
        asked["stop"] = True
        signal.alarm(LEAVE_SECONDS)
        log.warning("%s: saving after this step, then leaving; once more leaves at once", signal.Signals(number).name)

    signal.signal(signal.SIGALRM, _interrupt)
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return lambda: asked["stop"]


def stop_listening(*, ending: bool = False) -> None:
    """From now on a signal interrupts at once; or, where the process is about to end with a message, changes nothing."""
    signal.alarm(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ending else _interrupt)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ending else _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Describe what a run ran on, for ``environment.json``."""
    from importlib.metadata import version

    try:
        here = Path(__file__).resolve().parent
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    names = ("torch", "monai", "pytorch-ignite", "nibabel", "numpy", "pydantic")
    return {
        "cmt_med": cmt_med.__version__,
        "git_commit": commit,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in names},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": idist.get_world_size(),
        "seed": seed,
    }


def reuse_memory() -> None:
    """Let the C library keep freed memory for the next tensors, where it is glibc.

    By default it gives every tensor above 32 MB back to the system when it is freed, and the next one costs a page fault for
    each of its 4 kB: a quarter of a forward pass at 96³. Tensors above 256 MB (whole volumes) still go back at once.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            for name, value in _MALLOC.items():
                library.mallopt(name, value)


_MALLOC = {-3: 1 << 28, -1: (1 << 31) - 1, -8: 1}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has held: of the GPU, else resident (VmHWM), in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if platform.system() == "Darwin" else 1024) / 1e9


def dense_convolution_rate(seconds: float = 1.0) -> float:
    """GFLOP/s of a dense 3×3×3 convolution (64 channels, 32³, channels-last) with the threads in use now."""
    x = torch.randn(1, 64, 32, 32, 32).to(memory_format=torch.channels_last_3d)
    layer = torch.nn.Conv3d(64, 64, 3, padding=1)
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last_3d)
    flops = 2 * 64 * 64 * 27 * 32**3
    best, begun = float("inf"), time.monotonic()
    with torch.inference_mode():
        while time.monotonic() - begun < seconds:
            start = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - start)
    return flops / best / 1e9
