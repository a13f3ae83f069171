"""All scores of a case: what each rule makes of empty masks, volumes, names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cmt_med.base.errors import ConfigError
from cmt_med.evaluation.lesions import LESION_RULES
from cmt_med.evaluation.metrics import (
    CHALLENGE_PENALTY_MM,
    LESION_COUNTS,
    METRICS,
    case_metrics,
    check_tolerances,
    mask_metrics,
    metric_of,
    surface_dice_name,
)
from cmt_med.evaluation.overlap import EMPTY_RULES, EmptyRule
from tests.evaluation.masks import random_pair, slow_case, slow_scores

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


def golden(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float], ratios: tuple[float, ...],
    distances: tuple[float, ...], near: tuple[float, float], ml: tuple[float, float], volume: tuple[float, float],
    lesion: tuple[float, ...],
) -> Any:  # fmt: skip
    """A case by hand.

    Args:
        predicted, reference, spacing: the masks, and voxels in mm.
        ratios: dice, iou, sensitivity, precision, specificity.
        distances: hd, hd95, assd.
        near: surface Dice at 1 and 2 mm.
        ml: volumes of reference and prediction.
        volume: error in mL, and relative to the reference.
        lesion: dice, hd95; lesions, detected, missed, false positives.
    """
    names = ("dice", "iou", "sensitivity", "precision", "specificity", "hd", "hd95", "assd", "nsd_1mm", "nsd_2mm",
             "reference_ml", "predicted_ml", "volume_error_ml", "relative_volume_error", "absolute_volume_error_ml",
             "absolute_relative_volume_error", "lesion_dice", "lesion_hd95", *LESION_COUNTS)  # fmt: skip
    values = (*ratios, *distances, *near, *ml, *volume, *map(abs, volume), *lesion)
    return predicted, reference, spacing, dict(zip(names, values, strict=True))


def block(low: tuple[int, int, int], side: int = 3) -> np.ndarray:
    mask = np.zeros((12, 12, 12), bool)
    mask[tuple(slice(n, n + side) for n in low)] = True
    return mask


NOTHING = np.zeros((12, 12, 12), bool)
PENALTY = CHALLENGE_PENALTY_MM  # above the diagonal of 12 voxels
GOLDEN = {
    # 26 of 27 voxels are surface: 9 of them lie 5, 8 lie 4 and 9 lie 3 voxels from the other cube
    "two cubes 5 mm apart": golden(
        block((6, 1, 1)), block((1, 1, 1)), (1, 1, 1), (0, 0, 0, 0, 1674 / 1701), (5, 5, 4), (0, 0), (0.027, 0.027),
        (0, 0), (0, 374, 1, 0, 1, 1),
    ),
    # the same 5 voxels of 3 mm; voxels of 0.75 mm³
    "two cubes 15 mm apart along the slices": golden(
        block((1, 1, 6)), block((1, 1, 1)), (0.5, 0.5, 3), (0, 0, 0, 0, 1674 / 1701), (15, 15, 12), (0, 0),
        (0.02025, 0.02025), (0, 0), (0, 374, 1, 0, 1, 1),
    ),
    # moved by one voxel of 3 mm: 18 voxels in common; of 26 surface voxels, 9 lie 3 mm away, 16 are surface of both, and
    # the one in the middle of the other cube lies 0.5 mm below its surface
    "anisotropic, one slice off": golden(
        block((4, 4, 5)), block((4, 4, 4)), (0.5, 0.5, 3), (2 / 3, 1 / 2, 2 / 3, 2 / 3, 1692 / 1701), (3, 3, 27.5 / 26),
        (17 / 26, 17 / 26), (0.02025, 0.02025), (0, 0), (2 / 3, 3, 1, 1, 0, 0),
    ),
    # 1, 2 and 3 voxels of 2, 1 and 0.5 mm; one voxel is no lesion that counts, the other touches none
    "one voxel each": golden(
        block((3, 5, 7), 1), block((2, 3, 4), 1), (2, 1, 0.5), (0, 0, 0, 0, 1726 / 1727), (math.sqrt(10.25),) * 3, (0, 0),
        (0.001, 0.001), (0, 0), (0, 374, 0, 0, 0, 1),
    ),
    # of the cube's surface, 6 voxels lie 1, 12 √2 and 8 √3 mm from the one in its middle; too small to count as a lesion
    "one voxel inside of a cube": golden(
        block((4, 4, 4)), block((5, 5, 5), 1), (1, 1, 1), (2 / 28, 1 / 27, 1, 1 / 27, 1701 / 1727),
        (math.sqrt(3), math.sqrt(3), (7 + 12 * math.sqrt(2) + 8 * math.sqrt(3)) / 27), (7 / 27, 1), (0.001, 0.027),
        (0.026, 26), (1, 0, 0, 0, 0, 0),
    ),
    "both empty": golden(
        NOTHING, NOTHING, (1, 1, 1), (1, 1, 1, 1, 1), (0, 0, 0), (1, 1), (0, 0), (0, NAN), (1, 0, 0, 0, 0, 0),
    ),
    "missed": golden(
        NOTHING, block((1, 1, 1)), (1, 1, 2), (0, 0, 0, 0, 1), (PENALTY,) * 3, (0, 0), (0.054, 0), (-0.054, -1),
        (0, 374, 1, 0, 1, 0),
    ),
    "false positive": golden(
        block((1, 1, 1)), NOTHING, (1, 1, 2), (0, 0, 0, 0, 1701 / 1728), (PENALTY,) * 3, (0, 0), (0, 0.054),
        (0.054, NAN), (0, 374, 0, 0, 0, 1),
    ),
    "identical": golden(
        block((4, 4, 4)), block((4, 4, 4)), (0.7, 1.3, 2), (1, 1, 1, 1, 1), (0, 0, 0), (1, 1), (0.04914, 0.04914),
        (0, 0), (1, 0, 1, 1, 0, 0),
    ),
    # the prediction has 2 of 3 layers, 18 voxels, all surface: 17 are surface of both, the one in the middle of the
    # reference lies 1 mm below its surface; of the reference's 26, the 9 of the layer that is lacking lie 1 mm away
    "touching the border, partly found": golden(
        np.pad(np.ones((2, 3, 3), bool), ((0, 10), (0, 9), (0, 9))), block((0, 0, 0)),
        (1, 1, 1), (36 / 45, 18 / 27, 18 / 27, 1, 1), (1, 1, 10 / 44), (1, 1), (0.027, 0.018), (-0.009, -1 / 3),
        (36 / 45, 1, 1, 1, 0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(GOLDEN))
def test_golden_cases_with_every_score(case: str) -> None:
    predicted, reference, spacing, expected = GOLDEN[case]
    found = mask_metrics(predicted, reference, spacing=spacing, lesion_rule=LESION_RULES["met"])
    assert (found.pop("reference_voxels"), found.pop("predicted_voxels")) == (reference.sum(), predicted.sum())
    assert found == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True)
    assert set(METRICS) | {"nsd_1mm", "nsd_2mm"} <= set(expected)


@pytest.mark.parametrize("rule", list(EMPTY_RULES))
def test_random_pairs_with_every_score(rule: EmptyRule, soak: bool) -> None:
    """Empty masks too, by the rule: overlap exactly, distances to 1e-6."""
    seen = {(p, r): 0 for p in (False, True) for r in (False, True)}
    for seed in range(500) if soak else (*range(60), 147):  # 147: both are empty
        predicted, reference, spacing = random_pair(np.random.default_rng(seed))
        found = mask_metrics(predicted, reference, spacing=spacing, rule=rule)
        slow = slow_case(predicted, reference, spacing, rule)
        assert set(found) == set(slow)
        for name, value in slow.items():
            measured = name in DISTANCES or name.startswith("nsd")
            near = 1e-6 if measured else 1e-12 if "volume" in name or name.endswith("ml") else 0
            assert found[name] == pytest.approx(value, abs=near, rel=0, nan_ok=True), (seed, name)
        seen[bool(predicted.any()), bool(reference.any())] += 1
    assert all(seen.values()), seen


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
        pytest.param("diagonal", EMPTY, dict.fromkeys(RATIOS, 1.0), 0.0, True, id="diagonal-both-empty"),
        pytest.param("diagonal", CUBE, dict.fromkeys(RATIOS, 0.0), DIAGONAL, True, id="diagonal-false-positive"),
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


def test_what_nobody_has_annotated_counts_nowhere() -> None:
    """Four voxels of eight are known: one is right, one invented, one missed, one background."""
    reference = np.array([1, 1, 0, 0, 9, 9, 9, 9], np.uint8).reshape(2, 2, 2)
    predicted = np.array([1, 0, 1, 0, 1, 1, 1, 0], np.uint8).reshape(2, 2, 2)
    found = case_metrics(predicted, reference, {"x": [1]}, spacing=(10.0, 10.0, 10.0), ignore=9)["x"]
    assert (found["reference_voxels"], found["predicted_voxels"], found["predicted_ml"]) == (2, 2, 2.0)
    assert (found["dice"], found["iou"], found["specificity"]) == (0.5, 1 / 3, 0.5)
    assert found["hd"] == pytest.approx(10.0)
    plain = case_metrics(predicted, np.where(reference == 9, 0, reference), {"x": [1]}, spacing=(10.0, 10.0, 10.0))["x"]
    assert plain["dice"] == 2 * 1 / (5 + 2)
    blind = case_metrics(predicted, np.full_like(reference, 9), {"x": [1]}, spacing=(10.0, 10.0, 10.0), ignore=9)["x"]
    assert (blind["reference_voxels"], blind["predicted_voxels"]) == (0, 0)
    assert math.isnan(blind["specificity"])
