"""HD95, surface Dice and Dice of a full-size case with three regions, beside MONAI on the same masks, on one core.

python benchmarks/metrics.py [--rounds 5] [--json runs/metrics.json]

Three bumpy nested regions in 240 × 240 × 155 voxels and a prediction that is a little off; then the same with stray
voxels in opposite corners of the image. Ours and MONAI take turns in one process bound to one core; MONAI computes
compute_hausdorff_distance (95%) and compute_surface_dice (2 mm). Also all scores of `evaluate` from label maps, and
lesion-wise scores with many small components. Prints and writes medians in seconds, and how far the numbers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from cmt_med.evaluation.lesions import LESION_RULES, lesion_scores
from cmt_med.evaluation.metrics import case_metrics
from cmt_med.evaluation.overlap import count_overlap
from cmt_med.evaluation.surface import surface_distances

SHAPE, SPACING, TOLERANCE = (240, 240, 155), (1.0, 1.0, 1.0), 2.0
REGIONS = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
Numbers = list[tuple[float, float]]


def bumpy(centre: tuple[float, float, float], radius: float, height: float) -> np.ndarray:
    """A ball with a surface that waves by ``height`` voxels."""
    x, y, z = (np.arange(n, dtype=np.float32) - c for n, c in zip(SHAPE, centre, strict=True))
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    waves = np.sin(x / 4) * np.sin(y / 5) * np.sin(z / 3)
    return np.asarray(np.sqrt(x * x + y * y + z * z) + height * waves < radius)


def labels(centre: tuple[float, float, float], radii: tuple[float, float, float], height: float) -> np.ndarray:
    """A label map of three nested regions (2 around 1 around 3)."""
    found = np.zeros(SHAPE, np.uint8)
    for radius, value in zip(radii, (2, 1, 3), strict=True):
        found[bumpy(centre, radius, height)] = value
    return found


def ours(predicted: list[np.ndarray], reference: list[np.ndarray]) -> Numbers:
    """HD95 and surface Dice of each region, and its Dice on the way."""
    numbers = []
    for p, r in zip(predicted, reference, strict=True):
        count_overlap(p, r)
        found = surface_distances(p, r, SPACING)
        assert found is not None
        numbers.append((found.hd95, found.surface_dice(TOLERANCE)))
    return numbers


def monais(predicted: torch.Tensor, reference: torch.Tensor) -> Numbers:
    """The same of MONAI, from masks (1, 3, D1, D2, D3)."""
    settings: dict[str, Any] = {"include_background": True, "spacing": SPACING}
    distance = compute_hausdorff_distance(predicted, reference, percentile=95, **settings)
    dice = compute_surface_dice(predicted, reference, [TOLERANCE] * len(REGIONS), **settings)
    return list(zip(distance[0].tolist(), dice[0].tolist(), strict=True))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def measure(predicted: np.ndarray, reference: np.ndarray, rounds: int) -> dict[str, float]:
    """Ours and MONAI's in turn; the first turn warms up."""
    masks = [[np.isin(m, values) for values in REGIONS.values()] for m in (predicted, reference)]
    tensors = [torch.from_numpy(np.stack(m))[None] for m in masks]
    seconds: dict[str, list[float]] = {"ours": [], "monai": [], "all scores": []}
    for turn in range(rounds + 1):
        mine, numbers = timed(lambda: ours(*masks))
        theirs, expected = timed(lambda: monais(*tensors))
        everything, _ = timed(lambda: case_metrics(predicted, reference, REGIONS, spacing=SPACING))
        if turn:
            for name, value in (("ours", mine), ("monai", theirs), ("all scores", everything)):
                seconds[name].append(value)
    row = {name: statistics.median(values) for name, values in seconds.items()}
    return row | {
        "slowest": max(seconds["ours"]),
        "ratio": row["monai"] / row["ours"],
        "difference": float(np.abs(np.subtract(numbers, expected)).max()),
    }


def measure_lesions(predicted: np.ndarray, reference: np.ndarray, share: float) -> dict[str, float]:
    """Lesion-wise scores of three regions with ``share`` of all voxels added at random to both."""
    rng = np.random.default_rng(0)
    total, components = 0.0, 0
    for values in REGIONS.values():
        p, r = (np.isin(m, values) | (rng.random(SHAPE) < share) for m in (predicted, reference))
        seconds, found = timed(lambda p=p, r=r: lesion_scores(p, r, SPACING, LESION_RULES["met"]))
        total, components = total + seconds, components + found.counted
    return {"share": share, "counted": components, "seconds": total}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/metrics.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of MONAI about its own arguments
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    reference = labels((100, 120, 80), (38, 25, 16), 8)
    predicted = labels((101, 121, 80), (37, 26, 16), 7)
    stray = predicted.copy()
    stray[:3, :3, :3] = stray[-3:, -3:, -3:] = 3
    record: dict[str, Any] = {"shape": SHAPE, "cores": 1, "rounds": options.rounds}
    print(
        f"{'case':14s} {'ours':>8s} {'slowest':>8s} {'MONAI':>8s} {'ratio':>6s} {'difference':>11s} {'all scores':>11s}"
    )
    for name, volume in (("compact", predicted), ("stray corners", stray)):
        row = record[name] = measure(volume, reference, options.rounds)
        print(
            f"{name:14s} {row['ours']:8.3f} {row['slowest']:8.3f} {row['monai']:8.3f} {row['ratio']:6.1f} "
            f"{row['difference']:11.1e} {row['all scores']:11.3f}"
        )
    record["lesions"] = [measure_lesions(predicted, reference, share) for share in (0.0, 0.0001, 0.001)]
    for row in record["lesions"]:
        print(f"lesion-wise, {row['counted']:6d} lesions and false positives: {row['seconds']:.2f} s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
