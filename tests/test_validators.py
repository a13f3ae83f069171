"""What convert writes, held against the validators of those whose layouts these are: nnU-Net's, and BIDS'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cmt_med.convert import convert
from cmt_med.launch.command import run_command

PLACE = Path(__file__).parents[1] / ".validators"
pytestmark = pytest.mark.skipif(not (PLACE / "nnunetv2").is_dir(), reason="no validators here: make validators")
_VERIFY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], 1)
"""


def data_set(folder: Path, *, channels: tuple[str, ...] = ("t1", "flair"), cases: int = 3) -> Path:
    """Images and label maps with a gap in their numbers, in a case list."""
    rng, entries = np.random.default_rng(0), []
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    folder.mkdir()
    for i in range(cases):
        for channel in channels:
            nibabel.save(
                nibabel.Nifti1Image(rng.normal(100, 9, (9, 8, 7)).astype(np.float32), affine),
                folder / f"{i}_{channel}.nii.gz",
            )
        label = rng.choice([0, 1, 4], (9, 8, 7)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"{i}_seg.nii.gz")
        entries.append({"id": f"case_{i}", "label": f"{i}_seg.nii.gz",
                        "image": {channel: f"{i}_{channel}.nii.gz" for channel in channels}})  # fmt: skip
    content = {
        "modality": dict(enumerate(channels)),
        "labels": {"0": "background", "1": "edge", "4": "core"},
        "training": entries,
    }
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def nnunet_says(folder: Path) -> subprocess.CompletedProcess[str]:
    places = {f"nnUNet_{name}": str(folder.parent) for name in ("raw", "preprocessed", "results")}
    return subprocess.run(
        [sys.executable, "-c", _VERIFY, str(folder)], env=os.environ | places | {"PYTHONPATH": str(PLACE)}, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip


def bids_says(folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, str(PLACE / "bin/bids-validator-deno"), "--json", str(folder)],
        env=os.environ | {"PYTHONPATH": str(PLACE), "PATH": f"{PLACE / 'bin'}:{os.environ['PATH']}"}, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_nnunet_accepts(tmp_path: Path) -> None:
    output = tmp_path / "Dataset007_Made"
    assert run_command(convert, [str(data_set(tmp_path / "d")), "--to", "nnunet", "--output", str(output)]) == 0
    done = nnunet_says(output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "most likely OK" in done.stdout
    (output / "labelsTr/case_1.nii.gz").unlink()  # so that the test can fail
    assert nnunet_says(output).returncode != 0


def test_bids_accepts(tmp_path: Path) -> None:
    output = tmp_path / "bids"
    assert run_command(convert, [str(data_set(tmp_path / "d")), "--to", "bids", "--output", str(output)]) == 0
    for folder in (output, output / "derivatives/labels"):
        issues = bids_says(folder)["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []
    (output / "sub-case0").rename(output / "subject0")
    issues = bids_says(output)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"]
