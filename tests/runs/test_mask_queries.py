"""Objects by queries with a mask each, from init to report, in 2D and 3D, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.train import train
from tests.helpers import save
from tests.runs.test_instances import blobs, pictures, run

SMALL = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [lightweight, lightweight]," \
        " kv_strides: [2, 1], channels: 32, heads: 4, layers: 2, queries: 12, drop_path: 0.0}"  # fmt: skip
QUICK = [
    "network.name=cmt_mask_queries",
    f"network.options={SMALL}",
    "optimizer.lr=5e-3",
    "data.workers=0",
    "augmentation.affine=0.0",
    "train.batch_size=4",
    "inference.tta=none",
]


def test_from_pictures_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", 10)
    assert run(init, "d", "--output", "my.yaml") == 0
    assert run(train, "--config", "my.yaml", "--dry-run", sets=QUICK) == 0
    sets = [
        *QUICK,
        "train.epochs=30",
        "train.patches_per_case=4",
        "train.validate_every=30",
        "train.patch_size=[32, 32]",
    ]
    assert run(train, "--config", "my.yaml", sets=sets) == 0
    card = json.loads((tmp_path / "runs/my/model/model.json").read_text())
    assert (card["task"], card["network"]["name"]) == ("instances", "cmt_mask_queries")
    assert card["validation"]["all_objects"]["f1"]["value"] > 0.6
    new = pictures(tmp_path / "new", 3, seed=1)
    assert run(infer, "--model", "runs/my", "--input", new / "images", "--output", "p", "--threads", "1") == 0
    with Image.open(tmp_path / "p/p0.png") as written:
        assert (written.size, written.mode) == ((48, 40), "I;16")
        numbers = np.asarray(written)
    rows = list(csv.DictReader((tmp_path / "p/objects.csv").open()))
    first = [row for row in rows if row["case"] == "p0"]
    assert [int(row["size_voxels"]) for row in first] == np.bincount(numbers.ravel())[1:].tolist()
    assert all(0.1 < float(row["probability"]) <= 1 for row in rows)
    assert run(evaluate, "--predictions", "p", "--references", new, "--output", "r") == 0
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert metrics["summary"]["all_objects"]["f1"]["value"] > 0.6
    capsys.readouterr()
    again = ["--model", "runs/my", "--input", str(new / "images"), "--output", "q"]
    size = max(int(row["size_voxels"]) for row in rows)
    assert run(infer, *again, sets=[f"instances.min_object_mm3={size + 1}"]) == 0
    assert len((tmp_path / "q/objects.csv").read_text().splitlines()) == 1
    for more, sets, said in (
        (["--tta", "flips"], [], "inference.tta"),
        (["--probabilities"], [], "--probabilities"),
        (["--model", "runs/my"], [], "not averaged"),
        ([], ["instances.prominence=0.2"], "instances.prominence"),
    ):
        assert run(infer, *again, *more, sets=sets) == 64
        assert said in capsys.readouterr().err


def test_volumes_on_another_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    affine = np.diag([1.5, 1.0, 1.0, 1.0]) + np.outer([1, 1, 1, 0], [0, 0, 0, 5])
    for i in range(5):
        image, numbers = blobs(rng, (20, 24, 28))
        save(tmp_path / f"d/images/v{i}.nii.gz", image, affine)
        save(tmp_path / f"d/instances/v{i}.nii.gz", numbers.astype(np.uint32), affine)
    assert run(init, "d", "--output", "my.yaml") == 0
    sets = [*QUICK, "train.epochs=40", "train.patches_per_case=4", "train.validate_every=40", "train.batch_size=2",
            "train.patch_size=[24, 24, 24]", "data.spacing=[1, 1, 1]", "inference.overlap=0.25"]  # fmt: skip
    assert run(train, "--config", "my.yaml", sets=sets) == 0
    assert run(infer, "--model", "runs/my", "--input", "d/images", "--output", "p", "--threads", "1") == 0
    written = nib.load(tmp_path / "p/v0.nii.gz")
    assert (written.shape, written.get_data_dtype()) == ((20, 24, 28), np.uint16)
    assert run(evaluate, "--predictions", "p", "--references", "d", "--output", "r") == 0
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert metrics["summary"]["all_objects"]["f1"]["value"] > 0.6


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("inference.tta=flips", "inference.tta"),
        ("instances.smoothing=2.0", "instances.smoothing"),
        ("task=detection", "cmt_mask_queries"),
        ("task=segmentation", "cmt_mask_queries"),
        ("network.options={mask_stride: 8}", "mask_stride"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", 3)
    assert run(init, "d", "--output", "my.yaml") == 0
    capsys.readouterr()
    assert run(train, "--config", "my.yaml", "--dry-run", sets=[*QUICK, setting]) in (64, 65)
    assert said in capsys.readouterr().err


def test_masks_of_slices_are_not_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image, numbers = blobs(np.random.default_rng(0), (20, 24, 28))
    for i in range(3):
        save(tmp_path / f"d/images/v{i}.nii.gz", image + i)
        save(tmp_path / f"d/instances/v{i}.nii.gz", numbers.astype(np.uint32))
    assert run(init, "d", "--output", "my.yaml") == 0
    sets = [*QUICK, "network.spatial_dims=2", "data.slice_axis=2", "train.patch_size=[16, 16]", "data.spacing=null"]
    capsys.readouterr()
    assert run(train, "--config", "my.yaml", "--dry-run", sets=sets) == 64
    assert "masks of slices" in capsys.readouterr().err
