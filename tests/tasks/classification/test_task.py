"""Loss, weights and answers of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.classification import Classification as Settings
from cmt_med.config.schema import Experiment, Inference
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.tasks.classification.report import UNKNOWN_PATIENTS
from cmt_med.tasks.classification.task import Classification

THREE = ("a", "b", "c")


def test_the_loss_is_torchs() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    plain = Classification(THREE, Settings(label_smoothing=0.1))
    assert float(plain.loss(logits, {"class": classes})) == pytest.approx(
        float(F.cross_entropy(logits, classes, label_smoothing=0.1))
    )
    weighed = Classification(THREE, Settings(class_weights="balanced"), [30, 20, 10])
    # each class has the same share: n / (K n_k)
    expected = F.cross_entropy(logits, classes, weight=torch.tensor([60 / 90, 60 / 60, 60 / 30]))
    assert float(weighed.loss(logits, {"class": classes})) == pytest.approx(float(expected))


def test_counts_are_of_training_cases() -> None:
    cases = [Case(f"c{i}", {}, class_name=name) for i, name in enumerate("aab")]
    assert Classification(THREE).with_training(cases).counts == [2, 1, 0]


def test_records_and_rows() -> None:
    task = Classification(THREE)
    record = task.record(torch.tensor([0.2, 0.5, 0.3]))
    assert record["class"] == "b"
    assert record["probabilities"] == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.3})
    assert task.columns == ["class", "p_a", "p_b", "p_c"]
    assert task.row(record) == ["b", *map(pytest.approx, (0.2, 0.5, 0.3))]
    for wrong in ({}, {"probabilities": {"a": 1.0}}, {"probabilities": "none"}):
        with pytest.raises(DataError) as caught:
            task.row(wrong)
        assert caught.value.code == "E_RUN"


def test_the_card(tmp_path: Path) -> None:
    task = Classification.from_card({"b": 1, "a": 0}, None)
    assert task.classes == ("a", "b")
    for labels in ({"a": 0, "b": 2}, {"a": 1, "b": 2}):
        with pytest.raises(ValueError, match="numbered"):
            Classification.from_card(labels, None)
    for key, value in (("thresholds", {"a": 0.5}), ("min_region_mm3", {"a": 3.0}), ("choose", ["thresholds"])):
        with pytest.raises(ConfigError, match="label maps"):
            task.check(Inference.model_validate({key: value}))


def experiment(tmp_path: Path, classes: list[str], **train: object) -> tuple[Experiment, Path]:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": f"{i}.png", "class": c} for i, c in enumerate(classes)]}))
    content = {"name": "x", "output": "o", "task": "classification", "data": {"manifest": str(path), "channels": ["image"]},
               "train": {"epochs": 1, "patch_size": [8] * 3} | train}  # fmt: skip
    return Experiment.model_validate(content), path


def test_what_cannot_be_learned(tmp_path: Path) -> None:
    for classes in (["a", "a"], []):
        asked, path = experiment(tmp_path, classes)
        with pytest.raises(DataError, match="tell apart") as caught:
            Classification.from_data(asked, load_manifest(path))
        assert caught.value.code == "E_MANIFEST"
    asked, path = experiment(tmp_path, ["a", "b"], loss="tversky")
    with pytest.raises(ConfigError, match="loss of label maps"):
        Classification.from_data(asked, load_manifest(path))


def test_what_is_said() -> None:
    task = Classification(("no", "yes"))
    chances = {"p1": [0.9, 0.1], "p2": [0.2, 0.8], "p3": [0.3, 0.7], "p4": [0.6, 0.4]}
    truth = {"p1": "no", "p2": "yes", "p3": "no", "p4": "yes"}
    records = {n: task.record(torch.tensor(p)) | {"case": n} for n, p in chances.items()}
    cases = {name: Case(name, {}, group=name, class_name=c) for name, c in truth.items()}
    found = task.assess(records, cases, [{"case": "p5"}])
    overall = found.metrics["summary"]["overall"]
    assert overall["accuracy"]["value"] == 0.5
    assert overall["auc"]["value"] == 0.75
    assert found.metrics["confusion"] == [[1, 1], [1, 1]]
    assert found.metrics["cases"]["p3"]["class"]["correct"] == 0.0
    assert found.metrics["summary"]["n_failed"] == 1
    assert UNKNOWN_PATIENTS in found.lines
    assert list(found.sections[-1].pictures) == ["p3", "p4"]  # the surest first
    assert "no, taken for yes with probability 0.70" in found.sections[-1].pictures["p3"]
    json.dumps(found.metrics)
    known = {name: Case(name, {}, group=f"patient{i // 2}", class_name=truth[name]) for i, name in enumerate(truth)}
    assert UNKNOWN_PATIENTS not in task.assess(records, known, []).lines
    with pytest.raises(DataError, match="does not know") as caught:
        task.assess(records, {name: Case(name, {}, class_name="maybe") for name in cases}, [])
    assert caught.value.code == "E_LABEL"
    assert np.isfinite(overall["auc"]["low"])
