"""Inference of a whole volume: our sliding windows beside MONAI's, tensor in, labels out.

python benchmarks/inference.py [--shape 240 240 155] [--window 96] [--batch 1] [--sample 4] [--rounds 1]

Three questions. What the engine adds: its time beside (windows computed) x (time of one bare window at the same batch). What
users gain: MONAI's SlidingWindowInferer with SwinUNETR-48 beside ours; it is timed on --sample windows and scaled by their
number, since it takes half an hour on two cores (--sample 0: in full). What skipping brings: the same network in the same
memory format under MONAI's inferer when half of the windows are empty; outside the foreground both give background, and inside
labels are compared. 4 channels in, 3 out, untrained, overlap 0.5, Gaussian weights, float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import table, wait
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor, nn

from cmt_med.blocks.conv import channels_last
from cmt_med.compute.machine import reuse_memory
from cmt_med.inference.predict import Windows, predict
from cmt_med.inference.windows import window_starts
from cmt_med.networks import build_network
from cmt_med.tasks.segmentation.labels import scheme_of
from cmt_med.tasks.segmentation.task import Segmentation

EXCLUSIVE = Segmentation(scheme_of({}, None), {})
"""Softmax over all channels, whatever they are called."""


class Counted(nn.Module):
    """A network, and how many windows it has seen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.windows = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.windows += len(x)
        result: Tensor = self.network(x)
        return result


def ours(network: nn.Module, image: Tensor, windows: Windows, inside: Tensor | None) -> Tensor:
    """Labels (D1, D2, D3)."""
    accumulator = predict(network, image, windows, EXCLUSIVE, inside=inside)
    labels = torch.empty(image.shape[1:], dtype=torch.uint8)
    for _, rows in accumulator.slabs():
        labels[rows] = accumulator.values[0][:, rows].argmax(0).to(torch.uint8)
    return labels


def monai(network: nn.Module, image: Tensor, options: argparse.Namespace, inside: Tensor | None) -> Tensor:
    """The same with MONAI's inferer."""
    window = [min(n, options.window) for n in image.shape[1:]]
    inferer = SlidingWindowInferer(window, sw_batch_size=options.batch, overlap=0.5, mode="gaussian")
    labels: Tensor
    with torch.inference_mode():
        labels = inferer(image[None], lambda x: network(channels_last(x)))[0].argmax(0).to(torch.uint8).cpu()
        if inside is not None:
            labels[~inside.cpu()] = 0
    return labels


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds and result."""
    begun = time.perf_counter()
    result = work()
    wait(device)
    return time.perf_counter() - begun, result


def half_empty(shape: list[int], window: int) -> Tensor:
    """A box of foreground from one end of the first axis that about half of the windows touch."""
    grids = [window_starts(n, min(n, window), 0.5) for n in shape]
    places = list(itertools.product(*grids))
    inside = torch.zeros(shape, dtype=torch.bool)
    ends = range(8, shape[0])
    middle = window // 8
    inside_of = lambda end: sum(start[0] < end for start in places)  # noqa: E731
    end = min(ends, key=lambda n: (abs(inside_of(n) - len(places) / 2), n))
    inside[:end, middle:-middle, middle:-middle] = True
    return inside


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All three."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    image = torch.randn(4, *options.shape, device=device)
    network = Counted(build_network("cmt_unetr", spatial_dims=3, in_channels=4, num_classes=3).to(device).eval())
    swin = Counted(build_network("monai_swin_unetr", spatial_dims=3, in_channels=4, num_classes=3).to(device).eval())
    windows = Windows((options.window,) * 3, 0.5, options.batch)
    inside = half_empty(options.shape, options.window).to(device)
    patch = channels_last(torch.randn(options.batch, 4, *windows.over(options.shape), device=device))

    def bare(which: nn.Module, count: int) -> list[float]:
        with torch.inference_mode():
            return [timed(lambda: which(patch), device)[0] for _ in range(count)]

    bare(network.network, 2)
    if options.sample:
        bare(swin.network, 1)
    times: dict[str, list[float]] = {name: [] for name in ("bare", "swin", "ours", "ours, half", "monai, half")}
    counts: dict[str, int] = {}
    for _ in range(options.rounds):
        times["bare"] += bare(network.network, 5)
        for name, work in (
            ("ours", lambda: ours(network, image, windows, None)),
            ("ours, half", lambda: ours(network, image, windows, inside)),
            ("monai, half", lambda: monai(network, image, options, inside)),
        ):
            network.windows = 0
            seconds, labels = timed(work, device)
            times[name].append(seconds)
            counts[name] = network.windows
            times["bare"] += bare(network.network, 5)
            if name == "ours, half":
                found = labels
        times["swin"] += (
            bare(swin.network, -(-options.sample // options.batch))
            if options.sample
            else [timed(lambda: monai(swin, image, options, None), device)[0]]
        )
    medians = {name: statistics.median(values) for name, values in times.items()}
    if options.sample:
        medians["swin"] *= counts["ours"] / options.batch
    kept = inside.cpu()
    return {
        "seconds": medians,
        "windows": counts,
        "over_bare": medians["ours"] / (counts["ours"] / options.batch * medians["bare"]),
        "swin_ratio": medians["swin"] / medians["ours"],
        "swin_scaled": bool(options.sample),
        "half_ratio": medians["monai, half"] / medians["ours, half"],
        "labels_differ_inside": int((found != labels)[kept].sum()),
        "labelled_outside": int(found[~kept].count_nonzero()),
        "voxels_inside": int(kept.sum()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155])
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sample", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("runs/inference.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    record = measure(options)
    rows = [(name, record["windows"].get(name, ""), f"{s:.2f}") for name, s in record["seconds"].items()]
    print(table(["what", "windows", "seconds"], rows))
    print(json.dumps({name: value for name, value in record.items() if name not in ("seconds", "windows")}, indent=1))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
