"""All scores of a case: what each rule makes of empty masks, volumes, names."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmt_med.errors import ConfigError
from cmt_med.evaluation.lesions import LESION_RULES
from cmt_med.evaluation.metrics import (
    CHALLENGE_PENALTY_MM,
    METRICS,
    case_metrics,
    check_tolerances,
    mask_metrics,
    metric_of,
    surface_dice_name,
)
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule
from tests.evaluation.masks import random_pair, slow_scores

SHAPE, SPACING = (10, 20, 20), (2.0, 1.0, 0.5)
DIAGONAL = math.sqrt(20**2 + 20**2 + 10**2)
NAN = float("nan")
EMPTY = np.zeros(SHAPE, bool)
CUBE = EMPTY.copy()
CUBE[2:5, 2:5, 2:5] = True
RATIOS = ("dice", "iou", "sensitivity", "precision", "nsd_1mm", "nsd_2mm")
DISTANCES = ("hd", "hd95", "assd")


def scores(predicted: np.ndarray, reference: np.ndarray, rule: EmptyRule) -> dict[str, float]:
    return mask_metrics(predicted, reference, spacing=SPACING, rule=rule, lesion_rule=LESION_RULES["met"])


def test_golden_cubes_with_every_score() -> None:
    moved = np.roll(CUBE, 1, axis=2)  # by 0.5 mm: 18 of 27 voxels in common
    found = scores(moved, CUBE, "challenge")
    assert found == pytest.approx(
        {
            "dice": 36 / 54, "reference_voxels": 27, "predicted_voxels": 27, "reference_ml": 0.027, "predicted_ml": 0.027,
            "iou": 18 / 36, "sensitivity": 18 / 27, "precision": 18 / 27, "specificity": (4000 - 27 - 9) / (4000 - 27),
            # of 26 surface voxels either way, 16 are surface of both, and 10 lie 0.5 mm apart
            "hd": 0.5, "hd95": 0.5, "assd": 10 * 0.5 / 26, "nsd_1mm": 1, "nsd_2mm": 1,
            "volume_error_ml": 0, "absolute_volume_error_ml": 0, "relative_volume_error": 0,
            "absolute_relative_volume_error": 0,
            "lesion_dice": 36 / 54, "lesion_hd95": 0.5, "n_lesions": 1, "n_lesions_detected": 1, "n_lesions_missed": 0,
            "n_lesions_false_positive": 0,
        },
        abs=1e-12,
    )  # fmt: skip


def test_volume_errors() -> None:
    half = CUBE.copy()
    half[4] = False  # 18 of 27 voxels of 0.001 mL
    found = scores(half, CUBE, "challenge")
    assert found["volume_error_ml"] == pytest.approx(-0.009)
    assert found["absolute_volume_error_ml"] == pytest.approx(0.009)
    assert found["relative_volume_error"] == pytest.approx(-1 / 3)
    assert found["absolute_relative_volume_error"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rule", list(EMPTY_RULES))
def test_a_missed_lesion_is_never_better_than_a_find(rule: EmptyRule) -> None:
    found = scores(EMPTY, CUBE, rule)
    penalty = CHALLENGE_PENALTY_MM if rule == "challenge" else DIAGONAL
    assert {name: found[name] for name in RATIOS} == dict.fromkeys(RATIOS, 0.0)
    assert {name: found[name] for name in DISTANCES} == pytest.approx(dict.fromkeys(DISTANCES, penalty))
    assert (found["relative_volume_error"], found["lesion_dice"], found["lesion_hd95"]) == (-1, 0, 374)
    worst = EMPTY.copy()
    worst[-1, -1, -1] = True
    corner = EMPTY.copy()
    corner[0, 0, 0] = True
    assert all(scores(worst, corner, rule)[name] < found[name] for name in DISTANCES)


def test_the_penalty_is_the_diagonal_of_the_image() -> None:
    brats, body = (240, 240, 155), (4000, 10, 10)
    mask, wide = np.zeros(brats, bool), np.zeros(body, bool)
    mask[0, 0, 0] = wide[0, 0, 0] = True
    for rule, penalty in (("challenge", 373.13), ("nan", 373.1287)):
        found = mask_metrics(np.zeros_like(mask), mask, spacing=(1, 1, 1), rule=rule)  # type: ignore[arg-type]
        assert found["hd95"] == pytest.approx(penalty, abs=1e-4)
    assert mask_metrics(~wide & False, wide, spacing=(1, 1, 1))["hd95"] == pytest.approx(4000, abs=0.1)


@pytest.mark.parametrize(
    ("rule", "predicted", "ratios", "distance", "defined"),
    [
        pytest.param("challenge", EMPTY, dict.fromkeys(RATIOS, 1.0), 0.0, True, id="challenge-both-empty"),
        pytest.param("challenge", CUBE, dict.fromkeys(RATIOS, 0.0), 373.13, True, id="challenge-false-positive"),
        pytest.param("nan", EMPTY, dict.fromkeys(RATIOS, NAN), NAN, True, id="nan-both-empty"),
        pytest.param(
            "nan", CUBE, dict.fromkeys(RATIOS, 0.0) | {"sensitivity": NAN}, NAN, True, id="nan-false-positive"
        ),
        pytest.param("skip", EMPTY, dict.fromkeys(RATIOS, NAN), NAN, False, id="skip-both-empty"),
        pytest.param("skip", CUBE, dict.fromkeys(RATIOS, NAN), NAN, False, id="skip-false-positive"),
    ],
)
def test_empty_reference(
    rule: EmptyRule, predicted: np.ndarray, ratios: dict[str, float], distance: float, defined: bool
) -> None:
    found = scores(predicted, EMPTY, rule)
    assert {name: found[name] for name in RATIOS} == pytest.approx(ratios, nan_ok=True)
    assert {name: found[name] for name in DISTANCES} == pytest.approx(dict.fromkeys(DISTANCES, distance), nan_ok=True)
    assert math.isnan(found["relative_volume_error"])
    assert math.isnan(found["absolute_relative_volume_error"])
    assert math.isnan(found["volume_error_ml"]) is not defined
    assert math.isnan(found["specificity"]) is not defined
    assert found["predicted_ml"] == pytest.approx(predicted.sum() / 1000)
    nothing = not predicted.any()
    undefined = rule == "skip" or (rule == "nan" and nothing)
    expected = (NAN, NAN) if undefined else (1, 0) if nothing else (0, 374)
    assert (found["lesion_dice"], found["lesion_hd95"]) == pytest.approx(expected, nan_ok=True)
    assert found["n_lesions_false_positive"] == int(not nothing)


def test_random_pairs_through_label_maps() -> None:
    """Targets, tolerances and spacing reach the scores; memory order does not matter."""
    for seed in range(40):
        predicted, reference, spacing = random_pair(np.random.default_rng(2000 + seed))
        if not predicted.any() or not reference.any():
            continue
        maps = (predicted * np.uint8(3), reference * np.uint8(5))
        found = case_metrics(*maps, {"t": [3]}, reference_targets={"t": [4, 5]}, spacing=spacing)["t"]
        assert {name: found[name] for name in slow_scores(predicted, reference, spacing)} == pytest.approx(
            slow_scores(predicted, reference, spacing), abs=1e-6, rel=0
        )
        assert found["reference_ml"] == pytest.approx(reference.sum() * math.prod(spacing) / 1000)


def test_names() -> None:
    found = mask_metrics(CUBE, CUBE, spacing=SPACING, tolerances=(0.5, 3))
    assert {"nsd_0.5mm", "nsd_3mm"} < set(found)
    assert not any(name.startswith(("n_lesions", "lesion")) for name in found)
    metric = metric_of(surface_dice_name(0.5))
    assert metric is not None
    assert (metric.title, metric.better) == ("surface Dice at 0.5 mm", "higher")
    assert metric_of("reference_voxels") is None
    assert set(METRICS) <= set(scores(CUBE, CUBE, "nan"))
    for wrong in (0.0, -1.0, NAN, math.inf):
        with pytest.raises(ConfigError, match="tolerance"):
            check_tolerances([1.0, wrong])
    check_tolerances([1.0, 1.00001])
    for near in (1.0, 1.0000001):
        with pytest.raises(ConfigError, match="both called nsd_1mm"):
            check_tolerances([1.0, 2.0, near])
