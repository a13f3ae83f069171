"""2D images from init to report: colour pictures in, label maps as PNG out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import tiny_config, tiny_dataset

SMALL = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, full_channels: 4," \
        " attention: [lightweight, lightweight], kv_strides: [2, 1]}"  # fmt: skip


def discs(folder: Path, count: int, ending: str = ".png") -> Path:
    """Pictures of 40×32 with a green disc, and masks of it from 0 to 255."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        y, x = rng.integers(8, 24), rng.integers(8, 32)
        disc = np.hypot(*(np.mgrid[:32, :40] - np.array([y, x])[:, None, None])) < 6
        pixels = rng.integers(0, 90, (32, 40, 3)).astype(np.uint8)
        pixels[disc, 1] += 120
        Image.fromarray(pixels).save(folder / f"images/p{i}{ending}")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / f"masks/p{i}.png")
    return folder


def test_from_pictures_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    discs(tmp_path / "d", 8)
    assert run_command(init, ["d", "--output", "my.yaml"]) == 0
    said = capsys.readouterr().out
    assert "channels:   red, green, blue" in said
    assert "foreground = 255 in 8 cases" in said
    sets = ["train.epochs=12", f"network.options={SMALL}", "optimizer.lr=1e-2", "data.workers=0", "train.patches_per_case=4",
            "train.validate_every=12", "augmentation.affine=0.0", "train.batch_size=4"]  # fmt: skip
    assert run_command(train, ["--config", "my.yaml", *[part for one in sets for part in ("--set", one)]]) == 0
    card = json.loads((tmp_path / "runs/my/model/model.json").read_text())
    assert (card["slice_axes"], card["channels"]) == ([2], ["red", "green", "blue"])
    held = sorted(path.name for path in (tmp_path / "runs/my/validation").glob("*.png"))
    assert len(held) == 2
    new = discs(tmp_path / "new", 3)
    assert run_command(infer, ["--model", "runs/my", "--input", str(new / "images"), "--output", "p"]) == 0
    with Image.open(tmp_path / "p/p0.png") as written:
        assert (written.size, written.mode) == ((40, 32), "L")
        assert set(np.unique(np.asarray(written))) <= {0, 255}
    report = ["--predictions", "p", "--references", str(new / "masks"), "--output", "r"]
    assert run_command(evaluate, report) == 0
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert metrics["summary"]["foreground"]["mean"] > 0.7
    assert run_command(infer, ["--model", "runs/my", "--input", str(new / "images"), "--output", "p"]) == 0  # kept
    masks = new / "masks"
    assert (
        run_command(infer, ["--model", "runs/my", "--input", str(masks / "p0.png"), "--output", "q"]) == 0
    )  # grey is colour
    pages = np.stack([np.asarray(Image.open(new / f"images/p{i}.png")) for i in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="rgb")
    assert run_command(infer, ["--model", "runs/my", "--input", "stack.tif", "--output", "q"]) == 0
    alone = np.stack([np.asarray(Image.open(tmp_path / f"p/p{i}.png")) for i in range(3)])
    stacked = tifffile.imread(tmp_path / "q/stack.tif")
    assert stacked.shape == (3, 32, 40)
    assert (stacked == alone).mean() > 0.9  # brightness is normalised over the stack


def test_volumes_need_an_axis_for_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3))
    sets = ["network.spatial_dims=2", "train.patch_size=[8, 8]", "network.options={}"]
    assert run_command(train, ["--config", str(config), *[part for one in sets for part in ("--set", one)]]) == 64


@pytest.mark.data
def test_the_retina_is_understood(tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DRIVE: TIFF in colour, GIF masks, fields of view, of which nine have a copy under nearly the same name."""
    assert run_command(init, [str(real_data / "retina_drive"), "--output", str(tmp_path / "my.yaml")]) == 0
    said = capsys.readouterr().out
    assert "20 cases" in said
    assert "9 files not read ('23_training_mask .gif')" in said
    listed = json.loads((tmp_path / "my.json").read_text())
    assert listed["labels"] == {"0": "background", "255": "foreground"}
    assert all(Path(entry["mask"]).name == f"{entry['id']}_mask.gif" for entry in listed["training"])
