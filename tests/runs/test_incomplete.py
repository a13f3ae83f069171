"""Data of which a part is missing: voxels, labels or channels that a case lacks, from the case list to the report."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.compare import compare
from cmt_med.config.reading import load_config
from cmt_med.data.phantom_years import write_as_downloaded
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.inference.cards import joint_card
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import save, tiny_config, tiny_dataset
from tests.inference.models import random_model

TINY = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [lightweight, window], kv_strides: [2, 1]}"


def trained(folder: Path, manifest: Path, *sets: str, code: int = 0, **replaced: str) -> dict[str, Any]:
    """Train the tiny network, and return the scores of its report."""
    config = tiny_config(folder, manifest, **replaced)
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(config), *words]) == code
    return json.loads((folder / "run/report/metrics.json").read_text()) if code == 0 else {}


def changed(manifest: Path, **content: Any) -> Path:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | content))
    return manifest


# ---- voxels that nobody has annotated


def test_what_is_ignored_is_scored_nowhere(tmp_path: Path) -> None:
    """One half of every label map is hidden: scores and report are of the other half. As a label it would be both."""
    found = []
    for fill, ignore in ((7, 7), (1, None)):
        folder = tmp_path / str(len(found))
        manifest = tiny_dataset(folder)
        for file in folder.glob("*_seg.nii.gz"):
            label = np.asanyarray(nib.load(file).dataobj).copy()
            label[:9] = fill
            save(file, label)
        if ignore is not None:
            changed(manifest, ignore=ignore)
        found.append(trained(folder, manifest))
    assert found[0]["cases"] != found[1]["cases"]
    assert "notes" not in found[1]
    row = found[0]["cases"]["case4"]["ball"]
    half = np.asanyarray(nib.load(tmp_path / "0/case4_seg.nii.gz").dataobj)[9:]
    written = np.asanyarray(nib.load(tmp_path / "0/run/validation/case4.nii.gz").dataobj)
    assert row["reference_voxels"] == (half == 1).sum() > 0
    assert row["predicted_voxels"] == (written[9:] == 1).sum()
    assert row["dice"] == pytest.approx(
        2 * ((half == 1) & (written[9:] == 1)).sum() / ((half == 1).sum() + (written[9:] == 1).sum())
    )
    assert "value 7 in a reference (ignore)" in found[0]["notes"][0]
    assert "value 7 in a reference (ignore)" in (tmp_path / "0/run/report/report.html").read_text()
    assert json.loads((tmp_path / "0/run/held_out.json").read_text())["ignore"] == 7
    log = [json.loads(line) for line in (tmp_path / "0/run/log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)


def test_predictions_are_scored_where_there_is_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of eight slices, four are annotated: two of them with the label, of which one is found and one more invented."""
    reference = np.zeros((8, 4, 4), np.uint8)
    reference[:2], reference[4:] = 1, 3
    predicted = np.zeros_like(reference)
    predicted[1:3], predicted[4:7] = 1, 1
    save(tmp_path / "x_seg.nii.gz", reference)
    save(tmp_path / "x.nii.gz", np.random.default_rng(0).normal(size=reference.shape).astype(np.float32))
    save(tmp_path / "p/x.nii.gz", predicted)
    listed = {
        "labels": {"0": "background", "1": "a"},
        "training": [{"id": "x", "image": "x.nii.gz", "label": "x_seg.nii.gz"}],
    }
    (tmp_path / "list.json").write_text(json.dumps(listed | {"ignore": 3}))
    given = ["--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "list.json"), "--labels", "a=1"]
    assert run_command(evaluate, [*given, "--output", str(tmp_path / "r")]) == 0
    row = json.loads((tmp_path / "r/metrics.json").read_text())["cases"]["x"]["a"]
    assert (row["dice"], row["reference_voxels"], row["predicted_voxels"]) == (0.5, 32, 32)
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert run_command(evaluate, [*given, "--output", str(tmp_path / "s")]) == 65
    assert "label values 3 are not in the label map" in capsys.readouterr().err


def test_an_ignored_value_is_no_sign_of_a_convention(tmp_path: Path) -> None:
    """Tumour labels in numbers of no challenge are taken from the list, if it names all values; the ignored one it does."""
    rng, entries = np.random.default_rng(0), []
    for i in range(3):
        for channel in ("t1", "flair"):
            save(tmp_path / f"{i}_{channel}.nii.gz", rng.normal(size=(8, 7, 6)).astype(np.float32))
        save(tmp_path / f"{i}_seg.nii.gz", rng.choice([0, 2, 3, 9], (8, 7, 6)).astype(np.uint8))
        images = {channel: f"{i}_{channel}.nii.gz" for channel in ("t1", "flair")}
        entries.append({"id": f"c{i}", "image": images, "label": f"{i}_seg.nii.gz"})
    content = {
        "labels": {"0": "background", "2": "ET", "3": "ED"},
        "modality": {"0": "t1", "1": "flair"},
        "training": entries,
    }
    for name, ignore, code in (("with", {"ignore": 9}, 0), ("without", {}, 65)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content | ignore))
        assert run_command(init, [str(tmp_path / f"{name}.json"), "--output", str(tmp_path / f"{name}_.yaml")]) == code


def test_a_real_set_with_an_ignore_label(real_data: Path, tmp_path: Path) -> None:
    """Hippocampi of which the posterior half is hidden: init knows the label, and the network learns the other one."""
    source = json.loads((real_data / "hippocampus/dataset.json").read_text())
    entries = []
    for entry in source["training"][:8]:
        for key in ("image", "label"):
            entry[key] = str(real_data / "hippocampus" / entry[key])
        entries.append(entry | {"id": Path(entry["image"]).name.removesuffix(".nii.gz")})
    content = source | {"labels": {"0": "background", "1": "Anterior"}, "ignore": 2, "training": entries}
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert run_command(init, [str(tmp_path / "list.json"), "--output", str(tmp_path / "my.yaml")]) == 0
    written = json.loads((tmp_path / "my.json").read_text())
    assert (written["ignore"], written["labels"]) == (2, {"0": "background", "1": "anterior"})
    sets = [f"network.options={TINY}", "train.epochs=8", "train.patch_size=[24, 24, 24]", "data.workers=0", "train.ema=0",
            "data.split={by: last, count: 2}", f"output={tmp_path / 'run'}", "train.validate_every=4"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    report = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert list(report["targets"]) == ["anterior"]


# ---- labels that a case does not annotate


def two_organs(folder: Path, *, drawn: bool) -> Path:
    """Six cases with a ball and a plate: of the odd ones the plate, of the even ones the ball is annotated, of the last both.

    Where it is not annotated, it is ``drawn`` in part, or not at all.
    """
    manifest = tiny_dataset(folder, labels=("ball", "plate"))
    entries = json.loads(manifest.read_text())["training"]
    for i, entry in enumerate(entries):
        label = np.asanyarray(nib.load(folder / entry["label"]).dataobj).copy()
        image = np.asanyarray(nib.load(folder / entry["image"]["a"]).dataobj).copy()
        label[:2], image[:2] = 2, image[:2] - 2
        save(folder / entry["image"]["a"], image)
        if i == 5:
            save(folder / entry["label"], label)
            continue
        entry["annotated"] = [("ball", "plate")[i % 2]]
        hidden = label == 2 - i % 2
        label[hidden & ((np.indices(label.shape)[1] > 6) | (not drawn))] = 0
        save(folder / entry["label"], label)
    return changed(manifest, training=entries)


def test_what_is_not_annotated_is_neither_learned_nor_scored(tmp_path: Path) -> None:
    """Whatever is drawn of it, the weights and the scores are the same; in the report its cells are empty."""
    found = {
        drawn: trained(tmp_path / str(drawn), two_organs(tmp_path / str(drawn), drawn=drawn)) for drawn in (True, False)
    }
    assert found[True]["cases"] == found[False]["cases"]
    one, other = ((tmp_path / f"{drawn}/run/model/model.safetensors").read_bytes() for drawn in found)
    assert one == other
    metrics = found[True]
    assert set(metrics["cases"]) == {"case4", "case5"}
    assert set(metrics["cases"]["case4"]["plate"].values()) == {None}
    assert metrics["cases"]["case4"]["ball"]["reference_voxels"] > 0
    assert [metrics["summary"][name]["n"] for name in ("ball", "plate", "mean")] == [2, 1, 2]
    assert metrics["summary"]["plate"]["n_undefined"] == 0
    assert metrics["notes"] == ["1 case scored on those targets alone that the reference annotates."]
    with (tmp_path / "True/run/report/metrics.csv").open() as stream:
        rows = {(row["case"], row["target"]): row for row in csv.DictReader(stream)}
    assert set(list(rows["case4", "plate"].values())[2:]) == {""}
    assert float(rows["case5", "plate"]["reference_voxels"]) > 0
    log = [json.loads(line) for line in (tmp_path / "True/run/log.jsonl").read_text().splitlines()]
    assert any("dice/plate" in row for row in log)
    whole = changed(two_organs(tmp_path / "whole", drawn=False))
    content = json.loads(whole.read_text())
    changed(whole, training=[{k: v for k, v in entry.items() if k != "annotated"} for entry in content["training"]])
    assert trained(tmp_path / "whole", whole)["cases"]["case5"] != metrics["cases"]["case5"], (
        "else it is learned as background"
    )


def test_regions_of_cases_that_annotate_a_part(tmp_path: Path) -> None:
    manifest = two_organs(tmp_path, drawn=True)
    regions = "[{name: both, labels: [ball, plate], write: plate}, {name: ball, labels: [ball], write: ball}]"
    metrics = trained(tmp_path, manifest, f"data.regions={regions}")
    assert metrics["cases"]["case4"]["both"]["dice"] is None
    assert metrics["cases"]["case4"]["ball"]["dice"] is not None
    assert metrics["cases"]["case5"]["both"]["dice"] is not None
    assert set(metrics["threshold_baseline"]) == {"both", "ball"}


def test_cross_validation_of_cases_that_annotate_a_part(tmp_path: Path) -> None:
    manifest = two_organs(tmp_path, drawn=False)
    regions = "[{name: ball, labels: [ball], write: ball}, {name: plate, labels: [plate], write: plate}]"
    metrics = trained(
        tmp_path, manifest, f"data.regions={regions}", "inference.choose=[thresholds]", "folds=2", "train.epochs=1"
    )
    assert [metrics["summary"][name]["n"] for name in ("ball", "plate")] == [4, 3]
    assert set(metrics["postprocessing"]["dice_without"]) == {"ball", "plate"}


def test_predictions_are_scored_on_what_a_case_annotates(tmp_path: Path) -> None:
    manifest = two_organs(tmp_path, drawn=True)
    for i in range(6):
        save(tmp_path / f"p/case{i}.nii.gz", np.asanyarray(nib.load(tmp_path / f"case{i}_seg.nii.gz").dataobj))
    words = ["--predictions", str(tmp_path / "p"), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, [*words, "--labels", "ball=1", "--labels", "plate=2", "--labels", "both=1,2"]) == 0
    summary = json.loads((tmp_path / "r/metrics.json").read_text())["summary"]
    assert {name: (row["n"], row["mean"]) for name, row in summary.items()} == {
        "ball": (4, 1.0), "plate": (3, 1.0), "both": (1, 1.0), "mean": (6, 1.0)
    }  # fmt: skip
    assert run_command(compare, [str(tmp_path / "r"), f"again={tmp_path / 'r'}"]) == 0


def test_a_table_names_what_its_cases_annotate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_organs(tmp_path, drawn=True)
    lines = [
        f"case{i},case{i}_a.nii.gz,case{i}_seg.nii.gz,{('label_1', 'label_2 | label_1', '')[i % 3]}" for i in range(6)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["id,a,seg,annotated", *lines]) + "\n")
    assert run_command(init, [str(tmp_path / "t.csv"), "--output", str(tmp_path / "my.yaml")]) == 0
    written = json.loads((tmp_path / "my.json").read_text())["training"]
    assert [entry.get("annotated") for entry in written] == [["label_1"], ["label_1", "label_2"], None] * 2
    (tmp_path / "t.csv").write_text(
        "\n".join(["id,a,seg,annotated", *lines[:1], lines[1].replace("|", "liver")]) + "\n"
    )
    assert run_command(init, [str(tmp_path / "t.csv"), "--output", str(tmp_path / "other.yaml")]) == 65
    assert "case case1 has 'liver' among 'annotated'" in capsys.readouterr().err


def test_two_real_sets_of_one_label_each(real_data: Path, tmp_path: Path) -> None:
    """Hippocampi, of which half are annotated in front and half behind: the network finds both parts."""
    source = json.loads((real_data / "hippocampus/dataset.json").read_text())
    entries = []
    for i, entry in enumerate(source["training"][:14]):
        files = {key: str(real_data / "hippocampus" / entry[key]) for key in ("image", "label")}
        partial = {"annotated": [("Anterior", "Posterior")[i % 2]]} if i < 12 else {}
        entries.append({"id": Path(entry["image"]).name.removesuffix(".nii.gz"), **files, **partial})
    (tmp_path / "list.json").write_text(json.dumps(source | {"training": entries}))
    assert run_command(init, [str(tmp_path / "list.json"), "--output", str(tmp_path / "my.yaml")]) == 0
    sets = [f"network.options={TINY}", "train.epochs=25", "train.patch_size=[24, 24, 24]", "data.workers=0", "train.ema=0",
            "data.split={by: last, count: 2}", f"output={tmp_path / 'run'}", "optimizer.lr=1e-2"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *words]) == 0
    summary = json.loads((tmp_path / "run/report/metrics.json").read_text())["summary"]
    assert {name: summary[name]["n"] for name in ("anterior", "posterior")} == {"anterior": 2, "posterior": 2}
    assert min(summary[name]["mean"] for name in ("anterior", "posterior")) > 0.3


# ---- channels that a case lacks


def without(manifest: Path, *cases: str, channel: str = "b") -> Path:
    """The list, in which some cases lack a channel."""
    content = json.loads(manifest.read_text())
    for entry in content["training"]:
        if entry["id"] in cases:
            del entry["image"][channel]
    return changed(manifest, training=content["training"])


def record(folder: Path, case: str) -> dict[str, Any]:
    return json.loads((folder / f"{case}.json").read_text())


def test_a_case_that_lacks_a_channel_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In training (case0), validation (case5) and inference, where it is what a constant channel is: 0."""
    manifest = without(tiny_dataset(tmp_path), "case0", "case5")
    trained(tmp_path, manifest, code=65)
    with caplog.at_level(logging.WARNING):
        found = trained(tmp_path, manifest, "data.missing=zeros", "augmentation.channel_dropout=0.3")
    assert "0 stands for the channels that cases lack: case0 b, case5 b" in caplog.text
    assert set(found["cases"]) == {"case4", "case5"}
    assert len(json.loads((tmp_path / "run/held_out.json").read_text())["training"][1]["image"]) == 1
    flat = np.full(np.asanyarray(nib.load(tmp_path / "case5_a.nii.gz").dataobj).shape, 3.0, np.float32)
    save(tmp_path / "flat.nii.gz", flat)
    model, results = tmp_path / "run", []
    for name, given in (("p", []), ("q", ["--channel", f"b={tmp_path / 'flat.nii.gz'}"])):
        caplog.clear()
        words = [
            "--model",
            str(model),
            "--channel",
            f"a={tmp_path / 'case5_a.nii.gz'}",
            *given,
            "--output",
            str(tmp_path / name),
        ]
        with caplog.at_level(logging.WARNING):
            assert run_command(infer, [*words, "--probabilities"]) == 0
        results.append(np.asanyarray(nib.load(tmp_path / f"{name}/case5_prob.nii.gz").dataobj))
        flags = record(tmp_path / name, "case5")["flags"]
        assert ("channel b is missing, and 0 in its place" in flags) == (name == "p")
        assert ("case5: channel b is missing" in caplog.text) == (name == "p")
    assert np.array_equal(*results)
    assert list(record(tmp_path / "p", "case5")["input_sha256"]) == ["a"]
    (tmp_path / "t.csv").write_text("id,a,b\ncase4,case4_a.nii.gz,case4_b.nii.gz\ncase5,case5_a.nii.gz,\n")
    words = ["--model", str(model), "--output", str(tmp_path / "t")]
    assert run_command(infer, [*words, "--input", str(tmp_path / "t.csv")]) == 0
    assert record(tmp_path / "t", "case5")["flags"][0] == "channel b is missing, and 0 in its place"


def test_a_model_that_has_not_learned_it_refuses_such_a_case(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path)
    trained(tmp_path, manifest, "train.epochs=1")
    without(manifest, "case5")
    words = ["--model", str(tmp_path / "run"), "--input", str(manifest), "--output", str(tmp_path / "p")]
    assert run_command(infer, words) == 2
    (failure,) = json.loads((tmp_path / "p/failures.json").read_text())
    assert (failure["case"], failure["code"]) == ("case5", "E_CHANNEL")
    assert "data.missing=zeros" in failure["fix"]
    (tmp_path / "t.csv").write_text("id,a,b\ncase4,case4_a.nii.gz,case4_b.nii.gz\ncase5,case5_a.nii.gz,\n")
    words = ["--model", str(tmp_path / "run"), "--input", str(tmp_path / "t.csv"), "--output", str(tmp_path / "t")]
    assert run_command(infer, words) == 2
    assert json.loads((tmp_path / "t/failures.json").read_text())[0]["code"] == "E_CHANNEL"


def test_a_folder_of_which_half_lacks_a_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Init asks; then the config uses it, and so does the folder itself as data.manifest, with data.missing=zeros."""
    folder = tmp_path / "d"
    names = write_as_downloaded(folder, "brats2021", heads=4, spacing=12.0)
    for name, channel in zip(names[:2], ("flair", "t1ce"), strict=True):
        (folder / name / f"{name}_{channel}.nii.gz").unlink()
    words = [str(folder), "--output", str(tmp_path / "my.yaml")]
    assert run_command(init, words) == 65
    assert "--missing drop leaves these cases out, --missing zeros uses them" in capsys.readouterr().err
    assert run_command(init, [*words, "--missing", "drop"]) == 2
    assert "2 cases without a channel left out" in capsys.readouterr().out
    assert [case["id"] for case in json.loads((tmp_path / "my.json").read_text())["training"]] == names[2:]
    assert run_command(init, [*words, "--missing", "zeros", "--force"]) == 0
    assert [case["id"] for case in json.loads((tmp_path / "my.json").read_text())["training"]] == names
    assert load_config(tmp_path / "my.yaml").data.missing == "zeros"
    sets = [f"network.options={TINY}", "train.epochs=1", "train.patch_size=[8, 8, 8]", "data.workers=0", "data.missing=zeros",
            f"data.manifest={folder}", "data.split={by: last, count: 1}", f"output={tmp_path / 'run'}"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    assert run_command(train, ["--config", str(tmp_path / "my.yaml"), *words]) == 0
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["provenance"]["training_cases"] == 3
    assert card["preprocessing"]["missing"] == "zeros"


def test_an_ensemble_takes_what_all_of_its_models_take() -> None:
    card, _ = random_model()
    other = card.model_copy(update={"preprocessing": card.preprocessing | {"missing": "zeros"}})
    assert joint_card([other, other]).preprocessing["missing"] == "zeros"
    assert "missing" not in joint_card([other, card]).preprocessing
    assert "missing" not in joint_card([card, other]).preprocessing
