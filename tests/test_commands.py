"""The commands as a user runs them, with good and bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import cmt_med
from cmt_med.__main__ import main
from cmt_med.base.files import sha256
from cmt_med.config.reading import load_config
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.launch.command import run_command
from cmt_med.networks.encoders.cmt import PAPER
from cmt_med.train import train
from tests.helpers import save, tiny_config, tiny_dataset
from tests.networks.test_weights import official_layout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set ``d/`` and a finished ``run/``."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = tiny_dataset(folder / "d")
    assert run_command(train, ["--config", str(tiny_config(folder, manifest)), "--set", "train.epochs=40"]) == 0
    return folder


def test_a_run_folder_has_everything(trained: Path) -> None:
    run = trained / "run"
    for name in ("config.yaml", "plan.json", "environment.json", "log.jsonl", "model/model.safetensors",
                 "model/model.json", "report/report.html", "report/metrics.json", "report/metrics.csv"):  # fmt: skip
        assert (run / name).is_file(), name
    assert load_config(run / "config.yaml").train.epochs == 40
    metrics = json.loads((run / "report/metrics.json").read_text())
    assert metrics["summary"]["ball"]["n"] == 2
    assert metrics["summary"]["ball"]["mean"] > 0.8
    page = (run / "report/report.html").read_text().split("<script")[0]  # the viewer has pictures and names of its own
    assert "<strong>diagonal</strong>" in page
    assert page.count("data:image/png") == 5  # three figures, two cases
    assert "http" not in page.replace("http-equiv", "")


def test_a_model_does_not_say_whose_data_it_has_seen(tmp_path: Path) -> None:
    """No byte of it has the name of a case, a patient, a file, a folder or a user."""
    mark = "Qzxjv"
    folder = tmp_path / f"Folder{mark}"
    content = json.loads(tiny_dataset(folder).read_text())
    del content["name"]  # a list that does not name its data set is named by nothing else
    for i, entry in enumerate(content["training"]):
        for role, old in [*entry["image"].items(), ("label", entry["label"])]:
            (folder / old).rename(folder / f"File{mark}_{i}_{role}.nii.gz")
        entry["image"] = {channel: f"File{mark}_{i}_{channel}.nii.gz" for channel in "ab"}
        entry |= {"id": f"Case{mark}{i}", "group": f"Patient{mark}{i}", "label": f"File{mark}_{i}_label.nii.gz"}
    (folder / f"List{mark}.json").write_text(json.dumps(content))
    config = tiny_config(folder, folder / f"List{mark}.json").rename(folder / f"Config{mark}.yaml")
    (tmp_path / f"Home{mark}").mkdir()
    user = {"USER": f"User{mark}", "LOGNAME": f"User{mark}", "HOME": str(tmp_path / f"Home{mark}")}
    for folds in ([], ["--set", "folds=2", "--set", f"output={folder / 'folds'}"]):
        done = subprocess.run(
            [sys.executable, "-m", "cmt_med.train", "--config", str(config), "--set", "train.epochs=1", *folds],
            env=os.environ | user, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    written = [path for run in ("run", "folds") for path in (folder / run / "model").rglob("*") if path.is_file()]
    assert len(written) == 6
    for path in written:
        held = path.relative_to(folder).as_posix().encode() + path.read_bytes()
        for name in (mark, str(tmp_path), str(Path(__file__).parents[1])):
            assert name.lower().encode() not in held.lower(), (path, name)


def test_the_same_command_again_changes_nothing(trained: Path) -> None:
    weights = (trained / "run/model/model.safetensors").read_bytes()
    config = trained / "tiny.yaml"
    assert run_command(train, ["--config", str(config), "--set", "train.epochs=40"]) == 0
    assert (trained / "run/model/model.safetensors").read_bytes() == weights


def test_infer_and_evaluate(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, manifest = str(trained / "run"), str(trained / "d/dataset.json")
    arguments = ["--model", model, "--input", manifest, "--output", str(tmp_path / "p"), "--probabilities"]
    assert run_command(infer, arguments) == 0
    record = json.loads((tmp_path / "p/case0.json").read_text())
    labels = nib.load(tmp_path / "p/case0.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert record["volumes_ml"]["ball"] == pytest.approx(np.asarray(labels.dataobj).sum() / 1000)
    assert nib.load(tmp_path / "p/case0_prob.nii.gz").shape == (18, 15, 20, 2)
    assert record["probability_channels"] == [{"name": "background", "values": [0]}, {"name": "ball", "values": [1]}]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("case*")}
    assert run_command(infer, arguments) == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("case*")}
    scored = ["--predictions", str(tmp_path / "p"), "--references", manifest, "--output", str(tmp_path / "r")]
    capsys.readouterr()
    assert run_command(evaluate, scored) == 0
    assert "ball" in capsys.readouterr().out
    assert json.loads((tmp_path / "r/metrics.json").read_text())["summary"]["ball"]["n"] == 6
    page = (tmp_path / "r/report.html").read_text().split("<script")[0]
    section = page[page.index('<h2 id="calibration">') :].split("<h2 ")[1]
    assert "saved beside 6 predictions, of which 6 were read" in section
    assert section.count("data:image/png") == 1
    assert "Not read" not in section
    error, missed = (float(cell) for cell in re.findall(r"<td>([0-9.]+)</td>", section))
    assert 0 < error < 0.5
    assert 0 <= missed < 0.2


def test_what_cannot_be_scored_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    predictions, references = tmp_path / "p", tmp_path / "r"
    cube = np.zeros((6, 6, 6), np.uint8)
    cube[2:4] = 1
    for folder in (predictions, references):
        folder.mkdir()
        for name in ("x", "y", "z"):
            save(folder / f"{name}.nii.gz", cube)
    save(references / "y.nii.gz", cube[:5])
    save(references / "z.nii.gz", 7 * cube)
    entries = [{"id": n, "image": f"{n}.nii.gz", "label": f"{n}.nii.gz"} for n in ("x", "y", "z")]
    listed = {"labels": {"0": "background", "1": "ball"}, "training": entries}
    (references / "list.json").write_text(json.dumps(listed))
    report = tmp_path / "report"
    arguments = ["--predictions", str(predictions), "--labels", "ball=1", "--output", str(report)]
    assert run_command(evaluate, [*arguments, "--references", str(references / "list.json")]) == 2
    failures = json.loads((report / "failures.json").read_text())
    assert [(f["case"], f["code"]) for f in failures] == [("y", "E_GRID"), ("z", "E_LABEL")]
    assert "E_GRID" in caplog.text
    other = tmp_path / "other"
    other.mkdir()
    save(other / "w.nii.gz", cube)
    arguments[-1] = str(tmp_path / "nothing" / "report")
    assert run_command(evaluate, [*arguments, "--references", str(other)]) == 65
    assert "no prediction has the name" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_channels_by_name_never_by_position(trained: Path, tmp_path: Path) -> None:
    model, data = str(trained / "run"), trained / "d"
    a, b = (str(data / f"case1_{c}.nii.gz") for c in "ab")
    for order, output in (([f"a={a}", f"b={b}"], "x"), ([f"b={b}", f"a={a}"], "y")):
        items = [part for item in order for part in ("--channel", item)]
        assert run_command(infer, ["--model", model, *items, "--output", str(tmp_path / output)]) == 0
    x, y = (nib.load(tmp_path / o / "case1.nii.gz").get_fdata() for o in "xy")
    assert np.array_equal(x, y)
    assert run_command(infer, ["--model", model, "--channel", f"c={a}", "--output", str(tmp_path / "z")]) == 64
    assert run_command(infer, ["--model", model, "--input", a, "--output", str(tmp_path / "z")]) == 2
    folder = ["--model", model, "--input", str(data), "--output", str(tmp_path / "f")]
    assert run_command(infer, folder) == 0
    assert np.array_equal(x, nib.load(tmp_path / "f/case1.nii.gz").get_fdata())


@pytest.mark.parametrize("axes", ["ikj", "flip"])
def test_output_lies_on_the_input_grid(trained: Path, tmp_path: Path, axes: str) -> None:
    source = {c: nib.load(trained / f"d/case2_{c}.nii.gz") for c in "ab"}
    affine = np.eye(4)
    order, flips = ((0, 2, 1), ()) if axes == "ikj" else ((0, 1, 2), (0, 2))
    affine[:3, :3] = np.eye(3)[:, list(order)]
    for axis in flips:
        affine[axis, axis] = -1
        affine[axis, 3] = source["a"].shape[axis] - 1
    items = []
    for c, image in source.items():
        array = np.flip(np.transpose(image.get_fdata(dtype=np.float32), order), flips)
        items += ["--channel", f"{c}={save(tmp_path / f'turned_{c}.nii.gz', np.ascontiguousarray(array), affine)}"]
    assert run_command(infer, ["--model", str(trained / "run"), *items, "--output", str(tmp_path / "p")]) == 0
    turned = nib.load(tmp_path / "p/turned.nii.gz")
    np.testing.assert_array_equal(turned.affine, affine)
    plain = trained / "run/validation"
    reference = tmp_path / "q"
    items = [part for c in "ab" for part in ("--channel", f"{c}={trained / f'd/case2_{c}.nii.gz'}")]
    assert run_command(infer, ["--model", str(trained / "run"), *items, "--output", str(reference)]) == 0
    assert plain.is_dir()
    expected = np.flip(np.transpose(nib.load(reference / "case2.nii.gz").get_fdata(), order), flips)
    assert np.array_equal(turned.get_fdata(), expected)


def test_one_bad_case_does_not_stop_the_others(trained: Path, tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d", 3)
    (tmp_path / "d/case1_a.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    arguments = ["--model", str(trained / "run"), "--input", str(manifest), "--output", str(tmp_path / "p")]
    assert run_command(infer, arguments) == 2
    assert [f["case"] for f in json.loads((tmp_path / "p/failures.json").read_text())] == ["case1"]
    assert {p.name for p in (tmp_path / "p").glob("*.nii.gz")} == {"case0.nii.gz", "case2.nii.gz"}
    scored = ["--predictions", str(tmp_path / "p"), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, scored) == 2


def _nan_volume(folder: Path) -> None:
    image = np.zeros((18, 15, 20), np.float32)
    image[0, 0, 0] = np.nan
    save(folder / "case3_b.nii.gz", image)


def _other_label_shape(folder: Path) -> None:
    save(folder / "case3_seg.nii.gz", np.zeros((18, 15, 19), np.uint8))


def _image_4d(folder: Path) -> None:
    save(folder / "case3_a.nii.gz", np.zeros((18, 15, 20, 2), np.float32))


def _missing_file(folder: Path) -> None:
    (folder / "case3_a.nii.gz").unlink()


def _label_outside_the_map(folder: Path) -> None:
    save(folder / "case3_seg.nii.gz", np.full((18, 15, 20), 7, np.uint8))


def _truncated(folder: Path) -> None:
    path = folder / "case3_a.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_nan_volume, "E_NONFINITE"),
        (_other_label_shape, "E_GRID"),
        (_image_4d, "E_NDIM"),
        (_missing_file, "E_IO"),
        (_label_outside_the_map, "E_LABEL"),
        (_truncated, "E_TRUNCATED"),
    ],
)
def test_bad_data_stops_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, code: str
) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    damage(tmp_path / "d")  # type: ignore[operator]
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest))]) == 65
    message = capsys.readouterr().err
    for part in (f"[{code}]", "where:", "why:", "fix:", "case3"):
        assert part in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--set", "optimizer.lrr=1"], 64, "did you mean optimizer.lr"),
        (["--set", "data.manifest=nowhere.json"], 65, "nowhere.json"),
        (["--set", "data.channels=[a, t9]"], 64, "t9"),
        (["--set", "network.options.head_dim=3"], 64, "heads"),
        (["--set", "network.options.drop_path=2", "--set", "data.manifest=nowhere.json"], 64, "drop_path"),
        (
            ["--set", "network.name=cmt_unetr_ti", "--set", "network.pretrained=no.pth", "--set", "network.options={}"],
            65,
            "no.pth",
        ),
        (["--output", "/proc/none/x"], 73, "/proc/none/x"),
        (["--device", "tpu"], 64, "tpu"),
        (["--epochs", "3"], 64, "--epochs"),
        (["--set", "data.split={by: last, count: 6}"], 64, "one side empty"),
    ],
)
def test_bad_command_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, expected: str
) -> None:
    manifest = tiny_dataset(tmp_path / "d", 6)
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), *arguments]) == code
    message = capsys.readouterr().err
    for part in (expected, "where:", "why:", "fix:"):
        assert part in message
    assert "Traceback" not in message


def test_resume_after_a_signal_equals_the_whole_run(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    command = [sys.executable, "-m", "cmt_med.train", "--config", str(config), "--set", "train.epochs=60"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([*command, "--output", str(tmp_path / "whole")], env=environment, timeout=500).returncode == 0
    cut = subprocess.Popen([*command, "--output", str(tmp_path / "cut")], env=environment)
    log = tmp_path / "cut/log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert cut.poll() is None
    cut.terminate()
    assert cut.wait(timeout=30) == 75
    assert not (tmp_path / "cut/model").exists()
    again = [*command, "--output", str(tmp_path / "cut"), "--set", "data.workers=0"]
    assert subprocess.run(again, env=environment, timeout=500).returncode == 0
    whole, cut_weights = ((tmp_path / n / "model/model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut_weights
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_minutes_bound_the_run(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    arguments = ["--config", str(config), "--set", "train.max_minutes=0.5", "--set", "train.epochs=100000"]
    assert run_command(train, arguments) == 0
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert plan["bound"].startswith("max_minutes")
    assert 10 < card["provenance"]["steps"] <= plan["total_steps"]
    assert card["provenance"]["minutes"] < 0.5


@pytest.mark.fault(28)
def test_few_minutes_are_kept_to(tmp_path: Path) -> None:
    """12 s for a training whose first 24 steps alone would take more; importing libraries is not counted here."""
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", size=(72, 70, 74)))
    sets = ["train.epochs=null", "train.max_minutes=0.2", "train.patch_size=[64, 64, 64]", "train.accumulate=4",
            "data.split={by: last, count: 1}"]  # fmt: skip
    begun = time.monotonic()
    assert run_command(train, ["--config", str(config), *[part for s in sets for part in ("--set", s)]]) == 0
    assert time.monotonic() - begun < 1.25 * 12
    assert json.loads((tmp_path / "run/plan.json").read_text())["total_steps"] < 24


def test_every_option_runs(tmp_path: Path) -> None:
    """The options that the shipped configs leave alone, all at once, through training, scoring and inference."""
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    sets = ["data.spacing=[1.5, 1.0, 1.2]", "data.crop_foreground=true", "data.normalise=foreground", "data.workers=2",
            "data.split={by: fold, fold: 1, folds: 3}", "augmentation={blur: 0.5, flip_axes: [1], low_resolution: 0.5}",
            "data.clip=[1, 99]",
            "train.accumulate=2", "train.patches_per_case=2", "train.ema=0", "train.select=best", "train.patience=1",
            "train.validation_cases=1", "train.epochs=12", "inference={tta: flips, window: [12, 12, 12], batch_size: 2}",
            "optimizer={lr: 1e-2, clip: 0.5, warmup: 0.0}", "network.options.norm=instance",
            "network.options.attention=[identity, global]"]  # fmt: skip
    arguments = ["--config", str(config), "--threads", "2", "--device", "cpu"]
    assert run_command(train, [*arguments, *[part for s in sets for part in ("--set", s)]]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    scores = [row["dice"] for row in rows]
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    if card["provenance"]["stopped_by"].startswith("no gain"):
        assert scores[-1] <= max(scores[:-1])
    else:
        assert len(rows) == 12
    assert card["provenance"]["selected"] == "best"
    assert "optimistic" in (tmp_path / "run/report/report.html").read_text()
    assert len(list((tmp_path / "run/validation").glob("*.nii.gz"))) == 2


def test_2d_writes_volumes(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    sets = ["network.spatial_dims=2", "data.slice_axis=1", "train.patch_size=[16, 16]", "train.epochs=20",
            "train.patches_per_case=8", "train.batch_size=8", "train.validate_every=20", "inference.batch_size=15",
            "augmentation={low_resolution: 0.5, blur: 0.5}"]  # fmt: skip
    assert run_command(train, ["--config", str(config), *[part for s in sets for part in ("--set", s)]]) == 0
    assert nib.load(tmp_path / "run/validation/case4.nii.gz").shape == (18, 15, 20)
    assert json.loads((tmp_path / "run/report/metrics.json").read_text())["summary"]["ball"]["mean"] > 0.7


def test_a_loss_that_is_not_finite_names_the_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    arguments = [
        "--config",
        str(config),
        "--set",
        "optimizer={lr: 1e30, clip: 1e30, warmup: 0}",
        "--set",
        "train.epochs=9",
    ]
    assert run_command(train, arguments) == 65
    message = capsys.readouterr().err
    assert "E_NAN" in message
    assert "case" in message
    assert not (tmp_path / "run/model").exists()


def test_another_experiment_in_the_same_folder_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trained / "tiny.yaml")
    assert run_command(train, ["--config", config, "--set", "seed=9"]) == 64
    assert "these settings differ: seed" in capsys.readouterr().err
    arguments = ["--config", config, "--set", "seed=9", "--fresh", "--output", str(tmp_path / "other")]
    assert run_command(train, arguments) == 0


def test_a_command_that_is_refused_leaves_the_run_as_it_was(trained: Path, tmp_path: Path) -> None:
    def snapshot() -> dict[str, str]:
        return {str(path): sha256(path) for path in sorted((trained / "run").rglob("*")) if path.is_file()}

    before = snapshot()
    base = ["--config", str(trained / "tiny.yaml"), "--set", "train.epochs=40"]
    for more, code in (
        (["--set", "train.epochs=39"], 64),
        (["--set", "train.max_minutes=3"], 64),
        (["--set", "data.split={by: last, count: 3}"], 64),
        (["--fresh", "--set", "data.manifest=absent.json"], 65),
        (["--fresh", "--set", "network.options.head_dim=3"], 64),
        (["--fresh", "--dry-run", "--limit", "3"], 0),
    ):
        assert run_command(train, [*base, *more]) == code, more
        assert snapshot() == before, more
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/model").write_text("mine")
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    assert run_command(train, [*base, "--fresh", "--output", str(tmp_path / "thesis")]) == 73
    assert (tmp_path / "thesis/model").read_text() == "mine"


def test_everything_of_a_demonstration_says_so(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"demo": True}))
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), "--set", "train.epochs=1"]) == 0
    run = tmp_path / "run"
    for name in ("model/model.json", "model/model.safetensors", "log.jsonl", "report/report.html",
                 "report/metrics.json", "report/metrics.csv", "validation/run.json", "validation/case5.json"):  # fmt: skip
        assert b"PHANTOM DATA" in (run / name).read_bytes(), name
    assert any(b"PHANTOM DATA" in path.read_bytes() for path in (run / "tensorboard").iterdir())


def test_a_limit_keeps_what_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_dataset(tmp_path / "d", 6)
    base = ["--config", str(tiny_config(tmp_path, manifest)), "--set", "data.split={by: last, count: 4}"]
    assert run_command(train, [*base, "--dry-run", "--limit", "3"]) == 0
    assert "1 case to train, 2 to validate" in capsys.readouterr().out


@pytest.mark.fault(27)
def test_a_dry_run_fails_where_the_run_would(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", str(trained / "tiny.yaml"), "--set", "train.epochs=40"]
    paper = ["--set", "network={name: cmt_unetr_ti, pretrained: absent.pt}"]
    thesis = trained / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("mine")
    for more, code in (
        (["--set", "optimizer.lr=1e-4"], 64), (paper, 64), ([*paper, "--output", str(trained / "new")], 65),
        (["--fresh", "--output", str(thesis)], 73),
    ):  # fmt: skip
        said = []
        for dry in ([], ["--dry-run"]):
            assert run_command(train, [*base, *more, *dry]) == code, (more, dry)
            said.append(capsys.readouterr().err.partition("[E_")[2])
        assert said[0] == said[1]


@pytest.mark.fault(32)
@pytest.mark.parametrize("verb", [[], ["infer"]], ids=["cmt-med", "cmt-med infer"])
def test_version_help_and_usage(
    verb: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmt-med", *arguments])
        code = run_command(infer, list(arguments)) if verb else main()
        return code, *capsys.readouterr()

    assert run("--version") == (0, f"cmt_med {cmt_med.__version__}\n", "")
    assert run("-h") == run("--help")
    assert "--help" in run("-h")[1]
    code, _, said = run("--nope")
    assert code == 64
    assert "why: No such option: --nope" in said


@pytest.mark.fault(32)
def test_what_is_printed_reads_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", str(tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3))), "--set", "train.epochs=1",
            "--set", "data.split={by: last, count: 2}"]  # fmt: skip
    assert run_command(train, [*base, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "None" not in said
    assert "1 case to train, 2 to validate" in said
    assert "bound       1 epoch\n" in said
    assert run_command(train, base) == 0
    assert "GFLOP" not in capsys.readouterr().out


@pytest.mark.fault(34)
def test_empty_label_maps_and_labels_of_no_case_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = tiny_dataset(tmp_path / "d", 4, labels=("ball", "cube"))
    save(tmp_path / "d/case1_seg.nii.gz", np.zeros((18, 15, 20), np.uint8))
    with caplog.at_level("WARNING"):
        assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), "--dry-run"]) == 0
    assert "1 case: the label map is empty (case1)" in caplog.text
    assert "no training case has the label cube (2)" in caplog.text


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    arguments = ["--config", str(tiny_config(tmp_path, manifest)), "--dry-run", "--limit", "4"]
    assert run_command(train, arguments) == 0
    assert "3 cases to train, 1 to validate" in capsys.readouterr().out
    assert not (tmp_path / "run/checkpoints").exists()


def test_torchrun(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = tiny_config(tmp_path, manifest)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29562",
               "-m", "cmt_med.train", "--config", str(config)]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/report/report.html").is_file()


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (train, infer, evaluate):
        assert run_command(command, ["--help"]) == 0
        assert "--" in capsys.readouterr().out


def test_a_network_of_the_paper_from_official_weights(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d", 3)
    weights = tmp_path / "cmt_ti.pth"
    torch.save({"model": official_layout(PAPER["cmt_ti"], 64)}, weights)
    text = tiny_config(tmp_path, manifest).read_text()
    options = text[text.index("  options:") : text.index("optimizer:")]
    config = tiny_config(tmp_path, manifest, **{options: f"  name: cmt_unetr_ti\n  pretrained: {weights}\n"})
    assert run_command(train, ["--config", str(config), "--set", "train.epochs=1"]) == 0
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["provenance"]["pretrained_sha256"] == sha256(weights)
    assert str(weights) not in json.dumps(card)
    case = str(tmp_path / "d/dataset.json")
    assert run_command(infer, ["--model", str(tmp_path / "run"), "--input", case, "--output", str(tmp_path / "p")]) == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (["network.name=cmt_ti", "network.options={}"], 64),
        (["network.name=cmt_unetr_ti", "network.options={}", "network.pretrained=absent.pth"], 65),
        (["network.pretrained=setup.cfg"], 65),  # any network may start from weights, and these are none
        (["network.name=cmt_unetr_ti", "network.options={}", "network.pretrained=setup.cfg"], 65),
        (["network.name=monai_segresnet", "network.options={init_filters: 8}"], 64),  # no deep supervision
    ],
)
def test_networks_that_cannot_be_trained_so(tmp_path: Path, changes: list[str], code: int) -> None:
    manifest = tiny_dataset(tmp_path / "d", 4)
    arguments = [part for change in changes for part in ("--set", change)]
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), *arguments]) == code
    assert not (tmp_path / "run/model").exists()


def test_a_peer_under_the_same_command(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "d", 4)
    changes = ["network.name=monai_dynunet", "network.options={filters: [8, 16, 32]}", "train.epochs=1"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), *arguments]) == 0
    assert (tmp_path / "run/report/report.html").is_file()


def test_ctrl_c_is_exit_code_75(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise KeyboardInterrupt

    assert run_command(command, []) == 75
    assert "E_INTERRUPTED" in capsys.readouterr().err


def test_options_that_the_data_decides_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(trained / "tiny.yaml"), "--dry-run", "--set", "network.options.in_channels=3"]
    assert run_command(train, arguments) == 64
    assert "network.options must not set in_channels" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["label", "region", "option"])
def test_nothing_is_called_like_the_average(tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str) -> None:
    manifest = tiny_dataset(tmp_path)
    if way == "label":
        content = json.loads(manifest.read_text())
        content["labels"] = {"0": "background", "1": "mean"}
        manifest.write_text(json.dumps(content))
    config = tiny_config(tmp_path, manifest)
    arguments = ["--config", str(config), "--dry-run"]
    if way == "region":
        arguments += ["--set", "data.regions=[{name: mean, labels: [ball], write: ball}]"]
    if way == "option":
        (tmp_path / "out").mkdir()
        given = ["--predictions", str(tmp_path), "--references", str(manifest), "--output", str(tmp_path / "out")]
        code = run_command(evaluate, [*given, "--labels", "mean=1"])
    else:
        code = run_command(train, arguments)
    assert code == (65 if way == "label" else 64)
    assert "mean" in capsys.readouterr().err
