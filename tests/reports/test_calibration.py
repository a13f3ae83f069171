"""Reliability of saved probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.reports.calibration import Calibration, SavedChances, measure_reliability, probabilities_beside
from tests.helpers import save

Channels = Mapping[str, Sequence[int]]


def saved_case(
    folder: Path, chances: NDArray[np.float32], labels: NDArray[np.uint8], channels: Channels | None
) -> SavedChances:
    """A case as infer leaves it, with a channel of ``chances`` (\\*S, K) for each of ``channels``."""
    record = folder / "x.json"
    named = None if channels is None else [{"name": n, "values": list(v)} for n, v in channels.items()]
    record.write_text(json.dumps({"probability_channels": named}))
    return SavedChances(save(folder / "x_prob.nii.gz", chances), record, save(folder / "x_ref.nii.gz", labels))


def measure(files: SavedChances, targets: Channels, reference_targets: Channels | None = None) -> Calibration:
    return measure_reliability({"x": files}, targets, reference_targets or targets)


def nested() -> NDArray[np.uint8]:
    """WT (1, 2, 3) around TC (1, 3) around ET (3)."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:10, 2:10, 2:10] = 2
    labels[4:8, 4:8, 4:8] = 1
    labels[5:7, 5:7, 5:7] = 3
    return labels


REGIONS = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}


def test_probabilities_that_mean_what_they_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0, 1, (40, 41, 42)).astype(np.float32)
    truth = (rng.uniform(size=chance.shape) < chance).astype(np.uint8)
    bold = np.clip(chance * 2 - 0.5, 0, 1)  # too sure of itself
    found = {}
    for name, values in (("honest", chance), ("bold", bold)):
        files = saved_case(tmp_path, np.stack([values, values], -1), truth, {"a": [1], "b": [1]})
        result = measure(files, {"a": [1], "b": [1]})
        assert (result.left_out, result.read) == ([], 1)
        found[name] = result.curves["b"]
    assert found["honest"].error < 0.01
    assert np.allclose(found["honest"].observed, found["honest"].probability, atol=0.03)
    assert found["honest"].voxels.sum() == chance.size
    # by hand: of the honest p, those below 0.25 and above 0.75 are 0 and 1, wrong by 0.125; between, |p - 0.5| is 0.125
    assert found["bold"].error == pytest.approx(0.125, abs=0.01)


def test_a_sure_miss_is_an_error(tmp_path: Path) -> None:
    truth = np.zeros((30, 30, 30), np.uint8)
    truth[5:25, 5:25, 5:25] = 1
    chance = np.full((*truth.shape, 1), 0.02, np.float32)
    chance[14:16, 14:16, 14:16] = 0.99
    curve = measure(saved_case(tmp_path, chance, truth, {"a": [1]}), {"a": [1]}).curves["a"]
    assert curve.missed == pytest.approx(7992 / 8000)
    # all 27 000 voxels lie within 10 mm of the reference: 7 992 of the 26 992 that are given 0.02 belong to it
    assert curve.error == pytest.approx((7992 - 0.02 * 26992 + 0.01 * 8) / 27000, abs=1e-4)


def test_what_nobody_has_annotated_does_not_count(tmp_path: Path) -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[:3], truth[6:] = 1, 4
    chance = np.full((*truth.shape, 1), 0.35, np.float32)
    files = replace(saved_case(tmp_path, chance, truth, {"a": [1]}), ignore=4)
    curve = measure(files, {"a": [1]}).curves["a"]
    assert curve.voxels.sum() == 6 * 144
    assert curve.observed[3] == 0.5


def test_what_is_far_from_everything_does_not_count(tmp_path: Path) -> None:
    truth = np.zeros((50, 9, 9), np.uint8)
    truth[20] = 1
    chance = truth[..., None] * 0.9
    spacing = np.diag([2.5, 1.0, 1.0, 1.0])
    files = saved_case(tmp_path, chance.astype(np.float32), truth, {"a": [1]})
    save(files.probabilities, chance.astype(np.float32), spacing)
    save(files.reference, truth, spacing)
    curve = measure(files, {"a": [1]}).curves["a"]
    assert curve.voxels[0] == 8 * 81  # 10 mm are four slices of 2.5 mm, on both sides
    assert curve.error == pytest.approx(0.1 / 9)


def test_channels_go_by_name(tmp_path: Path) -> None:
    labels = nested()
    perfect = np.stack([np.isin(labels, values) for values in REGIONS.values()], -1).astype(np.float32)
    files = saved_case(tmp_path, perfect, labels, REGIONS)
    for order in (["WT", "TC", "ET"], ["ET", "TC", "WT"], ["TC", "ET"]):
        found = measure(files, {name: REGIONS[name] for name in order})
        assert {name: curve.error for name, curve in found.curves.items()} == dict.fromkeys(order, 0.0)
        assert found.left_out == []
    renumbered = np.where(labels == 3, 4, labels).astype(np.uint8)  # references in another convention's numbers
    save(files.reference, renumbered)
    found = measure(files, REGIONS, {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]})
    assert all(curve.error == 0 for curve in found.curves.values())


def test_a_region_that_is_not_scored_shifts_none(tmp_path: Path) -> None:
    labels = nested()
    regions = {**REGIONS, "RC": [4]}
    perfect = np.stack([np.isin(labels, values) for values in regions.values()], -1).astype(np.float32)
    found = measure(saved_case(tmp_path, perfect, labels, regions), REGIONS)
    assert {name: curve.error for name, curve in found.curves.items()} == dict.fromkeys(REGIONS, 0.0)


def test_classes_have_a_background(tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4] = 2
    chances = np.stack([labels == 0, labels == 1, labels == 2], -1).astype(np.float32)
    files = saved_case(tmp_path, chances, labels, {"background": [0], "one": [1], "two": [2]})
    curves = measure(files, {"one": [1], "two": [2]}).curves
    assert curves["two"].voxels[-1] == (labels == 2).sum()
    assert curves["two"].error == 0
    assert curves["two"].missed == 0
    assert np.isnan(curves["one"].error)
    assert np.isnan(curves["one"].missed)


@pytest.mark.parametrize(
    ("channels", "targets", "scale", "reason"),
    [
        (None, REGIONS, 1, "not known"),
        ({"WT": [1, 2, 3], "TC": [1, 3]}, REGIONS, 1, "3 channels of probabilities, of which x.json names 2"),
        (REGIONS, {"core": [1, 3]}, 1, "no channel of the probabilities is called core (they are WT, TC, ET)"),
        (REGIONS, {"WT": [1, 3]}, 1, "the channel WT means other label values"),
        (REGIONS, REGIONS, 100, "values outside [0, 1]"),
        (REGIONS, REGIONS, -1, "values outside [0, 1]"),
    ],
)
def test_what_is_left_out_and_why(
    tmp_path: Path, channels: Channels | None, targets: Channels, scale: int, reason: str
) -> None:
    labels = nested()
    chances = np.stack([np.isin(labels, values) for values in REGIONS.values()], -1).astype(np.float32)
    found = measure(saved_case(tmp_path, chances * scale, labels, channels), targets)
    assert found.curves == {}
    assert found.read == 0
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("x: ")
    assert reason in found.left_out[0]


def test_a_reference_that_was_replaced_is_left_out(tmp_path: Path) -> None:
    labels = nested()
    perfect = np.stack([np.isin(labels, values) for values in REGIONS.values()], -1).astype(np.float32)
    files = saved_case(tmp_path, perfect, labels, REGIONS)
    found = measure_reliability({"x": files}, REGIONS, REGIONS, {files.reference: "0" * 64})
    assert found.curves == {}
    assert found.left_out == ["x: the file is not the one that the case list was made for"]


def test_where_probabilities_are_looked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "x_prob.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert probabilities_beside(tmp_path / "x.nii.gz") == (path, tmp_path / "x.json")
    assert probabilities_beside(tmp_path / "y.nii.gz") is None
