"""Training with everything, beside training on one batch that is there already: what data and augmentation cost.

python benchmarks/training.py --manifest PATH/dataset.json [--config configs/hippocampus.yaml] [--rounds 5] [--set KEY=VALUE ...]

The same steps (forward, loss, backward, optimizer, average) in turn: on batches as the recipe makes them, cases from the cache,
patches, augmentation; and on one of these batches again and again. Images per second of both, their ratio, and how long the
full recipe waited for data. Each turn is --steps long; what a worker has prepared meanwhile for the next turn is at most two
batches. Nothing is written but the cache of preprocessed cases ($CMT_CACHE).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import table, wait

from cmt_med.compute.machine import reuse_memory
from cmt_med.config.reading import load_config
from cmt_med.data.manifest import load_manifest
from cmt_med.runs.assemble import training_setup
from cmt_med.runs.network import start_network
from cmt_med.runs.plan import fit_device
from cmt_med.runs.prepare import prepare_data
from cmt_med.training.averaging import AveragedWeights
from cmt_med.training.optimiser import parameter_groups
from cmt_med.training.steps import training_step


class Waiting:
    """An iterator, and the seconds spent in it."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.stream, self.seconds = stream, 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        begun = time.perf_counter()
        batch = next(self.stream)
        self.seconds += time.perf_counter() - begun
        return batch


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in turn."""
    device = torch.device(options.device)
    overrides = [f"data.manifest={options.manifest}", *options.set]
    experiment = load_config(options.config, overrides)
    data = prepare_data(experiment, load_manifest(Path(experiment.data.manifest)), None)
    experiment, _ = fit_device(experiment, data, device, overrides)
    network = start_network(experiment, data, fresh=True)[0].to(device)
    parts = training_setup(experiment, data, network)
    optimizer = torch.optim.AdamW(parameter_groups(network, experiment.optimizer.weight_decay), lr=1e-4)
    step = training_step(
        network, optimizer, parts.task.loss, rate_at=lambda _: 1e-4, average=AveragedWeights(network, experiment.train.ema),
        seed=0, clip=experiment.optimizer.clip, amp=experiment.train.amp, augment=parts.augment,
        compiled=experiment.train.compile,
    )  # fmt: skip
    recipe = Waiting(parts.batches(0))
    streams = {"recipe": recipe, "one batch": itertools.repeat(next(recipe))}
    counter = itertools.count(1)
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    waited = 0.0
    for turn in range(options.rounds + 1):  # the first warms up
        for name, stream in streams.items():
            recipe.seconds, begun = 0.0, time.perf_counter()
            for _ in range(options.steps):
                step(SimpleNamespace(state=SimpleNamespace(iteration=next(counter))), [next(stream)])  # type: ignore[arg-type]
            wait(device)
            if turn:
                seconds[name].append((time.perf_counter() - begun) / options.steps)
                waited += recipe.seconds if name == "recipe" else 0.0
    batch = experiment.train.batch_size
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [alone / full for full, alone in zip(seconds["recipe"], seconds["one batch"], strict=True)]
    return {
        "batch_size": batch,
        "patch_size": list(experiment.train.patch_size),
        "workers": experiment.data.workers,
        "images_per_second": {name: batch / value for name, value in medians.items()},
        "step_seconds": medians,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "share_waiting": waited / (sum(seconds["recipe"]) * options.steps),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/hippocampus.yaml"))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("runs/training.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    record = measure(options) | {"threads": options.threads, "device": options.device}
    rows = [
        (name, f"{record['step_seconds'][name]:.4f}", f"{n:.2f}") for name, n in record["images_per_second"].items()
    ]
    print(table(["batches", "step, s", "images per second"], rows))
    print(f"ratio {record['ratio']:.3f}; the recipe waited for data {100 * record['share_waiting']:.1f}% of its time")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
