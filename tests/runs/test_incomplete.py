"""Data of which a part is missing: voxels, labels or channels that a case lacks, from the case list to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.evaluate import evaluate
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save, tiny_config, tiny_dataset


def trained(folder: Path, manifest: Path, *sets: str, code: int = 0, **replaced: str) -> dict[str, Any]:
    """Train the tiny network, and return the scores of its report."""
    config = tiny_config(folder, manifest, **replaced)
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(config), *words]) == code
    return json.loads((folder / "run/report/metrics.json").read_text()) if code == 0 else {}


def changed(manifest: Path, **content: Any) -> Path:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | content))
    return manifest


# ---- voxels that nobody has annotated


def test_what_is_ignored_is_scored_nowhere(tmp_path: Path) -> None:
    """One half of every label map is hidden: scores and report are of the other half. As a label it would be both."""
    found = []
    for fill, ignore in ((7, 7), (1, None)):
        folder = tmp_path / str(len(found))
        manifest = tiny_dataset(folder)
        for file in folder.glob("*_seg.nii.gz"):
            label = np.asanyarray(nib.load(file).dataobj).copy()
            label[:9] = fill
            save(file, label)
        if ignore is not None:
            changed(manifest, ignore=ignore)
        found.append(trained(folder, manifest))
    assert found[0]["cases"] != found[1]["cases"]
    assert "notes" not in found[1]
    row = found[0]["cases"]["case4"]["ball"]
    half = np.asanyarray(nib.load(tmp_path / "0/case4_seg.nii.gz").dataobj)[9:]
    written = np.asanyarray(nib.load(tmp_path / "0/run/validation/case4.nii.gz").dataobj)
    assert row["reference_voxels"] == (half == 1).sum() > 0
    assert row["predicted_voxels"] == (written[9:] == 1).sum()
    assert row["dice"] == pytest.approx(
        2 * ((half == 1) & (written[9:] == 1)).sum() / ((half == 1).sum() + (written[9:] == 1).sum())
    )
    assert "value 7 in a reference (ignore)" in found[0]["notes"][0]
    assert "value 7 in a reference (ignore)" in (tmp_path / "0/run/report/report.html").read_text()
    assert json.loads((tmp_path / "0/run/held_out.json").read_text())["ignore"] == 7
    log = [json.loads(line) for line in (tmp_path / "0/run/log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)


def test_predictions_are_scored_where_there_is_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of eight slices, four are annotated: two of them with the label, of which one is found and one more invented."""
    reference = np.zeros((8, 4, 4), np.uint8)
    reference[:2], reference[4:] = 1, 3
    predicted = np.zeros_like(reference)
    predicted[1:3], predicted[4:7] = 1, 1
    save(tmp_path / "x_seg.nii.gz", reference)
    save(tmp_path / "x.nii.gz", np.random.default_rng(0).normal(size=reference.shape).astype(np.float32))
    save(tmp_path / "p/x.nii.gz", predicted)
    listed = {
        "labels": {"0": "background", "1": "a"},
        "training": [{"id": "x", "image": "x.nii.gz", "label": "x_seg.nii.gz"}],
    }
    (tmp_path / "list.json").write_text(json.dumps(listed | {"ignore": 3}))
    given = ["--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "list.json"), "--labels", "a=1"]
    assert run_command(evaluate, [*given, "--output", str(tmp_path / "r")]) == 0
    row = json.loads((tmp_path / "r/metrics.json").read_text())["cases"]["x"]["a"]
    assert (row["dice"], row["reference_voxels"], row["predicted_voxels"]) == (0.5, 32, 32)
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert run_command(evaluate, [*given, "--output", str(tmp_path / "s")]) == 65
    assert "label values 3 are not in the label map" in capsys.readouterr().err


def test_a_real_set_with_an_ignore_label(real_data: Path, tmp_path: Path) -> None:
    """Hippocampi of which the posterior half is hidden: init knows the label, and the network learns the other one."""
    source = json.loads((real_data / "hippocampus/dataset.json").read_text())
    entries = []
    for entry in source["training"][:8]:
        for key in ("image", "label"):
            entry[key] = str(real_data / "hippocampus" / entry[key])
        entries.append(entry | {"id": Path(entry["image"]).name.removesuffix(".nii.gz")})
    content = source | {"labels": {"0": "background", "1": "Anterior"}, "ignore": 2, "training": entries}
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert run_command(init, [str(tmp_path / "list.json"), "--output", str(tmp_path / "my.yaml")]) == 0
    written = json.loads((tmp_path / "my.json").read_text())
    assert (written["ignore"], written["labels"]) == (2, {"0": "background", "1": "anterior"})
    options = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [lightweight, window]}"
    sets = [f"network.options={options}", "train.epochs=8", "train.patch_size=[24, 24, 24]", "data.workers=0", "train.ema=0",
            "data.split={by: last, count: 2}", f"output={tmp_path / 'run'}", "train.validate_every=4"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    report = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert list(report["targets"]) == ["anterior"]
