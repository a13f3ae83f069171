"""Where each millisecond of the default network goes: forward pass and training step, by kind of operation.

python benchmarks/where.py [--size 96] [--threads 2] [--network cmt_unetr] [--json runs/where.json]

The quickest of three profiles each; 4 channels in, 3 out, batch 1, float32. A profiled pass is a few per cent slower than others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import table
from peers import KINDS
from torch import Tensor, nn

from cmt_med.compute.machine import reuse_memory
from cmt_med.networks import build_network

GROUPS: dict[str, tuple[str, ...]] = {
    "dense and grouped convolutions": ("convolution",),
    "depthwise convolutions": (),
    "matrix products": ("linear", "mm", "matmul", "addmm", "bmm"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "norms": ("norm",),
    "activations": ("gelu", "leaky_relu"),
    "copies": ("copy_", "cat", "constant_pad", "clone", "index", "fill_", "zero_", "contiguous"),
    "sums and products": ("add", "mul", "sum", "mean", "pow", "square", "sub", "div"),
}


def group_of(name: str, shapes: list[list[int]]) -> str:
    """The group of an operation; a convolution whose kernels see one channel is depthwise."""
    if "convolution" in name:
        weights = [s for s in shapes if len(s) >= 4 and s[-1] <= 3 and s[-2] <= 4]
        depthwise = any(s[1] == 1 and s[0] > 1 for s in weights)
        return "depthwise convolutions" if depthwise else "dense and grouped convolutions"
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), "the rest")


def profiled(run: Callable[[nn.Module, Tensor, bool], None], network: nn.Module, x: Tensor) -> dict[str, float]:
    """Milliseconds by group of the quickest of three passes."""
    best: dict[str, float] = {}
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            run(network, x, False)
        found: dict[str, float] = {}
        for event in profile.key_averages(group_by_input_shape=True):
            group = group_of(event.key, event.input_shapes)
            found[group] = found.get(group, 0.0) + event.self_cpu_time_total / 1e3
        if not best or sum(found.values()) < sum(best.values()):
            best = found
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", default="cmt_unetr")
    parser.add_argument("--json", type=Path, default=Path("runs/where.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    torch.manual_seed(0)
    network = build_network(options.network, spatial_dims=3, in_channels=4, num_classes=3)
    x = torch.randn(1, 4, *(options.size,) * 3)
    record: dict[str, Any] = {}
    for kind, run in KINDS.items():
        run(network, x, False)
        record[kind] = profiled(run, network, x)
    totals = {kind: sum(found.values()) for kind, found in record.items()}
    groups = sorted({g for found in record.values() for g in found}, key=lambda g: -record["step"].get(g, 0.0))
    rows = [
        [
            group,
            *(f"{record[k].get(group, 0.0):.0f} ({100 * record[k].get(group, 0.0) / totals[k]:.0f}%)" for k in KINDS),
        ]
        for group in groups
    ]
    print(table(["ms", *KINDS], [*rows, ["together", *(f"{totals[k]:.0f}" for k in KINDS)]]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
