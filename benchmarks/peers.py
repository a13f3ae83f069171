"""Forward and training step of our default network beside its peers, in turn, in one run, on a CPU or a GPU.

python benchmarks/peers.py [--size 96] [--rounds 3] [--device cpu] [--networks NAME ...] [--json runs/peers.json]

Prints and writes, for every network: median seconds and ratios to ours (above 1, the peer is slower), GFLOP/s, that as a
share of the best dense 3×3×3 convolution, and the share of a roofline summed over its operations; peak memory of each in a
process of its own. Batch 1, 4 channels in, 3 out, float32 (--bf16 for autocast). A training step is forward, loss and
backward, without the optimizer. `nnunet`, nnU-Net's plain network, takes part where `nnunetv2` is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import Roofline, bandwidth, dense_rate, in_own_process, interleaved, peak_rss, table
from torch import Tensor, nn

from cmt_med.compute.machine import reuse_memory
from cmt_med.networks import build_network

OURS = "cmt_unetr"
PEERS: dict[str, dict[str, Any]] = {
    OURS: {"name": "cmt_unetr"},
    "segresnet_16": {"name": "monai_segresnet"},
    "unetr_16": {"name": "monai_unetr"},
    "dynunet": {"name": "monai_dynunet"},
    "swin_unetr_24": {"name": "monai_swin_unetr", "feature_size": 24},
    "swin_unetr_48": {"name": "monai_swin_unetr"},
    "mednext_s": {"name": "monai_mednext"},
    "nnunet": {},
}


def build(name: str, size: int) -> nn.Module:
    """A network of the table, 4 channels in, 3 out."""
    torch.manual_seed(0)
    if name == "nnunet":
        return _nnunet()
    settings = dict(PEERS[name])
    if name == "unetr_16":
        settings["img_size"] = size
    return build_network(settings.pop("name"), spatial_dims=3, in_channels=4, num_classes=3, **settings)


def _nnunet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(  # as nnU-Net plans it for isotropic patches
        4, 6, [32, 64, 128, 256, 320, 320], nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], 2, 3, 2, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip


def forward(network: nn.Module, x: Tensor, bf16: bool) -> None:
    """Inference."""
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        network.eval()(x)


def step(network: nn.Module, x: Tensor, bf16: bool) -> None:
    """Forward in train mode, a loss, backward."""
    network.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        loss = network.train()(x).float().square().mean()
    loss.backward()


KINDS: dict[str, Callable[[nn.Module, Tensor, bool], None]] = {"forward": forward, "step": step}


def rooflines(network: nn.Module, x: Tensor, bf16: bool) -> dict[str, Roofline]:
    """The operations of both."""
    found = {}
    for kind, run in KINDS.items():
        with Roofline() as counted:
            if kind == "forward":  # in inference mode some operations would not be seen as their parts
                with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                    network.eval()(x)
            else:
                run(network, x, bf16)
        found[kind] = counted
    return found


def memory(name: str, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak bytes of a network in this process, and what the process held before there was one."""
    device = torch.device(options.device)
    before = peak_rss() if device.type == "cpu" else 0
    network, x = build(name, options.size).to(device), torch.randn(1, 4, *(options.size,) * 3, device=device)
    for _ in range(2):
        KINDS[kind](network, x, options.bf16)
    peak = peak_rss() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
    return {"before": before, "peak": peak}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything about the networks asked for."""
    device = torch.device(options.device)
    x = torch.randn(1, 4, *(options.size,) * 3, device=device)
    networks = {name: build(name, options.size).to(device) for name in options.networks}
    work = {
        f"{kind} {name}": partial(run, network, x, options.bf16)
        for kind, run in KINDS.items()
        for name, network in networks.items()
    }
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    rates = [(dense_rate(device, dtype), bandwidth(device))]
    seconds = interleaved(work, device, rounds=options.rounds)
    rates.append((dense_rate(device, dtype), bandwidth(device)))
    dense, moved = (max(values) for values in zip(*rates, strict=True))
    result: dict[str, Any] = {}
    for name, network in networks.items():
        row: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters())}
        for kind, counted in rooflines(network, x, options.bf16).items():
            taken = seconds[f"{kind} {name}"]
            row[kind] = {
                "seconds": taken,
                "ratio": taken / seconds[f"{kind} {options.networks[0]}"],
                "gflops": counted.flops() / taken / 1e9,
                "share_of_dense": counted.flops() / taken / dense,
                "share_of_roofline": counted.seconds(dense, moved) / taken,
            }
            if not options.no_memory:
                again = ["--size", str(options.size), "--threads", str(options.threads), "--device", options.device]
                again += ["--bf16"] if options.bf16 else []
                row[kind]["memory"] = in_own_process([*again, "--memory-of", name, kind])
        result[name] = row
    return {"dense_gflops": dense / 1e9, "bandwidth_gb": moved / 1e9, "networks": result}


def show(record: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for name, row in record["networks"].items():
        cells = [name, f"{row['parameters'] / 1e6:.1f}"]
        for kind in KINDS:
            r = row[kind]
            cells += [
                f"{r['seconds']:.3f}",
                f"{r['ratio']:.1f}",
                f"{r['gflops']:.0f} ({100 * r['share_of_dense']:.0f}%)",
            ]
            cells += [f"{100 * r['share_of_roofline']:.0f}%"]
            cells += [f"{r['memory']['peak'] / 1e9:.2f}" if "memory" in r else "-"]
        rows.append(cells)
    per_kind = [[f"{kind}, s", "ratio", "GFLOP/s (of dense)", "of roofline", "peak GB"] for kind in KINDS]
    return table(["network", "M parameters", *per_kind[0], *per_kind[1]], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--networks", nargs="+", choices=PEERS, default=None, help="the first is what ratios are to")
    parser.add_argument("--no-memory", action="store_true", help="without the processes that measure memory")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("runs/peers.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    if options.memory_of:
        print(json.dumps(memory(*options.memory_of, options)))
        return
    if options.networks is None:
        options.networks = [name for name in PEERS if name != "nnunet" or importlib.util.find_spec("nnunetv2")]
    record = {"threads": options.threads, "size": options.size, "device": options.device} | measure(options)
    print(
        f"dense 3×3×3 convolutions {record['dense_gflops']:.0f} GFLOP/s, memory {record['bandwidth_gb']:.1f} GB/s, "
        f"{options.threads} threads, {options.size}³, {options.device}"
    )
    print(show(record))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
