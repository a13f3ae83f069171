"""Free memory, and the error of a file that does not fit into it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from cmt_med.base.errors import DataError


def bytes_left() -> int:
    """Memory that the system, and the container around this process, have left.

    Raises:
        OSError, ValueError, IndexError: where the system does not say.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a bound ("max")
        bound, now = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left = min(left, max(0, bound - now + int(rows.get("inactive_file", 0))))
    return left


def bytes_used() -> int:
    """Addresses that this process has; errors as of :func:`bytes_left`."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def within_what_is_left() -> Iterator[None]:
    """Within the context, asking for more memory than there is raises MemoryError, where the system would end the process."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError, IndexError):  # a system that does not say what is left
            most = bytes_used() + bytes_left()
            if limits[0] == resource.RLIM_INFINITY or most < limits[0]:
                resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
                stack.callback(resource.setrlimit, resource.RLIMIT_AS, limits)
        yield


def bytes_free() -> int | None:
    """Memory that this process may still take: what is left, or the rest of its own limit; None where nothing says so."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], bytes_used()
        return bytes_left() if limit == resource.RLIM_INFINITY else max(0, min(bytes_left(), limit - used))
    return None


def no_memory(where: str, why: str = "a small file can unpack to a thousand times its size") -> DataError:
    """E_MEMORY, for a file or a case."""
    return DataError(
        "the voxels do not fit into memory", where=where, why=why,
        fix="use a machine with more memory, or crop or resample the volume", code="E_MEMORY",
    )  # fmt: skip
