"""Each claim of the design, measured beside its alternative, in turn, in one run.

python benchmarks/claims.py                                  the claims about speed and size, a few minutes
python benchmarks/claims.py --manifest hippocampus/dataset.json --output runs/claims [--minutes 5] [--seeds 0 1 2]
                                                             the claims about learning as well; resumable, a JSON a run
python benchmarks/claims.py --only identity ...              one part: windows, fusion, pyramid, embeddings or identity

Prints claim, measured, verdict. What does not hold is printed as such. CPU, float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmt_med.blocks.attention import attention
from cmt_med.compute.machine import dense_convolution_rate
from cmt_med.networks import build_network

ROOT = Path(__file__).parents[1]
PYRAMID = {4: 64, 8: 128, 16: 256, 32: 512}  # stride: channels
IMAGE = 224


@dataclass(frozen=True)
class Claim:
    """One line of the table; ``holds`` is None for what is only information, or what the seeds do not agree on."""

    claim: str
    measured: str
    holds: bool | None
    undecided: bool = False


def in_turn(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate, measured in turn so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, call in candidates.items():
            begun = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def saved_megabytes(network: nn.Module, x: Tensor) -> float:
    """What autograd keeps for the backward pass, parameters aside."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = network.train()(x)
    del result
    return sum(kept.values()) / 1e6


def forward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass without gradients."""

    def call() -> object:
        with torch.inference_mode():
            return network.eval()(x)

    return call


def step(network: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward and backward pass."""

    def call() -> object:
        network.zero_grad(set_to_none=True)
        return network.train()(x).square().mean().backward()

    return call


def windows(options: argparse.Namespace) -> Iterator[Claim]:
    """Shifted windows against global attention at 224×224 and stride 4."""
    grid = torch.randn(1, 64, IMAGE // 4, IMAGE // 4).contiguous(memory_format=torch.channels_last)
    parts = {
        kind: attention(kind, spatial_dims=2, channels=64, heads=2, kv_stride=1, window=7, shifted=True)
        for kind in ("window", "global", "lightweight")
    }
    times = in_turn({kind: forward(part, grid) for kind, part in parts.items()}, options.rounds)
    ratio = times["global"] / times["window"]
    yield Claim(
        "shifted windows: module at least 3 times as fast as global attention (224², stride 4)",
        f"{ratio:.1f} times ({1e3 * times['window']:.1f} against {1e3 * times['global']:.1f} ms)",
        ratio >= 3,
    )
    naive = in_turn({"naive": forward(_Naive(parts["global"]), grid)}, options.rounds)["naive"]
    yield Claim("the same against a naive softmax", f"{naive / times['window']:.1f} times", None)
    x = torch.randn(1, 3, IMAGE, IMAGE)
    networks = {
        kind: build_network(
            "cmt_unetr",
            spatial_dims=2,
            in_channels=3,
            num_classes=2,
            window=7,
            attention=(kind, "lightweight", "lightweight"),
        )
        for kind in ("window", "global")
    }
    times = in_turn({kind: forward(network, x) for kind, network in networks.items()}, options.rounds)
    memory = {kind: saved_megabytes(network, x) for kind, network in networks.items()}
    yield Claim(
        "shifted windows at stride 4: whole network faster than with global attention",
        f"{times['global'] / times['window']:.2f} times",
        times["global"] > times["window"],
    )
    yield Claim(
        "shifted windows: half the training memory of the whole network",
        f"{memory['window']:.0f} against {memory['global']:.0f} MB kept for the backward pass",
        memory["window"] <= 0.5 * memory["global"],
    )


class _Naive(nn.Module):
    """Global attention with its matrix of weights written out."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            result: Tensor = self.fused(x)
        return result


def fusion(options: argparse.Namespace) -> Iterator[Claim]:
    """Cross-scale fusion against concatenation in the whole network."""
    x = torch.randn(1, 4, 96, 96, 96)
    networks = {
        skip: build_network("cmt_unetr", spatial_dims=3, in_channels=4, num_classes=3, skip=skip)
        for skip in ("concat", "fusion")
    }
    for what, kind in (("forward", forward), ("training step", step)):
        times = in_turn({skip: kind(network, x) for skip, network in networks.items()}, options.rounds)
        extra = times["fusion"] / times["concat"] - 1
        yield Claim(
            f"cross-scale fusion: at most 20% more time than concatenation, {what} at 96³",
            f"{100 * extra:+.0f}% ({times['fusion']:.2f} against {times['concat']:.2f} s)",
            extra <= 0.2,
        )


def attention_macs(channels: int, size: int) -> int:
    """Multiply-accumulates of one global attention on a square grid, both products included."""
    part = attention(
        "global", spatial_dims=2, channels=channels, heads=channels // 32, kv_stride=1, window=7, shifted=False
    )
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        part(torch.zeros(1, channels, size, size))
    return counter.get_total_flops() // 2


def pyramid(_: argparse.Namespace) -> Iterator[Claim]:
    """The same attention modules over the pyramid's strides, and at stride 4 throughout."""
    over = sum(attention_macs(channels, IMAGE // stride) for stride, channels in PYRAMID.items())
    flat = sum(attention_macs(channels, IMAGE // 4) for channels in PYRAMID.values())
    narrow = len(PYRAMID) * attention_macs(PYRAMID[4], IMAGE // 4)
    yield Claim(
        "pyramid: at least 4 times fewer multiply-accumulates in attention than at stride 4 throughout (224²)",
        f"{flat / over:.1f} times ({over / 1e9:.2f} against {flat / 1e9:.2f} G)",
        flat >= 4 * over,
    )
    yield Claim("the same against stride 4 and 64 channels throughout", f"{narrow / over:.1f} times", None)


def train(
    manifest: Path, folder: Path, *, minutes: float, seed: int, threads: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Train one variant on the hippocampus set, or read what an earlier call left; an interrupted one goes on."""
    metrics = folder / "report" / "metrics.json"
    if not metrics.exists():
        command = [sys.executable, "-m", "cmt_med.train", "--config", str(ROOT / "configs" / "hippocampus.yaml")]
        command += ["--threads", str(threads)]
        values = {
            "data.manifest": str(manifest),
            "seed": str(seed),
            "train.max_minutes": str(minutes),
            "train.validate_every": "2",
            "network.options": json.dumps(options),
            "output": str(folder),
        }
        for key, value in values.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(metrics.read_text())["summary"]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "options": options,
        "seed": seed,
        "minutes": minutes,
        "threads": threads,
        "dice": summary["mean"]["mean"],
        "steps": rows[-1]["step"],
        "curve": [[row["seconds"], row["dice"]] for row in rows if "dice" in row],
    }


def learned(options: argparse.Namespace, variants: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Every variant with every seed; variants take turns, so that each has the same share of slow spells."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in options.seeds:
        for name, choice in variants.items():
            run = train(
                options.manifest,
                options.output / _run_name(name, seed, options),
                minutes=options.minutes,
                seed=seed,
                threads=options.threads,
                options=choice,
            )
            (options.output / f"{_run_name(name, seed, options)}.json").write_text(json.dumps(run, indent=1))
            print(f"  {name}, seed {seed}: Dice {run['dice']:.4f}, {run['steps']} steps", flush=True)
            results[name].append(run)
    return results


def _run_name(name: str, seed: int, options: argparse.Namespace) -> str:
    """Runs under other bounds are other runs."""
    return f"{name}-{options.minutes:g}min-{options.threads}threads-seed{seed}"


def _better(claim: str, these: Sequence[dict[str, Any]], those: Sequence[dict[str, Any]]) -> Claim:
    """Whether the first runs have the better Dice; decided only where every seed says the same."""
    signs = {one["dice"] > other["dice"] for one, other in zip(these, those, strict=True)}
    agreed = signs.pop() if len(signs) == 1 else None
    return Claim(claim, f"{_spread(these)} against {_spread(those)}", agreed, undecided=agreed is None)


def _mean(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.fmean(run["dice"] for run in runs)


def _spread(runs: Sequence[dict[str, Any]]) -> str:
    return f"{_mean(runs):.4f} ({min(run['dice'] for run in runs):.4f} to {max(run['dice'] for run in runs):.4f})"


def _seconds_to(runs: Sequence[dict[str, Any]], bar: float) -> str:
    reached = [next((seconds for seconds, dice in run["curve"] if dice >= bar), None) for run in runs]
    known = [seconds for seconds in reached if seconds is not None]
    return f"{statistics.median(known):.0f} s" if len(known) == len(runs) else "not by every seed"


def embeddings(options: argparse.Namespace) -> Iterator[Claim]:
    """Grouped dilated token embedding against linear patch embedding on a small real set."""
    runs = learned(options, {f"embedding-{kind}": {"embedding": kind} for kind in ("grouped", "linear")})
    grouped, linear = runs["embedding-grouped"], runs["embedding-linear"]
    yield _better("grouped dilated token embedding: better final Dice than linear patch embedding", grouped, linear)
    bar = 0.8
    yield Claim(f"time to Dice {bar}", f"{_seconds_to(grouped, bar)} against {_seconds_to(linear, bar)}", None)


def identity(options: argparse.Namespace) -> Iterator[Claim]:
    """Each attention against none at all."""
    kinds = ("identity", "lightweight", "window", "global")
    runs = learned(options, {f"attention-{kind}": {"attention": [kind] * 3} for kind in kinds})
    without = runs["attention-identity"]
    for kind in kinds[1:]:
        yield _better(
            f"{kind} attention: better Dice than the identity in equal minutes", runs[f"attention-{kind}"], without
        )


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Claim]], bool]] = {  # and whether it trains
    "windows": (windows, False),
    "fusion": (fusion, False),
    "pyramid": (pyramid, False),
    "embeddings": (embeddings, True),
    "identity": (identity, True),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements per candidate")
    parser.add_argument("--threads", type=int, default=2, help="of this process and of each training")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS), metavar="PART")
    parser.add_argument(
        "--manifest", type=Path, help="data list of the hippocampus set; without it, no learning claims"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), help="runs and JSON results")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.manifest is None and {"embeddings", "identity"} & set(options.only) and options.only != sorted(PARTS):
        parser.error("embeddings and identity train on real data: name its case list with --manifest")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    rate = dense_convolution_rate()
    print(f"dense 3×3×3 convolutions: {rate:.0f} GFLOP/s, {options.threads} threads")
    claims = [
        claim
        for name, (part, trains) in PARTS.items()
        if name in options.only and not (trains and options.manifest is None)
        for claim in part(options)
    ]
    for claim in claims:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "(information)"}[claim.holds]
        verdict = "undecided" if claim.undecided else verdict
        print(f"{verdict:14s} {claim.claim}: {claim.measured}")
    result = {"rate_gflops": rate, "date": time.strftime("%Y-%m-%d"), "claims": [asdict(claim) for claim in claims]}
    measured = [
        name for name, (_, trains) in PARTS.items() if name in options.only and not (trains and not options.manifest)
    ]
    name = "claims" if len(measured) == len(PARTS) else "-".join(["claims", *measured])
    (options.output / f"{name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
