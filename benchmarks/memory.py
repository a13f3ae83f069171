"""Peak memory of segmenting a large CT with `cmt-med infer`, and whether bounding it changes any label.

python benchmarks/memory.py [--shape 512 512 600] [--classes 2 105] [--limit 4.0] [--compare] [--json runs/memory.json]

A made scan at 0.8 x 0.8 x 1 mm, the default network, untrained (seeded), at 1.5 mm: memory depends on the volume, the window
and the number of classes, not on what was learned. Memory is the sum of VmHWM over all processes of the command, the process
that decodes files among them; the exit code is 1 if it exceeds --limit (GB). With --compare, labels are compared with those of
whole probabilities resampled at once, in a process of its own, which takes tens of gigabytes for many classes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional as F

from cmt_med.config.schema import Inference
from cmt_med.data.case import Case
from cmt_med.data.volumes.gate import load_case
from cmt_med.inference.model import ModelCard, load_model, save_model
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.networks import build_network

SPACING = (0.8, 0.8, 1.0)
EVERY = 0.02  # seconds between looks at a process


def make_scan(path: Path, shape: list[int]) -> None:
    """A smooth made scan in Hounsfield units, int16."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, *(max(2, n // 24) for n in shape)) * 300
    image = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)[0, 0].to(torch.int16).numpy()
    nib.save(nib.Nifti1Image(image, np.diag([*SPACING, 1.0])), path)


def make_model(folder: Path, classes: int, window: int) -> None:
    """A model folder with the default network."""
    settings: dict[str, Any] = {"name": "cmt_unetr", "spatial_dims": 3, "in_channels": 1, "num_classes": classes}
    torch.manual_seed(0)
    network = build_network(**settings)
    card = ModelCard(
        name="benchmark", network=settings, channels=["ct"], labels={f"l{i}" if i else "background": i for i in range(classes)},
        regions=None, preprocessing={"spacing": [1.5] * 3, "crop_foreground": False, "normalise": "image", "clip": [0.5, 99.5]},
        slice_axes=[], mirrored_axes=[], window=[window] * 3, patch=[window] * 3, inference=Inference(overlap=0.5),
        provenance={}, validation=None,
    )  # fmt: skip
    save_model(folder, card, network.state_dict())


def children(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def watched(command: list[str]) -> tuple[float, float]:
    """Run a command; the seconds it took and the sum of its processes' VmHWM in GB."""
    peaks: dict[int, int] = {}
    begun = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        for pid in children(process.pid):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("VmHWM:"):
                    peaks[pid] = int(line.split()[1]) * 1024
        time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.monotonic() - begun, sum(peaks.values()) / 1e9


def whole(scan: Path, model: Path, output: Path) -> None:
    """The labels of whole probabilities, resampled at once."""
    card, weights = load_model(model)
    network = build_network(**card.network)
    network.load_state_dict(weights)
    ensemble = Ensemble([Predictor(network, card, torch.device("cpu"))])
    loaded = load_case(Case("scan", {"ct": (scan, None)}), ["ct"])
    labels, _ = ensemble.labels(ensemble.probabilities(loaded), loaded.grid)
    np.save(output, labels)


def measure(options: argparse.Namespace, classes: int, folder: Path) -> dict[str, Any]:
    """One number of classes."""
    scan, model, output = folder / "scan.nii.gz", folder / f"model_{classes}", folder / f"out_{classes}"
    make_model(model, classes, options.window)
    run = [
        sys.executable,
        "-m",
        "cmt_med.infer",
        "--model",
        str(model),
        "--channel",
        f"ct={scan}",
        "--output",
        str(output),
    ]
    seconds, peak = watched([*run, "--device", "cpu", "--threads", str(options.threads)])
    row: dict[str, Any] = {"classes": classes, "seconds": seconds, "peak_gb": peak}
    if options.compare:
        labels = next(p for p in output.glob("*.nii.gz"))
        other = folder / f"whole_{classes}.npy"
        again = [
            sys.executable,
            sys.argv[0],
            "--whole",
            str(scan),
            str(model),
            str(other),
            "--threads",
            str(options.threads),
        ]
        row["whole_seconds"], row["whole_peak_gb"] = watched(again)
        found, expected = np.asarray(nib.load(labels).dataobj), np.load(other)
        row |= {
            "voxels": int(found.size),
            "different": int((found != expected).sum()),
            "labels": len(np.unique(expected)),
        }
    return row


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 600])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 105])
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=4.0, help="GB")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--whole", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("runs/memory.json"))
    options = parser.parse_args()
    if options.whole:
        torch.set_num_threads(options.threads)
        whole(*options.whole)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_scan(Path(folder) / "scan.nii.gz", options.shape)
        rows = []
        for classes in options.classes:
            rows.append(measure(options, classes, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"shape": options.shape, "limit_gb": options.limit, "rows": rows}, indent=1))
    bad = [row for row in rows if row["peak_gb"] > options.limit or row.get("different")]
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
