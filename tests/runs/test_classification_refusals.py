"""What a classifier is given that it cannot use, or not as the user thinks: refused with a code, or named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from cmt_med.view import view
from tests.helpers import save
from tests.runs.test_classification import TINY, stripes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures ``d``, their list ``my.json``, the run ``run`` and its answers ``p``."""
    folder = tmp_path_factory.mktemp("trained")
    stripes(folder / "d", 5)
    assert run_command(init, [str(folder / "d"), "--output", str(folder / "my.yaml")]) == 0
    assert run_command(train, command(folder, f"output={folder / 'run'}")) == 0
    assert (
        run_command(
            infer, ["--model", str(folder / "run"), "--input", str(folder / "d"), "--output", str(folder / "p")]
        )
        == 0
    )
    return folder


def command(folder: Path, *sets: str) -> list[str]:
    usual = (
        f"network.options={TINY}",
        "train.epochs=1",
        "train.patch_size=[32, 32]",
        "train.batch_size=4",
        "data.workers=0",
    )
    return ["--config", str(folder / "my.yaml"), *[word for one in (*usual, *sets) for word in ("--set", one)]]


def answers(folder: Path, output: Path, *options: str) -> dict[str, list[float]]:
    source = ["--model", str(folder / "run"), "--input", str(folder / "d"), "--output", str(output)]
    assert run_command(infer, [*source, *options]) == 0
    records = [json.loads(path.read_text()) for path in output.glob("a*.json")]
    return {record["case"]: list(record["probabilities"].values()) for record in records}


def test_flips_of_a_trained_model(trained: Path, tmp_path: Path) -> None:
    plain, turned = answers(trained, tmp_path / "a"), answers(trained, tmp_path / "b", "--tta", "flips")
    again = answers(trained, tmp_path / "c", "--set", "tta=flips")
    assert plain.keys() == turned.keys()
    assert len(plain) == 10
    assert turned == again != plain


@pytest.mark.parametrize(
    "options", [["--overlap", "0.3"], ["--set", "thresholds.across=0.3"], ["--set", "threshold=0.3"],
                ["--convention", "brats2023"]],
)  # fmt: skip
def test_settings_of_label_maps(
    trained: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--model", str(trained / "run"), "--input", str(trained / "d"), "--output", str(tmp_path / "p")]
    assert run_command(infer, [*source, *options]) == 64
    assert "label maps" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("options", [["--empty", "nan"], ["--tolerance", "3"], ["--lesion-wise", "gli"]])
def test_scores_of_label_maps(
    trained: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--predictions", str(trained / "p"), "--references", str(trained / "d"), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, [*given, *options]) == 64
    assert f"{options[0]} is for label maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["data.slice_axis=all", "data.slice_axis=0", "data.regions=brats", "train.foreground_fraction=0.2",
            "network.freeze=encoder", "train.loss=ce"],
)  # fmt: skip
def test_keys_of_label_maps(trained: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(train, [*command(trained, f"output={tmp_path / 'run'}", key), "--dry-run"]) == 64
    assert key.partition("=")[0] in capsys.readouterr().err


def test_volumes_for_a_model_of_pictures(trained: Path, tmp_path: Path) -> None:
    volume = save(tmp_path / "v.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 9)).astype(np.float32))
    assert (
        run_command(infer, ["--model", str(trained / "run"), "--input", str(volume), "--output", str(tmp_path / "p")])
        == 2
    )
    assert [failure["code"] for failure in json.loads((tmp_path / "p/failures.json").read_text())] == ["E_NDIM"]


def test_what_lies_beside(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results of other cases in the folder, and predictions that have no reference, are counted and named."""
    shutil.copytree(trained / "p", tmp_path / "p")
    one = [
        "--model",
        str(trained / "run"),
        "--input",
        str(trained / "d/along/along (1).png"),
        "--output",
        str(tmp_path / "p"),
    ]
    assert run_command(infer, one) == 0
    assert "results of 9 other cases from an earlier run" in caplog.text
    caplog.clear()
    shutil.copytree(trained / "d", tmp_path / "d")
    for i in (1, 2):
        (tmp_path / f"d/along/along ({i}).png").unlink()
    given = ["--references", str(tmp_path / "d"), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, ["--predictions", str(trained / "p"), *given]) == 0
    assert "2 predictions without a reference, not scored: along_1, along_2" in caplog.text


def test_references_of_the_same_names(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stripes(tmp_path / "d", 5, seed=7)
    shutil.copy(trained / "d/along/along (0).png", tmp_path / "d/along/along (0).png")
    given = ["--predictions", str(trained / "p"), "--references", str(tmp_path / "d"), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, given) == 0
    assert "9 references: not the image that was predicted, but another of its name: across_0, across_1" in caplog.text


def test_a_run_or_a_table_instead_of_predictions(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--references", str(trained / "d"), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, ["--predictions", str(trained / "run"), *given]) == 64
    assert "run of training" in capsys.readouterr().err
    assert run_command(evaluate, ["--predictions", str(trained / "p/predictions.csv"), *given]) == 65
    assert f"give {trained / 'p'}" in capsys.readouterr().err


def test_a_report_of_classes_is_not_viewed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--predictions", str(trained / "p"), "--references", str(trained / "d"), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, given) == 0
    assert run_command(view, [str(tmp_path / "r"), "--no-browser"]) == 65
    assert "no volumes to view" in capsys.readouterr().err


def test_grey_among_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("x/a", (9, 9)), ("x/b", (9, 9, 3)), ("y/c", (9, 9)), ("y/d", (9, 9, 3))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(tmp_path / f"{name}.png")
    assert run_command(inspect, [str(tmp_path)]) == 0
    assert "are the same image" not in capsys.readouterr().out


def table(folder: Path, classes: list[str], separator: str = ",", header: str = "class") -> Path:
    rng = np.random.default_rng(0)
    lines = [separator.join(("id", "image", header))]
    for i, name in enumerate(classes):
        Image.fromarray(rng.integers(0, 255, (9, 9)).astype(np.uint8)).save(folder / f"i{i}.png")
        lines.append(separator.join((f"c{i}", f"i{i}.png", name)))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "o.yaml")]
    assert run_command(init, [str(table(tmp_path, ["T1", "t1", "T2"])), *output]) == 65
    assert "'T1' and 't1'" in capsys.readouterr().err
    assert run_command(init, [str(table(tmp_path, ["glioma", "none"], header="label")), *output]) == 65
    assert "call a column of classes class" in capsys.readouterr().err
    assert not (tmp_path / "o.yaml").exists()
    assert run_command(init, [str(table(tmp_path, ["2+", "2-", "2-", ""], ";")), *output]) == 0
    said = capsys.readouterr().out
    assert "2+ (1 case), 2- (2 cases)" in said
    assert "of 2+ there is one case" in said
    assert "1 case without a class, not trained on: c3" in said


def test_folders_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stripes(tmp_path / "d", 2)
    (tmp_path / "d/zigzag").mkdir()
    assert run_command(init, [str(tmp_path / "d"), "--output", str(tmp_path / "o.yaml")]) == 0
    assert "no image in folder zigzag" in capsys.readouterr().out
    assert run_command(init, [str(tmp_path / "d/along"), "--output", str(tmp_path / "one.yaml")]) == 65
    assert "one folder for each of at least two classes" in capsys.readouterr().err
    assert run_command(init, [str(tmp_path / "d"), "--output", str(tmp_path / "o.txt")]) == 73


def test_masks_that_are_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        for folder, pixels in (("images", rng.integers(0, 255, (16, 16))), ("masks", np.zeros((16, 16)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    assert run_command(init, [str(tmp_path), "--output", str(tmp_path / "o.yaml")]) == 65
    assert "all label maps are empty" in capsys.readouterr().err
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "masks/0.png")
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "masks/1.png")
    assert run_command(init, [str(tmp_path), "--output", str(tmp_path / "o.yaml")]) == 0
    assert "the foreground is 1 in 1 case and 255 in 1" in capsys.readouterr().out
