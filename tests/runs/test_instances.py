"""Numbered objects from init to report, in 2D and 3D, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cmt_med.compare import compare
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import content_of
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from cmt_med.view import view
from tests.helpers import save

SMALL = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, full_channels: 8," \
        " attention: [lightweight, lightweight], kv_strides: [2, 1]}"  # fmt: skip
QUICK = [
    f"network.options={SMALL}",
    "optimizer.lr=1e-2",
    "data.workers=0",
    "augmentation.affine=0.0",
    "train.batch_size=4",
]


def blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """An image with bright blobs, and their numbers, from 301 on."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    numbers = np.zeros(shape, np.uint16)
    for i in range(4):
        middle = [rng.integers(5, n - 5) if n > 10 else n // 2 for n in shape]
        near = (np.linalg.norm(grid - middle, axis=-1) < 5) & (numbers == 0)
        numbers[near] = 301 + i
    return rng.normal(0, 10, shape).astype(np.float32) + 120 * (numbers > 0), numbers


def pictures(folder: Path, count: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("images", "instances"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        image, numbers = blobs(rng, (40, 48))
        Image.fromarray(np.clip(image + 60, 0, 255).astype(np.uint8)).save(folder / f"images/p{i}.png")
        Image.fromarray(numbers).save(folder / f"instances/p{i}.png")
    return folder


def run(command: object, *arguments: str, sets: list[str] | None = None) -> int:
    options = [part for one in sets or [] for part in ("--set", one)]
    return run_command(command, [*map(str, arguments), *options])  # type: ignore[arg-type]


def test_from_pictures_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", 10)
    assert run(init, "d", "--output", "my.yaml") == 0
    assert "10 cases, 10 with numbered objects" in capsys.readouterr().out
    assert "task: instances" in (tmp_path / "my.yaml").read_text()
    assert run(train, "--config", "my.yaml", "--dry-run", sets=QUICK) == 0
    sets = [*QUICK, "train.epochs=12", "train.patches_per_case=3", "train.validate_every=12"]
    assert run(train, "--config", "my.yaml", sets=sets) == 0
    assert "PQ, mean of images" in capsys.readouterr().out
    card = json.loads((tmp_path / "runs/my/model/model.json").read_text())
    assert (card["task"], card["instances"]["prominence"]) == ("instances", 0.1)
    assert card["validation"]["images"]["f1"]["value"] > 0.6
    new = pictures(tmp_path / "new", 3, seed=1)
    assert run(infer, "--model", "runs/my", "--input", new / "images", "--output", "p") == 0
    with Image.open(tmp_path / "p/p0.png") as written:
        assert (written.size, written.mode) == ((48, 40), "I;16")
        numbers = np.asarray(written)
    rows = list(csv.DictReader((tmp_path / "p/objects.csv").open()))
    first = [row for row in rows if row["case"] == "p0"]
    assert [int(row["object"]) for row in first] == list(range(1, int(numbers.max()) + 1))
    assert [int(row["size_voxels"]) for row in first] == np.bincount(numbers.ravel())[1:].tolist()
    ys, xs = np.nonzero(numbers == 1)
    assert [float(first[0][axis]) for axis in "xy"] == pytest.approx([xs.mean(), ys.mean()], abs=1e-3)
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    for references in (new, new / "instances"):  # a data set, or label images alone
        output = f"r_{references.name}"
        assert run(evaluate, "--predictions", "p", "--references", references, "--output", output) == 0
        metrics = json.loads((tmp_path / output / "metrics.json").read_text())
        assert metrics["summary"]["all_objects"]["f1"]["value"] > 0.6
        assert metrics["cases"]["p0"]["object"]["predicted_objects"] == numbers.max()
    assert "data:image/png" in (tmp_path / "r_new/report.html").read_text()
    assert run(compare, "r_new", "r_instances") == 0
    assert "PQ" in capsys.readouterr().out
    assert run(view, "p") == 65
    assert run(infer, "--model", "runs/my", "--input", new / "images", "--output", "p") == 0  # kept
    size = max(int(row["size_voxels"]) for row in rows)
    fewer = ["--model", "runs/my", "--model", "runs/my", "--input", new / "images", "--output", "q", "--tta", "flips"]
    assert run(infer, *fewer, sets=[f"instances.min_object_mm3={size + 1000}"]) == 0
    assert len((tmp_path / "q/objects.csv").read_text().splitlines()) == 1
    capsys.readouterr()
    assert run(infer, *fewer, sets=["instances.treshold=0.4"]) == 64
    assert "did you mean instances.threshold?" in capsys.readouterr().err
    assert run(infer, *fewer, "--convention", "brats2021") == 64


def test_volumes_with_folds_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 1.0, 1.0, 1.0]) + np.outer([1, 1, 1, 0], [0, 0, 0, 5])
    for i in range(4):
        image, numbers = blobs(rng, (16, 24, 20))
        save(tmp_path / f"d/images/v{i}.nii.gz", image, affine)
        save(tmp_path / f"d/instances/v{i}.nii.gz", numbers.astype(np.uint32), affine)
    assert run(init, "d", "--output", "my.yaml") == 0
    sets = [*QUICK, "train.epochs=6", "train.patches_per_case=4", "train.validate_every=3", "folds=2", "train.batch_size=2",
            "train.patch_size=[16, 16, 16]", "data.spacing=[1.5, 1, 1]", "inference.overlap=0.25"]  # fmt: skip
    assert run(train, "--config", "my.yaml", "--fold", "0", sets=sets) == 0
    assert run(train, "--config", "my.yaml", sets=sets) == 0  # fold 0 is finished
    metrics = json.loads((tmp_path / "runs/my/report/metrics.json").read_text())
    assert set(metrics["cases"]) == {f"v{i}" for i in range(4)}
    assert run(infer, "--model", "runs/my", "--input", "d/images", "--output", "p", "--probabilities") == 0
    written = nib.load(tmp_path / "p/v0.nii.gz")
    assert (written.shape, written.get_data_dtype()) == ((16, 24, 20), np.uint16)
    assert (written.affine == affine).all()
    assert nib.load(tmp_path / "p/v0_prob.nii.gz").shape == (16, 24, 20, 2)
    rows = list(csv.DictReader((tmp_path / "p/objects.csv").open()))
    assert rows
    numbers = np.asarray(written.dataobj)
    assert float(rows[0]["size_mm3"]) == 2 * np.count_nonzero(numbers == 1)
    centre = affine[:3, :3] @ np.argwhere(numbers == 1).mean(0) + 5
    assert [float(rows[0][axis]) for axis in "xyz"] == pytest.approx(centre.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("inference.threshold=0.4", "inference.threshold"),
        ("inference.thresholds={a: 0.4}", "inference.thresholds"),
        ("train.loss=tversky", "train.loss"),
        ("data.regions=listed", "data.regions"),
        ("classification.label_smoothing=0.1", "classification"),
        ("instances.prominence=1.5", "instances.prominence"),
        ("task=segmentation", "labels"),
    ],
)
def test_settings_of_other_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", 3)
    assert run(init, "d", "--output", "my.yaml") == 0
    capsys.readouterr()
    assert run(train, "--config", "my.yaml", "--dry-run", sets=[*QUICK, setting]) in (64, 65)
    assert said in capsys.readouterr().err


def test_the_section_needs_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "d", 3)
    assert run(init, "d", "--output", "my.yaml") == 0
    sets = [*QUICK, "task=segmentation", "instances.threshold=0.4"]
    assert run(train, "--config", "my.yaml", "--dry-run", sets=sets) == 64
    assert "task: instances" in capsys.readouterr().err


def test_faulty_numbers_stop_no_other_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / "d", 4)
    Image.fromarray(np.full((40, 48), 70_000, np.int32)).save(folder / "instances/p1.tif")
    (folder / "instances/p1.png").unlink()
    assert run(init, "d", "--output", "my.yaml") == 2
    assert "p1.tif: [E_LABEL] objects are numbered from" in capsys.readouterr().out


def test_a_mask_for_each_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Data Science Bowl's layout, whose list can be moved, and whose masks are part of the cache's key."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(3):
        image, numbers = blobs(rng, (40, 48))
        for part in ("images", "masks"):
            (tmp_path / f"d/c{i}/{part}").mkdir(parents=True)
        Image.fromarray(np.clip(image + 60, 0, 255).astype(np.uint8)).save(tmp_path / f"d/c{i}/images/c{i}.png")
        for number in np.unique(numbers[numbers > 0]):
            Image.fromarray((numbers == number).astype(np.uint8) * 255).save(tmp_path / f"d/c{i}/masks/m{number}.png")
    assert run(init, "d", "--output", "my.yaml") == 0
    (tmp_path / "elsewhere").mkdir()
    for name in ("d", "my.yaml", "my.json"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert run(train, "--config", "elsewhere/my.yaml", "--dry-run", sets=QUICK) == 0
    cases = load_manifest(tmp_path / "elsewhere/my.json").cases
    before = content_of(cases[0].instances, cases[0])
    next((tmp_path / "elsewhere/d/c0/masks").iterdir()).unlink()
    assert content_of(cases[0].instances, cases[0]) != before


@pytest.mark.data
def test_the_nuclei_are_understood(tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(init, real_data / "nuclei", "--output", tmp_path / "my.yaml") == 0
    assert "126 cases, 126 with numbered objects" in capsys.readouterr().out
