"""Forward and training step of our default network beside MONAI's networks, in turn, in one run.

python benchmarks/peers.py [--size 96] [--rounds 3] [--json runs/peers.json]

Prints and writes medians in seconds and ratios to ours: above 1, the peer is slower. Float32, batch 1, 4 channels in, 3 out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from cmt_med.networks import NETWORKS as REGISTRY
from cmt_med.networks import build_network
from cmt_med.runtime import dense_convolution_rate

NETWORKS = ("cmt_unetr", *(name for name in REGISTRY if name.startswith("monai_") and name != "monai_swin_unetr_v2"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/peers.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(1, 4, *(options.size,) * 3)
    networks = {name: build_network(name, spatial_dims=3, in_channels=4, num_classes=3) for name in NETWORKS}
    seconds: dict[str, dict[str, list[float]]] = {name: {"forward": [], "step": []} for name in networks}
    rate = dense_convolution_rate()
    for turn in range(options.rounds + 1):  # the first turn warms up
        for name, network in networks.items():
            begun = time.perf_counter()
            with torch.inference_mode():
                network.eval()(x)
            middle = time.perf_counter()
            network.zero_grad(set_to_none=True)
            network.train()(x).square().mean().backward()
            if turn:
                seconds[name]["forward"].append(middle - begun)
                seconds[name]["step"].append(time.perf_counter() - middle)
    result = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()}
        | {"parameters": sum(p.numel() for p in networks[name].parameters())}
        for name, kinds in seconds.items()
    }
    ours = result["cmt_unetr"]
    print(f"dense 3×3×3 convolutions: {rate:.0f} GFLOP/s, {options.threads} threads, {options.size}³")
    print(f"{'network':16s} {'M params':>9s} {'forward':>9s} {'ratio':>6s} {'step':>9s} {'ratio':>6s}")
    for name, row in result.items():
        print(
            f"{name:16s} {row['parameters'] / 1e6:9.2f} {row['forward']:9.3f} {row['forward'] / ours['forward']:6.1f} "
            f"{row['step']:9.3f} {row['step'] / ours['step']:6.1f}"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"rate_gflops": rate, "threads": options.threads, "size": options.size, "seconds": result}
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
