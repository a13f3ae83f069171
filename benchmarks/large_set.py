"""A set of 100,000 small files: found and described by their headers, then killed half way and repeated.

python benchmarks/large_set.py [--cases 50000] [--folder data/large_set] [--json runs/large_set.json]

Makes image and label map of each case (NIfTI, 8 × 8 × 8 voxels) in folders of 1,000 unless they are there, and runs `cmt-med
inspect --quick` in a process of its own with an empty cache. Prints and writes seconds, the largest memory of the process (its
four decoders have less than 0.1 GB each), and what of the work of a killed call the next one does not do again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np


def make(folder: Path, cases: int) -> None:
    """Write the files."""
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.normal(100, 20, (8, 8, 8)).astype(np.float32), np.eye(4)).to_bytes()
    label = nibabel.Nifti1Image((rng.random((8, 8, 8)) > 0.5).astype(np.uint8), np.eye(4)).to_bytes()
    for i in range(cases):
        for kind, content in (("images", image), ("labels", label)):
            place = folder / kind / f"{i // 1000:03d}"
            if i % 1000 == 0:
                place.mkdir(parents=True, exist_ok=True)
            (place / f"c{i:06d}.nii").write_bytes(content)


def inspected(folder: Path, cache: Path, *, stop_after: int | None = None) -> dict[str, Any]:
    """Run the command; with ``stop_after``, kill it once so many files are remembered."""
    environment = os.environ | {"CMT_CACHE": str(cache)}
    begun = time.monotonic()
    command = [sys.executable, "-m", "cmt_med.inspect", "--quick", "--json", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    while stop_after is not None and process.poll() is None:
        if remembered(cache) >= stop_after:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.2)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    return {
        "seconds": time.monotonic() - begun, "memory_gb": usage.ru_maxrss / 1e6, "status": status,
        "files": json.loads(said)["files"] if said else None,
    }  # fmt: skip


def remembered(cache: Path) -> int:
    """Lines in the journal."""
    return sum(file.read_bytes().count(b"\n") for file in cache.glob("looked_at/*.jsonl"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=Path("data/large_set"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not asked.folder.exists():
        make(asked.folder, asked.cases)
    cache = asked.folder.with_name(f"{asked.folder.name}_cache")
    shutil.rmtree(cache, ignore_errors=True)
    whole = inspected(asked.folder, cache)
    shutil.rmtree(cache)
    killed = inspected(asked.folder, cache, stop_after=asked.cases)
    kept = remembered(cache)
    again = inspected(asked.folder, cache)
    result = {"whole": whole, "killed_with": kept, "again": again}
    print(f"{whole['files']} files: {whole['seconds']:.1f} s, {whole['memory_gb']:.2f} GB")
    print(f"killed after {killed['seconds']:.1f} s with {kept} files seen; the rest in {again['seconds']:.1f} s")
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
