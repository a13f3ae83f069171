"""Reliability of saved probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmt_med.reports.calibration import measure_reliability, probabilities_beside
from tests.helpers import save


def test_probabilities_that_mean_what_they_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0, 1, (40, 41, 42)).astype(np.float32)
    truth = (rng.uniform(size=chance.shape) < chance).astype(np.uint8)
    bold = np.clip(chance * 2 - 0.5, 0, 1)  # too sure of itself
    found = {}
    for name, values in (("honest", chance), ("bold", bold)):
        save(tmp_path / f"{name}_prob.nii.gz", np.stack([values, values], -1))
        save(tmp_path / f"{name}_ref.nii.gz", truth)
        saved = {name: (tmp_path / f"{name}_prob.nii.gz", tmp_path / f"{name}_ref.nii.gz")}
        curves, left_out = measure_reliability(saved, {"a": [1], "b": [1]})
        assert left_out == []
        found[name] = curves["b"]
    assert found["honest"].error < 0.01
    assert np.allclose(found["honest"].observed, found["honest"].probability, atol=0.03)
    assert found["honest"].voxels.sum() == chance.size
    expected = np.abs(bold[bold >= 0.1] - (bold[bold >= 0.1] + 0.5) / 2)
    assert abs(found["bold"].error - expected[bold[bold >= 0.1] < 1].sum() / (bold >= 0.1).sum()) < 0.08


def test_classes_have_the_background_first(tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4] = 2
    save(tmp_path / "x_ref.nii.gz", labels)
    chances = np.stack([labels == 0, labels == 1, labels == 2], -1).astype(np.float32)
    save(tmp_path / "x_prob.nii.gz", chances)
    saved = {"x": (tmp_path / "x_prob.nii.gz", tmp_path / "x_ref.nii.gz")}
    curves, _ = measure_reliability(saved, {"one": [1], "two": [2]})
    assert curves["two"].voxels[-1] == (labels == 2).sum()
    assert curves["two"].error == 0
    assert np.isnan(curves["one"].error)
    nothing, left_out = measure_reliability(saved, {"a": [1], "b": [2], "c": [3], "d": [4]})
    assert nothing == {}
    assert left_out == ["x: 3 channels of probabilities for 4 targets"]
    nothing, left_out = measure_reliability(saved, {"one": [1], "two": [2]}, {tmp_path / "x_ref.nii.gz": "0" * 64})
    assert nothing == {}
    assert left_out == ["x: the file is not the one that the case list was made for"]


def test_where_probabilities_are_looked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "x_prob.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert probabilities_beside(tmp_path / "x.nii.gz") == path
    assert probabilities_beside(tmp_path / "y.nii.gz") is None
