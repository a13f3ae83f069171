"""The brain-tumour story: phantom (or your data) -> train -> infer -> evaluate -> report.

python pipelines/brats.py [--manifest YOUR.json] [--output FOLDER]

The run folder is runs/brats for the phantom and runs/brats_NAME for the case list NAME.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/brats.yaml"


def main() -> int:
    """Run the chain; a failing command ends it with that command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="case list of your data; default: the phantom")
    parser.add_argument("--output", type=Path, help="run folder")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    name = f"brats_{options.manifest.stem}" if options.manifest else "brats"
    output = options.output.resolve() if options.output else root / "runs" / name
    train = ["train", "--config", CONFIG, "--output", str(output)]
    train += ["--set", f"data.manifest={options.manifest.resolve()}"] if options.manifest else []
    # Training ends with a report on the held-out cases already; the two commands after it do the same as a user would for
    # cases of their own: held_out.json is the case list of what training has not seen.
    held_out, predictions = output / "held_out.json", output / "predictions"
    steps = [
        train,
        ["infer", "--model", str(output / "model"), "--input", str(held_out), "--output", str(predictions)],
        ["evaluate", "--predictions", str(predictions), "--references", str(held_out),
         "--output", str(output / "evaluation")],
    ]  # fmt: skip
    for step in steps:
        print(f"== cmt-med {' '.join(step)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "cmt_med", *step], cwd=root, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
