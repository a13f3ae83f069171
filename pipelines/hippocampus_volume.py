"""Classification in 3D: hippocampi that are larger or smaller than the median, derived from the masks of MSD Task04.

python pipelines/hippocampus_volume.py PATH/hippocampus [--set KEY=VALUE ...]

The median is that of the training cases; the held-out ones, which the config's split names, have no part in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmt_med.base.files import write_json
from cmt_med.config.reading import load_config
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.splits import split_cases
from cmt_med.data.volumes.gate import load_labels

CONFIG = "configs/hippocampus_volume_3d.yaml"
SMALLER, LARGER = "smaller", "larger"


def main() -> int:
    """Write the case list and train; returns the exit code of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04, with its dataset.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    experiment = load_config(root / CONFIG, options.set)
    manifest = load_manifest(options.data / "dataset.json")
    training, _ = split_cases(list(manifest.cases), experiment.data.split, experiment.seed)
    volumes = {case.name: _volume_ml(case) for case in manifest.cases}
    median = float(np.median([volumes[case.name] for case in training]))
    cases = [replace(c, class_name=LARGER if volumes[c.name] > median else SMALLER) for c in manifest.cases]
    listed = root / experiment.data.manifest
    content = manifest_content(replace(manifest, classes=(SMALLER, LARGER), labels={}), cases)
    write_json(listed, content)
    counts = {name: sum(case.class_name == name for case in cases) for name in (SMALLER, LARGER)}
    print(
        f"median of {len(training)} training cases: {median:.3f} mL; {json.dumps(counts)}; case list: {listed}",
        flush=True,
    )
    words = [word for item in options.set for word in ("--set", item)]
    train = ["train", "--config", CONFIG, "--set", f"data.manifest={listed}", *words]
    return subprocess.run([sys.executable, "-m", "cmt_med", *train], cwd=root, check=False).returncode


def _volume_ml(case: Case) -> float:
    assert case.label is not None  # of every training case of the decathlon
    label, grid = load_labels(case.label, case.name)
    return float(np.count_nonzero(label) * np.prod(grid.spacing) / 1000)


if __name__ == "__main__":
    sys.exit(main())
