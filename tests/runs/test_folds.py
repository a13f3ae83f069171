"""All folds by one command, killed on the way, and the ensemble that they make."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from cmt_med.base.files import locked, write_text
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.inference.cards import joint_card
from cmt_med.inference.model import load_model
from cmt_med.launch.command import run_command
from cmt_med.runs.folds import collect_models
from cmt_med.train import train
from tests.helpers import save, tiny_config, tiny_dataset
from tests.processes import Running, command

SETS = ["--set", "folds=3", "--set", "train.epochs=3", "--set", "inference.threshold=0.6",
        "--set", "data.regions=[{name: ball, labels: [ball], write: ball}]",
        "--set", "inference.choose=[thresholds, min_region_mm3]"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("cv")
    config = tiny_config(folder, tiny_dataset(folder))
    assert run_command(train, ["--config", str(config), *SETS]) == 0
    return folder


def metrics_of(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "report/metrics.json").read_text())
    content["postprocessing"].pop("seconds")
    return {key: content[key] for key in ("summary", "cases", "folds", "postprocessing", "failures")}


def test_every_case_is_scored_by_a_network_that_has_not_seen_it(finished: Path) -> None:
    report = metrics_of(finished / "run")
    assert sorted(report["folds"]) == [f"case{i}" for i in range(6)]
    for fold in range(3):
        held = json.loads((finished / f"run/fold_{fold}/held_out.json").read_text())["training"]
        assert {case["id"] for case in held} == {name for name, f in report["folds"].items() if f == fold}
    # The report's Dice, recomputed from the folds' label maps.
    for name, fold in report["folds"].items():
        p = np.asarray(nib.load(finished / f"run/fold_{fold}/validation/{name}.nii.gz").dataobj) == 1
        r = np.asarray(nib.load(finished / f"{name}_seg.nii.gz").dataobj) == 1
        assert report["cases"][name]["ball"]["dice"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))


def test_what_was_chosen_is_in_every_model(finished: Path) -> None:
    chosen = metrics_of(finished / "run")["postprocessing"]["chosen"]
    for fold in range(3):
        card = json.loads((finished / f"run/model/fold_{fold}/model.json").read_text())
        assert card["inference"]["thresholds"] == chosen["thresholds"]
        assert card["inference"]["min_region_mm3"] == chosen["min_region_mm3"]
        assert card["validation"]["ball"]["n"] == 6


def test_any_choice_is_in_every_model(finished: Path, tmp_path: Path) -> None:
    """On these few cases nothing may be chosen, so the choice is given here."""
    folds = [finished / f"run/fold_{i}" for i in range(3)]
    chosen = load_model(folds[0])[0].inference.model_copy(
        update={"thresholds": {"ball": 0.31}, "min_region_mm3": {"ball": 9.0}}
    )
    collect_models(folds, tmp_path / "model", {"ball": {"n": 6}}, chosen)
    for i in range(3):
        card, _ = load_model(tmp_path / f"model/fold_{i}")
        assert (card.inference, card.validation) == (chosen, {"ball": {"n": 6}})
        assert card.weights_sha256 == load_model(folds[i])[0].weights_sha256
    assert load_model(folds[0])[0].inference.thresholds == {}


def test_the_report_has_the_card_and_the_curves_of_every_fold(finished: Path) -> None:
    page = (finished / "run/report/report.html").read_text().split("<script")[0]
    assert "Training loss and validation Dice over minutes" in page
    headings = re.findall(r"<h3>(.*?)</h3>", page[page.index('<h2 id="provenance">') :])
    cards = [json.loads((finished / f"run/fold_{i}/model/model.json").read_text()) for i in range(3)]
    # Folds of seconds may take equally many hundredths of a minute: then their provenance is all shared.
    differ = any(card["provenance"] != cards[0]["provenance"] for card in cards)
    for section, own in (("Model card", True), ("Provenance", differ)):
        expected = [section, *(f"{section}, fold {i}" for i in range(3) if own)]
        assert expected == [h for h in headings if section in h]
    members = json.loads((finished / "run/report/metrics.json").read_text())["members"]
    sums = [json.loads(p.read_text())["weights_sha256"] for p in sorted(finished.glob("run/fold_*/model/model.json"))]
    assert [member["weights_sha256"] for member in members] == sums
    assert all(page.count(one) == 1 for one in sums)


def test_the_same_command_again_trains_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.glob("run/fold_*/model/model.safetensors")}
    assert run_command(train, ["--config", str(finished / "tiny.yaml"), *SETS]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in finished.glob("run/fold_*/model/model.safetensors")}


@pytest.mark.fault(2)
def test_folds_of_changed_data_are_not_kept(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label file that was replaced: networks of the old data must not be scored against the new."""
    shutil.copytree(finished, tmp_path / "cv")
    label = tmp_path / "cv/case2_seg.nii.gz"
    save(label, np.roll(np.asarray(nib.load(label).dataobj), 2, axis=0))
    sets = [*SETS, "--set", f"data.manifest={tmp_path / 'cv/dataset.json'}", "--output", str(tmp_path / "cv/run")]
    shutil.rmtree(tmp_path / "cv/run")
    arguments = ["--config", str(finished / "tiny.yaml"), *sets]
    assert run_command(train, arguments) == 0
    before = {p: p.read_bytes() for p in sorted((tmp_path / "cv/run").rglob("*")) if p.is_file()}
    save(label, np.roll(np.asarray(nib.load(label).dataobj), -2, axis=0))
    capsys.readouterr()
    assert run_command(train, arguments) == 64
    said = capsys.readouterr().err
    assert "belongs to another experiment" in said
    assert "finished before" not in said
    assert before == {p: p.read_bytes() for p in sorted((tmp_path / "cv/run").rglob("*")) if p.is_file()}


def test_killed_twice_gives_the_same_report(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cmt_med.train", "--config", str(finished / "tiny.yaml"), *SETS,
               "--output", str(tmp_path / "run"), "--threads", str(torch.get_num_threads())]  # fmt: skip
    waits = ["fold_0/checkpoints/step-000000002.sha256", "fold_2/checkpoints"]
    for wait in waits:  # once inside the first fold, once between or inside later ones
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            if (tmp_path / "run" / wait).exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "run/report").exists()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "run") == metrics_of(finished / "run")


def test_one_fold_alone_then_all(finished: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(finished / "tiny.yaml"), *SETS, "--output", str(tmp_path / "run")]
    assert run_command(train, [*arguments, "--fold", "1"]) == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["fold_1"]
    assert run_command(train, [*arguments, "--fold", "3"]) == 64
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cmt_med.train", *arguments, "--device", "cpu,cpu", "--threads", "1"]
    assert subprocess.run(command, check=False, env=env, capture_output=True).returncode == 0
    assert metrics_of(tmp_path / "run")["folds"] == metrics_of(finished / "run")["folds"]


def hold_lock(folder: Path) -> None:
    """Runs in a process of its own."""
    with locked(folder):
        print("locked", flush=True)
        time.sleep(1e6)


@pytest.mark.parametrize(
    ("where", "more"),
    [("run", ()), ("run/fold_1", ()), ("run/fold_1", ("--fold", "1")), ("run/fold_1", ("--device", "cpu,cpu"))],
)
def test_starting_over_touches_nothing_that_is_in_use(tmp_path: Path, where: str, more: tuple[str, ...]) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path))
    kept = [tmp_path / f"run/fold_{i}/checkpoints/step-000000009.pt" for i in range(3)]
    for path in kept:
        write_text(path, "of a run")
    with Running(hold_lock, tmp_path / where, log=tmp_path / "log") as running:
        running.wait_for(lambda: "locked" in running.said())
        assert run_command(train, ["--config", str(config), *SETS, "--fresh", *more]) == 73
    assert all(path.exists() for path in kept)


def test_starting_over_with_a_faulty_case(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path))
    write_text(tmp_path / "run/fold_1/checkpoints/step-000000009.pt", "of a run")
    (tmp_path / "case2_a.nii.gz").write_bytes(b"x")
    assert run_command(train, ["--config", str(config), *SETS, "--fresh"]) == 65
    assert (tmp_path / "run/fold_1/checkpoints/step-000000009.pt").exists()


def test_starting_over(finished: Path, tmp_path: Path) -> None:
    """What is interrupted is not resumed with a fold of before."""
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    arguments = ["--config", str(finished / "tiny.yaml"), *SETS, "--output", str(run)]
    with command("train", *arguments, "--fresh", log=tmp_path / "log") as running:
        running.wait_for(lambda: (run / "fold_0/log.jsonl").exists() and not (run / "fold_1/finished.json").exists())
        running.kill()
    assert [p.name for p in run.glob("fold_*/model")] == []
    assert (run / "model/fold_2/model.json").exists()  # replaced at the end
    write_text(run / "model/fold_3/model.json", "of a run with more folds")
    assert run_command(train, arguments) == 0
    assert metrics_of(run) == metrics_of(finished / "run")
    assert sorted(p.name for p in (run / "model").iterdir()) == ["fold_0", "fold_1", "fold_2"]
    newest = max((run / "fold_1/checkpoints").glob("*.pt"))
    before = newest.stat().st_mtime_ns
    assert run_command(train, [*arguments, "--fold", "1", "--fresh"]) == 0
    assert newest.stat().st_mtime_ns > before


def test_folds_average_their_probabilities(finished: Path, tmp_path: Path) -> None:
    given = ["--input", str(finished / "dataset.json"), "--probabilities"]
    run = finished / "run"
    assert run_command(infer, ["--model", str(run), *given, "--output", str(tmp_path / "all")]) == 0
    single = []
    for fold in range(3):
        out = tmp_path / f"fold{fold}"
        assert run_command(infer, ["--model", str(run / f"model/fold_{fold}"), *given, "--output", str(out)]) == 0
        single.append(np.asarray(nib.load(out / "case0_prob.nii.gz").dataobj))
    together = np.asarray(nib.load(tmp_path / "all/case0_prob.nii.gz").dataobj)
    np.testing.assert_allclose(together, np.mean(single, axis=0), atol=1e-6)
    record = json.loads((tmp_path / "all/run.json").read_text())
    assert len(record["provenance"]["members"]) == 3
    report = ["--predictions", str(tmp_path / "all"), "--references", str(finished / "dataset.json")]
    assert run_command(evaluate, [*report, "--output", str(tmp_path / "report")]) == 0


def test_networks_that_predict_something_else_are_no_ensemble(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((finished / "run/model/fold_1/model.json").read_text())
    content |= {"labels": {"background": 0, "ball": 2}, "regions": [{"name": "ball", "values": [2], "write": 2}]}
    (tmp_path / "model.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((finished / "run/model/fold_1/model.safetensors").read_bytes())
    arguments = ["--model", str(finished / "run"), "--model", str(tmp_path), "--input", str(finished / "dataset.json")]
    assert run_command(infer, [*arguments, "--output", str(tmp_path / "out")]) == 64
    assert "do not predict the same" in capsys.readouterr().err


def test_an_average_has_no_member_s_post_processing(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = load_model(finished / "run/model/fold_0")[0]
    alike = one.model_copy(update={"inference": one.inference.model_copy(update={"thresholds": {"ball": 0.2}})})
    other = one.model_copy(update={"inference": one.inference.model_copy(update={"thresholds": {"ball": 0.8}})})
    assert joint_card([alike, alike]).inference.thresholds == {"ball": 0.2}
    assert not caplog.records
    for order in ([alike, other], [other, alike]):
        settings = joint_card(order).inference
        assert (settings.threshold, settings.thresholds, settings.overlap) == (0.5, {}, one.inference.overlap)
    assert "different thresholds" in caplog.text


def test_torchrun_trains_one_fold_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(train, ["--config", str(tiny_config(tmp_path, tiny_dataset(tmp_path))), *SETS]) == 64
    assert "--fold I" in capsys.readouterr().err


def test_folds_on_several_devices_stop_together(tmp_path: Path) -> None:
    """SIGTERM to the command alone: every fold saves, 75, and nothing goes on."""
    config = tiny_config(tmp_path, tiny_dataset(tmp_path))
    command = [sys.executable, "-m", "cmt_med.train", "--config", str(config), *SETS, "--set", "train.epochs=4000",
               "--device", "cpu,cpu"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / f"run/fold_{i}/log.jsonl" for i in (0, 1)]
    end = time.monotonic() + 120
    while not all(log.exists() for log in logs) and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "the same command resumes it" in told
    for i in (0, 1):
        assert any((tmp_path / f"run/fold_{i}/checkpoints").iterdir())
    time.sleep(0.5)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(1.5)
    assert [log.stat().st_size for log in logs] == sizes  # nobody writes any more


def test_folds_of_the_case_list_must_be_as_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_dataset(tmp_path)
    content = json.loads(manifest.read_text())
    for i, case in enumerate(content["training"]):
        case["fold"] = i % 2
    manifest.write_text(json.dumps(content))
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), *SETS]) == 64
    assert "folds=2" in capsys.readouterr().err
    assert run_command(train, ["--config", str(tiny_config(tmp_path, manifest)), "--fold", "0"]) == 64


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--fold", "0")])
def test_more_folds_than_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path))
    assert run_command(train, ["--config", str(config), *SETS, "--set", "folds=7", *more]) == 64
    assert "the 6 cases with labels are of 6 patients" in capsys.readouterr().err
    assert not (tmp_path / "run/fold_0").exists()


def test_labels_are_written_in_the_input_s_numbers(finished: Path, tmp_path: Path) -> None:
    """The data set to segment calls its ball 7."""
    content = json.loads((finished / "dataset.json").read_text())
    content["labels"] = {"0": "background", "7": "ball"}
    for case in content["training"]:
        case["image"] = {name: str(finished / file) for name, file in case["image"].items()}
        label = np.asarray(nib.load(finished / case["label"]).dataobj) * 7
        case["label"] = str(save(tmp_path / "labels" / case["label"], label.astype(np.uint8)))
    (tmp_path / "other.json").write_text(json.dumps(content))
    given = ["--input", str(tmp_path / "other.json"), "--output", str(tmp_path / "out")]
    assert run_command(infer, ["--model", str(finished / "run"), *given]) == 0
    found = set()
    for i in range(6):
        found |= set(np.unique(np.asarray(nib.load(tmp_path / f"out/case{i}.nii.gz").dataobj)).tolist())
    assert found == {0, 7}
    report = ["--predictions", str(tmp_path / "out"), "--references", str(tmp_path / "other.json")]
    assert run_command(evaluate, [*report, "--output", str(tmp_path / "report")]) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["targets"] == {"ball": [7]}
    assert metrics["summary"]["ball"]["mean"] > 0.1
