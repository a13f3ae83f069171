"""Fine-tuning by config alone: from a run, a model or a file; frozen; at lower rates for deeper layers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import tiny_config, tiny_dataset

SHORT = ["train.epochs=2", "train.patch_size=[8, 8, 8]", "data.split={by: last, count: 1}"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a finished run, ``first/``."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_config(folder, tiny_dataset(folder / "d", 3, (12, 11, 13)))
    assert tune(folder, "first") == 0
    return folder


def tune(folder: Path, output: str, *more: str) -> int:
    sets = [part for item in (*SHORT, *more) for part in ("--set", item)]
    return run_command(train, ["--config", str(folder / "tiny.yaml"), "--output", str(folder / output), *sets])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def test_a_frozen_encoder_does_not_change_by_a_bit(pretrained: Path) -> None:
    source = pretrained / "first"
    assert tune(pretrained, "frozen", f"network.pretrained={source}", "network.freeze=encoder", "seed=1") == 0
    before, after = weights(source), weights(pretrained / "frozen")
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
    account = json.loads((pretrained / "frozen/pretrained.json").read_text())
    assert sorted(account["matched"]) == sorted(before)
    assert not any(account[key] for key in ("adapted", "skipped", "left_over"))
    # A model has no outputs for deep supervision, which only training needs.
    assert account["missing"] == ["decoder.auxiliary.0.weight", "decoder.auxiliary.0.bias"]
    card = json.loads((pretrained / "frozen/model/model.json").read_text())
    assert (
        card["provenance"]["pretrained_sha256"]
        == json.loads((source / "model/model.json").read_text())["weights_sha256"]
    )


@pytest.mark.parametrize("kind", ["model", "file"])
def test_other_channels_and_the_other_forms(
    pretrained: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = pretrained / "first/model"
    if kind == "file":
        save_file(load_file(source / "model.safetensors"), tmp_path / "w.safetensors")
        source = tmp_path / "w.safetensors"
    channels = ["data.channels=[b]"] if kind == "model" else []
    assert tune(pretrained, f"from-{kind}", f"network.pretrained={source}", *channels) == 0
    account = json.loads((pretrained / f"from-{kind}/pretrained.json").read_text())
    assert bool(account["adapted"]) == (kind == "model")
    assert account["left_over"] == []
    assert all(name.startswith("decoder.auxiliary.") for name in account["missing"])
    assert "tensors taken as they are" in caplog.text


def test_deeper_layers_learn_more_slowly(pretrained: Path) -> None:
    source = pretrained / "first"
    assert (
        tune(
            pretrained,
            "slow",
            f"network.pretrained={source}",
            "optimizer={lr: 1e-3, weight_decay: 0, layer_decay: 1e-4}",
        )
        == 0
    )
    before, after = weights(source), weights(pretrained / "slow")
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
    assert moved["encoder.stem.embed.weight"] < 1e-3 * max(v for n, v in moved.items() if n.startswith("decoder."))


def test_what_is_refused(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(pretrained, "x", "network.pretrained=nowhere.safetensors") == 65
    assert "E_WEIGHTS" in capsys.readouterr().err
    assert tune(pretrained, "x", f"network.pretrained={pretrained / 'd'}") == 65
    assert "E_MODEL" in capsys.readouterr().err
    flat = ["network.spatial_dims=2", "data.slice_axis=2", "train.patch_size=[8, 8]"]
    assert tune(pretrained, "x", f"network.pretrained={pretrained / 'first'}", *flat) == 64
    assert "3D network" in capsys.readouterr().err
    assert not (pretrained / "x/checkpoints").exists()


def test_a_run_without_one_finite_loss_fails(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights so large that they overflow: the few steps of the run are all skipped, and nothing would have been learned."""
    large = {
        name: torch.full_like(value, 1e38)
        for name, value in load_file(pretrained / "first/model/model.safetensors").items()
    }
    save_file(large, tmp_path / "w.safetensors")
    begun = (f"network.pretrained={tmp_path / 'w.safetensors'}", "train.epochs=1", "data.split={by: none}")
    assert tune(pretrained, "overflown", *begun) == 65
    assert "no step had a finite loss" in capsys.readouterr().err
    assert not (pretrained / "overflown/model").exists()
    sets = [part for item in (*SHORT, *begun) for part in ("--set", item)]
    assert run_command(train, ["--config", str(pretrained / "tiny.yaml"), *sets, "--dry-run"]) == 65
    assert "the loss of the first step is" in capsys.readouterr().err
