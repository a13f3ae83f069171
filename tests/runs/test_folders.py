"""Trainings on folders and tables as they are: ``data.manifest: FOLDER`` is what ``init`` would list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save
from tests.runs.test_classification import TINY, stripes


def pairs(folder: Path) -> Path:
    """Six images, and their label maps in a folder beside them."""
    rng = np.random.default_rng(0)
    for i in range(6):
        label = np.zeros((12, 13, 11), np.uint8)
        label[3:9, 3 : 6 + i, 3:8] = 1
        save(folder / f"images/p{i}.nii.gz", (label + rng.normal(0, 0.3, label.shape)).astype(np.float32))
        save(folder / f"labels/p{i}.nii.gz", label)
    return folder


def table(folder: Path) -> Path:
    """The same by a table, with columns of any name for channels."""
    pairs(folder)
    lines = [f"p{i},images/p{i}.nii.gz,labels/p{i}.nii.gz" for i in range(6)]
    (folder / "t.csv").write_text("\n".join(["id,image,label", *lines]) + "\n")
    return folder / "t.csv"


@pytest.mark.parametrize("make", [pairs, table, stripes])
def test_train_on_what_is_there(tmp_path: Path, make: object) -> None:
    source = stripes(tmp_path / "d", 3) if make is stripes else make(tmp_path / "d")  # type: ignore[operator]
    assert run_command(init, [str(source), "--output", str(tmp_path / "my.yaml")]) == 0
    patch = "[32, 32]" if make is stripes else "[8, 8, 8]"
    sets = [f"network.options={TINY}", "train.epochs=1", f"train.patch_size={patch}", "data.workers=0", "folds=2"]
    words = [word for one in sets for word in ("--set", one)]
    assert (
        run_command(train, ["--config", str(tmp_path / "my.yaml"), *words, "--output", str(tmp_path / "listed")]) == 0
    )
    again = ["--config", str(tmp_path / "my.yaml"), *words, "--set", f"data.manifest={source}"]
    assert run_command(train, [*again, "--output", str(tmp_path / "direct")]) == 0
    reports = [json.loads((tmp_path / f"{run}/report/metrics.json").read_text()) for run in ("listed", "direct")]
    assert len(reports[0]["cases"]) == 6
    assert reports[0]["cases"] == reports[1]["cases"]
    model = tmp_path / "direct/fold_1/model/model.safetensors"
    before = model.stat().st_mtime_ns
    assert run_command(train, [*again, "--output", str(tmp_path / "direct")]) == 0
    assert model.stat().st_mtime_ns == before  # a finished fold is known again
