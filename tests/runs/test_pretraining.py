"""Pretraining without labels, and what starts from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cmt_med.infer import infer
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save

SMALL = "{stem_channels: 8, dims: [16, 32], depths: [1, 1], head_dim: 8, attention: [lightweight, lightweight]," \
        " kv_strides: [2, 1]}"  # fmt: skip
QUICK = [f"network.options={SMALL}", "data.workers=0", "train.batch_size=4", "optimizer.lr=5e-3"]


def waves(folder: Path, count: int, dims: int) -> Path:
    """Images of straight waves, which a hidden block does not interrupt; labels where they are high. The first has no label."""
    rng = np.random.default_rng(0)
    shape = (48, 40, 32)[:dims]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    entries = []
    for i in range(count):
        direction = rng.normal(size=dims)
        values = np.sin(grid @ (direction / np.linalg.norm(direction)) / 4 + rng.uniform(0, 6))
        if dims == 2:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(values.T * 100 + 120)).save(folder / f"images/w{i}.png")
            entries.append({"image": f"images/w{i}.png", "id": f"w{i}"})
        else:
            save(folder / f"images/w{i}.nii.gz", np.float32(values * 100 + rng.normal(0, 3, shape)))
            entries.append({"image": f"images/w{i}.nii.gz", "id": f"w{i}"})
        if i:
            label = np.uint8(values > 0.5)
            save(folder / f"labels/w{i}.nii.gz", label if dims == 3 else label[..., None])
            if dims == 3:
                entries[-1]["label"] = f"labels/w{i}.nii.gz"
    path = folder / "list.json"
    path.write_text(
        json.dumps({"modality": {"0": "image"}, "labels": {"0": "background", "1": "wave"}, "training": entries})
    )
    return path


def config(path: Path, manifest: Path, task: str, dims: int, **more: str) -> Path:
    text = "\n".join([
        "name: x", f"output: {path.with_suffix('')}", f"task: {task}",
        f"data: {{manifest: {manifest}, channels: [image], split: {{by: last, count: 2}}}}",
        f"network: {{name: cmt_unetr, spatial_dims: {dims}}}",
        "augmentation: {affine: 0.0}",
        f"train: {{epochs: 1, patch_size: {[32] * dims}, patches_per_case: 2}}", *(f"{k}: {v}" for k, v in more.items()),
    ])  # fmt: skip
    path.write_text(text)
    return path


def run(command: object, *arguments: object, sets: list[str] | None = None) -> int:
    options = [part for one in sets or [] for part in ("--set", one)]
    return run_command(command, [*map(str, arguments), *options])  # type: ignore[arg-type]


@pytest.mark.parametrize("dims", [2, 3])
def test_from_images_to_a_model_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str], dims: int) -> None:
    manifest = waves(tmp_path / "d", 8, dims)
    file = config(
        tmp_path / "pre.yaml", manifest, "pretraining", dims, pretraining="{block: 8, hidden: 0.5, noise: 0.1}"
    )
    assert run(train, "--config", file, "--dry-run", sets=QUICK) == 0
    sets = [*QUICK, "train.epochs=20", "train.validate_every=10"]
    assert run(train, "--config", file, "--threads", "1", sets=sets) == 0
    metrics = json.loads((tmp_path / "pre/report/metrics.json").read_text())
    assert set(metrics["cases"]) == {"w6", "w7"}  # the first has no label, and is learned from
    assert metrics["summary"]["explained"] > 0.3
    assert "data:image/png" in (tmp_path / "pre/report/report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "pre/log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    capsys.readouterr()
    assert run(infer, "--model", tmp_path / "pre", "--input", manifest, "--output", tmp_path / "p") == 64
    assert "network.pretrained" in capsys.readouterr().err
    if dims == 2:
        return
    begin = [f"network.pretrained={tmp_path / 'pre'}", "train.epochs=2"]
    late = config(tmp_path / "late.yaml", manifest, "segmentation", dims)
    assert run(train, "--config", late, "--threads", "1", sets=[*QUICK, *begin, "optimizer.decoder_first=0.99"]) == 0
    before, after = (load_file(tmp_path / f"{name}/model/model.safetensors") for name in ("pre", "late"))
    shared = [name for name in after if name.startswith("encoder.")]
    assert len(shared) > 10
    assert all(torch.equal(before[name], after[name]) for name in shared)  # its turn had not come
    decoder = [name for name in after if name.startswith("decoder.ups") and before[name].ndim > 1]
    assert not all(torch.equal(before[name], after[name]) for name in decoder)
    assert run(train, "--config", late, "--threads", "1", "--fresh",
               sets=[*QUICK, *begin, "optimizer.decoder_first=0.2"]) == 0  # fmt: skip
    after = load_file(tmp_path / "late/model/model.safetensors")
    assert not all(torch.equal(before[name], after[name]) for name in shared)
    capsys.readouterr()
    adapted = [*QUICK, *begin, "network.adapters=2"]
    assert run(train, "--config", late, "--dry-run", sets=[*adapted, f"output={tmp_path / 'dry'}"]) == 0
    assert "M of them trained" in capsys.readouterr().out
    assert run(train, "--config", late, "--threads", "1", "--fresh", sets=adapted) == 0
    after = load_file(tmp_path / "late/model/model.safetensors")
    changed = {name for name in shared if not torch.equal(before[name], after[name])}
    assert changed
    assert all(before[name].ndim == 2 for name in changed)  # matrices of linear layers alone
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2 for name in changed)
    assert run(train, "--config", late, sets=[*adapted, "network.freeze=encoder"]) == 64


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["pretraining.block=32"], "covers the whole patch"),
        (["train.loss=dice_focal"], "loss of label maps"),
        (["optimizer.decoder_first=0.1"], "network.pretrained is not set"),
        (["data.regions=brats"], "data.regions is for label maps"),
        (["task=segmentation", "pretraining.block=8"], "needs task: pretraining"),
        (["network.name=cmt_detector"], "this network finds boxes"),
    ],
)
def test_settings_are_of_their_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str], said: str
) -> None:
    file = config(tmp_path / "pre.yaml", waves(tmp_path / "d", 4, 3), "pretraining", 3)
    assert run(train, "--config", file, sets=["data.workers=0", *sets]) == 64
    assert said in capsys.readouterr().err
