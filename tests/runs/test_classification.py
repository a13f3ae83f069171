"""Classes of whole images from init to comparison, in 2D and 3D, alone and in folds."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from cmt_med.compare import compare
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save, tiny_dataset

TINY = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [identity, identity], kv_strides: [2, 1]}"


def stripes(folder: Path, count: int, seed: int = 0) -> Path:
    """Pictures with stripes across or along, of several sizes, in a folder for each class."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        shape = (int(rng.integers(24, 40)), int(rng.integers(24, 40)))
        for name, axis in (("across", 0), ("along", 1)):
            pixels = 90 + 60 * (np.indices(shape)[axis] // 3 % 2) + rng.integers(0, 60, shape)
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{name} ({i}).png")
    return folder


def test_from_class_folders_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stripes(tmp_path / "d", 6)
    assert run_command(init, ["d", "--output", "my.yaml"]) == 0
    said = capsys.readouterr().out
    assert "across (6 cases), along (6 cases)" in said
    assert "s per step" in said
    assert run_command(init, ["d", "--output", "other.yaml", "--convention", "brats2021"]) == 64
    capsys.readouterr()
    sets = [f"network.options={TINY}", "train.epochs=12", "optimizer.lr=1e-2", "data.workers=0", "train.patch_size=[32, 32]",
            "augmentation={affine: 0.0, flip: 0.5}", "train.ema=0.9", "train.batch_size=4", "inference.tta=flips",
            "classification={sampling: balanced, class_weights: balanced, label_smoothing: 0.05}", "folds=2"]  # fmt: skip
    command = ["--config", "my.yaml", *[part for one in sets for part in ("--set", one)]]
    assert run_command(train, command) == 0
    said = capsys.readouterr().out
    assert "macro AUC" in said
    assert "which images are of one patient" in said
    metrics = json.loads((tmp_path / "runs/my/report/metrics.json").read_text())
    assert len(metrics["cases"]) == 12
    assert metrics["summary"]["overall"]["auc"]["value"] > 0.9
    page = (tmp_path / "runs/my/report/report.html").read_text()
    for heading in ("Scores", "ROC curves", "Decisions", "Calibration", "Worst errors", "Training"):
        assert f">{heading}</h2>" in page
    assert "<script" not in page
    marks = {fold: (tmp_path / f"runs/my/fold_{fold}/model/model.safetensors").stat().st_mtime_ns for fold in (0, 1)}
    assert run_command(train, command) == 0  # finished folds are kept
    assert marks == {f: (tmp_path / f"runs/my/fold_{f}/model/model.safetensors").stat().st_mtime_ns for f in (0, 1)}

    stripes(tmp_path / "new", 5, seed=1)
    (tmp_path / "new/along/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert (
        run_command(infer, ["--model", "runs/my", "--input", "new", "--output", "p"]) == 2
    )  # two networks, one bad file
    rows = list(csv.DictReader((tmp_path / "p/predictions.csv").open()))
    assert [row["case"] for row in rows][:2] == ["across_0", "across_1"]
    assert len(rows) == 10
    for row in rows:
        record = json.loads((tmp_path / f"p/{row['case']}.json").read_text())
        assert record["class"] == row["class"] == max(record["probabilities"], key=record["probabilities"].get)
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    before = (tmp_path / "p/across_0.json").stat().st_mtime_ns
    assert run_command(infer, ["--model", "runs/my", "--input", "new", "--output", "p"]) == 2
    assert (tmp_path / "p/across_0.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run_command(evaluate, ["--predictions", "p", "--references", "new", "--output", "r"]) == 2
    scored = json.loads((tmp_path / "r/metrics.json").read_text())
    assert len(scored["cases"]) == 10
    assert [failure["case"] for failure in scored["failures"]] == ["broken"]
    assert run_command(infer, ["--model", "runs/my/fold_0", "--input", "new", "--output", "q"]) == 2
    assert run_command(evaluate, ["--predictions", "q", "--references", "new", "--output", "s"]) == 2
    capsys.readouterr()
    assert run_command(compare, ["r", "s"]) == 0
    assert "accuracy (higher is better) over 10 cases" in capsys.readouterr().out
    assert run_command(compare, ["r", "s", "--metric", "log_loss"]) == 0
    assert run_command(compare, ["r", "s", "--metric", "dice"]) == 64
    assert (
        run_command(evaluate, ["--predictions", "p", "--references", "new", "--output", "t", "--labels", "a=1"]) == 64
    )


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    stripes(tmp_path / "d", 6)
    assert run_command(init, [str(tmp_path / "d"), "--output", str(tmp_path / "my.yaml")]) == 0
    sets = [f"network.options={TINY}", "optimizer.lr=1e-2", "data.workers=0", "train.patch_size=[32, 32]",
            "train.batch_size=4", "classification={sampling: balanced}"]  # fmt: skip

    def run(name: str) -> None:
        chosen = [*sets, "train.epochs=4", f"output={tmp_path / name}"]
        arguments = ["--config", str(tmp_path / "my.yaml"), *[part for one in chosen for part in ("--set", one)]]
        assert run_command(train, arguments) == 0

    run("whole")
    run("again")
    one, other = (load_file(tmp_path / f"{name}/model/model.safetensors") for name in ("whole", "again"))
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_volumes_whose_size_matters(tmp_path: Path) -> None:
    """Balls of two sizes in volumes of different extents: sizes in mm must stay comparable (``enlarge: false``)."""
    rng, entries = np.random.default_rng(0), []
    for i in range(14):
        shape = tuple(int(n) for n in rng.integers(14, 22, 3))
        for name, radius in (("small", 3.0), ("large", 5.5)):
            grid = np.stack(np.indices(shape), -1) - (np.array(shape) - 1) / 2
            values = (np.linalg.norm(grid, axis=-1) < radius) * 2.0 + rng.normal(0, 0.3, shape)
            save(tmp_path / f"d/{name}{i}.nii.gz", values.astype(np.float32))
            entries.append({"image": f"{name}{i}.nii.gz", "class": name})
    (tmp_path / "d/list.json").write_text(json.dumps({"training": entries}))
    assert run_command(init, [str(tmp_path / "d/list.json"), "--output", str(tmp_path / "my.yaml")]) == 0
    assert "enlarge: false" in (tmp_path / "my.yaml").read_text()
    sets = [f"network.options={TINY}", "train.epochs=14", "optimizer.lr=1e-2", "data.workers=0", f"output={tmp_path / 'run'}",
            "augmentation.affine=0.0", "train.ema=0.9", "train.batch_size=4"]  # fmt: skip
    arguments = ["--config", str(tmp_path / "my.yaml"), *[part for one in sets for part in ("--set", one)]]
    assert run_command(train, arguments) == 0
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["preprocessing"]["size"] == [32, 32, 32]
    assert card["preprocessing"]["enlarge"] is False
    metrics = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert metrics["summary"]["overall"]["auc"]["value"] >= 0.9


def test_the_pipeline_of_volumes_above_the_median(tmp_path: Path) -> None:
    """The classes are those of the masks: half of the training cases lie above the median of their own volumes."""
    data = tiny_dataset(tmp_path / "d", cases=8).parent
    listed = tmp_path / "list.json"
    sets = [f"data.manifest={listed}", "data.channels=[a, b]", "data.split={by: last, count: 2}", "data.workers=0",
            f"network.options={TINY}", "train.epochs=1", "train.patch_size=[16, 16, 16]",
            f"output={tmp_path / 'run'}"]  # fmt: skip
    script = Path(__file__).parents[2] / "pipelines/hippocampus_volume.py"
    words = [word for item in sets for word in ("--set", item)]
    done = subprocess.run([sys.executable, str(script), str(data), *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = {entry["id"]: entry for entry in json.loads(listed.read_text())["training"]}
    counts = {name: np.count_nonzero(nib.load(data / f"{name}_seg.nii.gz").dataobj) for name in entries}
    training = sorted(entries)[:6]
    median = np.median([counts[name] for name in training])
    assert {name: entry["class"] for name, entry in entries.items()} == {
        name: "larger" if count > median else "smaller" for name, count in counts.items()
    }
    assert {entries[name]["class"] for name in training} == {"larger", "smaller"}
