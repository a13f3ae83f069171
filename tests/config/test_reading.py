"""The schema: what is accepted, and what an error says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cmt_med.base.errors import ConfigError
from cmt_med.config.__main__ import main
from cmt_med.config.reading import dump_config, load_config
from cmt_med.config.schema import Experiment, without_later_keys

BASE = """\
name: x
output: runs/x
data:
  manifest: m.json
  channels: [a]
train:
  epochs: 1
  patch_size: [8, 8, 8]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_shipped_configs_are_valid_and_share_one_network() -> None:
    folder = Path(__file__).parents[2] / "configs"
    loaded = {path.stem: load_config(path) for path in sorted(folder.glob("*.yaml"))}
    assert {"brats", "brats_2d", "hippocampus", "hippocampus_2d"} <= loaded.keys()
    assert loaded["brats"].network == loaded["hippocampus"].network
    assert loaded["brats_2d"].network == loaded["hippocampus_2d"].network


def test_round_trip(tmp_path: Path) -> None:
    first = load_config(write(tmp_path, BASE), ["optimizer.lr=1e-3"])
    assert load_config(write(tmp_path, dump_config(first))) == first


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("+2e-4", 0.0002), ("0.5", 0.5), (".5", 0.5), ("3", 3.0)],
)
def test_scientific_notation_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    assert load_config(write(tmp_path, BASE + f"optimizer: {{lr: {text}}}\n")).optimizer.lr == value


def test_yaml_1_1_traps(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, BASE + "seed: 012\n")).seed == 12
    with pytest.raises(ConfigError, match="seed"):
        load_config(write(tmp_path, BASE + "seed: 1:30\n"))
    assert load_config(write(tmp_path, BASE.replace("name: x", "name: no"))).name == "no"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE + "optimiser: {lr: 1}\n", ["unknown key optimiser", "line 9", "did you mean optimizer"]),
        (BASE + "optimizer: {lrr: 1}\n", ["unknown key optimizer.lrr", "line 9", "did you mean optimizer.lr?"]),
        (BASE + "epochs: 5\n", ["unknown key epochs", "line 9", "train.epochs"]),
        (BASE + "seed: 1\nseed: 2\n", ["given twice", "line 10"]),
        (BASE + "seed: many\n", ["wrong value for seed", "line 9", "many"]),
        (BASE + "seed: &a 1\nother: *a\n", ["aliases", "line 10"]),
        (BASE.replace("  epochs: 1\n", ""), ["train", "epochs, max_minutes or both"]),
        (BASE.replace("name: x\n", ""), ["missing key name"]),
        (BASE.replace("[8, 8, 8]", "[8, 8]"), ["patch_size has 2"]),
        (BASE.replace("[8, 8, 8]", "[8, 0, 8]"), ["train.patch_size.1", "line 8"]),
        ("- a\n", ["not a mapping"]),
        ("a: [\n", ["not valid YAML"]),
        ("? {a: b}\n: 1\n", ["not valid YAML"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["not valid YAML"]),
    ],
)
def test_errors_say_key_line_and_fix(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, text))
    for part in expected:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("train.epoch=3", "did you mean train.epochs?"),
        ("train.epochs", "key=value"),
        ("train.epochs=[", "not YAML"),
        ("name.x.y=1", "below a value"),
        ("train.patch_size.7=1", "no item"),
    ],
)
def test_wrong_overrides(tmp_path: Path, item: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"--set|did you mean") as raised:
        load_config(write(tmp_path, BASE), [item])
    assert expected in str(raised.value)


def test_overrides_reach_everything(tmp_path: Path) -> None:
    loaded = load_config(
        write(tmp_path, BASE), ["train.max_minutes=1.5", "train.patch_size.0=16", "network.options.window=4", "seed=7"]
    )
    assert loaded.train.max_minutes == 1.5
    assert loaded.train.patch_size == [16, 8, 8]
    assert loaded.network.options == {"window": 4}
    assert loaded.seed == 7


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="too large"):
        load_config(write(tmp_path, "#" * 1_000_001))


def test_schema_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    schema = json.loads(capsys.readouterr().out)
    assert "max_minutes" in schema["$defs"]["Train"]["properties"]


def test_keys_that_came_later_do_not_change_what_a_run_is_known_by() -> None:
    """The keys of before, written out: a run begun with them is resumed, and one with a new key is another."""
    content = {
        "name": "x",
        "output": "x",
        "data": {"manifest": "m", "channels": ["a"]},
        "train": {"epochs": 1, "patch_size": [8, 8, 8]},
    }
    plain = without_later_keys(Experiment.model_validate(content).model_dump())
    assert plain.keys() == {
        "name",
        "output",
        "seed",
        "folds",
        "data",
        "network",
        "augmentation",
        "optimizer",
        "train",
        "inference",
    }
    assert plain["optimizer"].keys() == {"lr", "weight_decay", "warmup", "clip"}
    assert plain["network"].keys() == {"name", "spatial_dims", "options", "pretrained"}
    assert "loss" not in plain["train"]
    assert "missing" not in plain["data"]
    assert "channel_dropout" not in plain["augmentation"]
    assert {"minimum", "components"} <= plain["inference"].keys()
    assert not {"min_region_mm3", "min_component_mm3"} & plain["inference"].keys()
    chosen = Experiment.model_validate(content | {"inference": {"choose": ["min_region_mm3"]}})
    assert without_later_keys(chosen.model_dump())["inference"]["choose"] == ["minimum"]
    changed = content | {"optimizer": {"betas": [0.9, 0.95]}, "network": {"freeze": "encoder", "pretrained": "runs/x"}}
    other = without_later_keys(Experiment.model_validate(changed).model_dump())
    assert other["optimizer"]["betas"] == (0.9, 0.95)
    two = {"manifest": "m", "channels": ["a", "b"], "missing": "zeros"}
    more = content | {"data": two, "augmentation": {"channel_dropout": 0.2}}
    assert without_later_keys(Experiment.model_validate(more).model_dump())["augmentation"]["channel_dropout"] == 0.2
    with pytest.raises(ValidationError, match="leaves one channel at least"):
        Experiment.model_validate(content | {"augmentation": {"channel_dropout": 0.2}})
    assert other["network"]["freeze"] == "encoder"
