"""Where a forward pass moves memory instead of computing, and what each kind of attention costs.

python benchmarks/copies.py [--size 96] [--threads 2] [--json runs/copies.json]

For each kind of attention: the time of a forward pass, of its attention modules, and of every operation that only copies.
Float32, batch 1, 4 channels in, 3 out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmt_med.blocks.cmt import CMTBlock
from cmt_med.compute.machine import dense_convolution_rate
from cmt_med.networks import build_network

COPIES = ("aten::copy_", "aten::cat", "aten::constant_pad_nd", "aten::roll", "aten::repeat", "aten::index")
KINDS = ("identity", "lightweight", "window", "global")


def attention_seconds(network: nn.Module, x: torch.Tensor) -> float:
    """Time inside the attention branches of one forward pass."""
    total, begun = 0.0, 0.0

    def before(*_: object) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def after(*_: object) -> None:
        nonlocal total
        total += time.perf_counter() - begun

    hooks = []
    for block in network.modules():
        if isinstance(block, CMTBlock) and block.has_attention:
            hooks += [block.attention.register_forward_pre_hook(before), block.attention.register_forward_hook(after)]
    network(x)
    for hook in hooks:
        hook.remove()
    return total


def copied(network: nn.Module, x: torch.Tensor) -> tuple[float, list[Any]]:
    """Milliseconds that one forward pass spends on copies, and the operations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        network(x)
    rows = [e for e in profile.key_averages(group_by_input_shape=True) if e.key in COPIES]
    return sum(e.self_cpu_time_total for e in rows) / 1e3, rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/copies.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(1, 4, *(options.size,) * 3)
    networks = {
        kind: build_network("cmt_unetr", spatial_dims=3, in_channels=4, num_classes=3, attention=[kind] * 3).eval()
        for kind in KINDS
    }
    rate = dense_convolution_rate()
    record: dict[str, Any] = {"rate_gflops": rate, "threads": options.threads, "size": options.size}
    print(f"dense 3×3×3 convolutions: {rate:.0f} GFLOP/s, {options.threads} threads, {options.size}³")
    with torch.inference_mode():
        whole: dict[str, list[float]] = {kind: [] for kind in KINDS}
        inside: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(options.rounds + 1):  # the first turn warms up
            for kind, network in networks.items():
                begun = time.perf_counter()
                network(x)
                if turn:
                    whole[kind].append(time.perf_counter() - begun)
                    inside[kind].append(attention_seconds(network, x))
        for kind, network in networks.items():
            seconds, part = statistics.median(whole[kind]), statistics.median(inside[kind])
            print(
                f"\n{kind}: {1e3 * seconds:.0f} ms, of it attention {1e3 * part:.0f} ms ({100 * part / seconds:.0f}%)"
            )
            total, rows = min((copied(network, x) for _ in range(3)), key=lambda found: found[0])
            for event in sorted(rows, key=lambda e: -e.self_cpu_time_total)[:6]:
                shapes = [tuple(shape) for shape in event.input_shapes if shape][:2]
                print(f"  {event.self_cpu_time_total / 1e3:6.1f} ms  {event.count:3d} × {event.key} {shapes}")
            print(f"  {total:6.1f} ms  all copies")
            record[kind] = {"seconds": seconds, "attention_seconds": part, "copies_seconds": total / 1e3}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
