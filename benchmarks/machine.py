"""What benchmarks share: the machine's two rates, rooflines, interleaved medians, and the peak memory of a process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from cmt_med.blocks.conv import channels_last_weights

SHAPES = ((64, 32), (128, 24), (64, 48))
"""Channels and edge of the dense 3×3×3 convolutions of which the quickest is the machine's rate."""

BANDWIDTH_BYTES = 1 << 28  # per tensor, beyond every cache

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_FREE = {"empty", "empty_like", "empty_strided", "detach", "_unsafe_view"}


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(work: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> float:
    """The quickest of many runs within ``seconds``, after one that warms up."""
    work()
    wait(device)
    best, begun = float("inf"), time.monotonic()
    while time.monotonic() - begun < seconds:
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def dense_rate(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """FLOP/s of the quickest of some dense 3×3×3 convolutions, in channels-last."""
    rates = []
    for channels, edge in SHAPES:
        layer = nn.Conv3d(channels, channels, 3, padding=1).to(device, dtype)
        channels_last_weights(layer)
        x = torch.randn(1, channels, *(edge,) * 3, device=device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            best = best_seconds(lambda layer=layer, x=x: layer(x), device, seconds)  # type: ignore[misc]
        rates.append(2 * channels**2 * 27 * edge**3 / best)
    return max(rates)


def bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes/s of adding two tensors that no cache holds into a third: two reads and a write."""
    a, b, c = (torch.ones(BANDWIDTH_BYTES // 4, device=device) for _ in range(3))
    return 3 * BANDWIDTH_BYTES / best_seconds(lambda: torch.add(a, b, out=c), device, seconds)


class Roofline(TorchDispatchMode):
    """Floating-point operations and bytes of every operation that runs inside.

    Bytes are those of all tensors that go in and come out; views cost nothing. Copies count as operations, so the roofline of
    a wasteful program is a high one: compare seconds, too.

    Attributes:
        operations: (name, FLOPs, bytes) in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # so that linear and its like come back as the operations they consist of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if not func.is_view and packet.__name__ not in _FREE:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            size = sum(t.numel() * t.element_size() for t in tensors)
            self.operations.append((packet.__name__, _flops(packet, args, kwargs, result), size))
        return result

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time that the machine's rates allow, operation by operation."""
        return sum(max(flops / flops_per_second, size / bytes_per_second) for _, flops, size in self.operations)

    def flops(self) -> int:
        """Of all operations."""
        return sum(flops for _, flops, _ in self.operations)


def _flops(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    if packet is _ATTENTION:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if packet is _ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    if packet is torch.ops.aten.convolution_backward:  # torch's own count forgets the groups
        grad, _, weight, mask = *args[:3], args[-1]
        return int(2 * weight.numel() * grad.numel() // grad.shape[1] * sum(mask[:2]))
    count = flop_registry.get(packet)
    return int(count(*args, **kwargs, out_val=result)) if count is not None else 0


def interleaved(
    work: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int, least: float = 1.0
) -> dict[str, float]:
    """Median seconds of each piece of work, run in turn (A B C A B C ...), quick ones several times in their turn.

    Args:
        work: by name.
        device: that is waited for.
        rounds: counted ones; one more before them warms up.
        least: seconds that a turn is filled with.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            begun = time.perf_counter()
            while True:
                start = time.perf_counter()
                run()
                wait(device)
                if turn:
                    taken[name].append(time.perf_counter() - start)
                if turn == 0 or time.perf_counter() - begun >= least:
                    break
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_rss() -> int:
    """The most bytes that this process has held resident (VmHWM); unlike ``ru_maxrss``, it knows nothing of the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def in_own_process(arguments: Sequence[str]) -> Any:
    """The JSON that this script prints last when it is run again with other arguments."""
    command = [sys.executable, sys.argv[0], *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header)]
    lines += ["|".join("---" for _ in lines[0].split(" | "))]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
