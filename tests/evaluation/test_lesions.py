"""Lesion-wise scores by hand, and against flood fill and dilation voxel by voxel."""

from __future__ import annotations

import math
from collections import deque
from itertools import product

import numpy as np
import pytest

from cmt_med.base.errors import ConfigError
from cmt_med.evaluation.lesions import LESION_RULES, LesionRule, lesion_rule_named, lesion_scores
from tests.evaluation.masks import SPACINGS, ball, slow_directed, slow_percentile, slow_surface

Voxel = tuple[int, ...]
AROUND = [d for d in product((-1, 0, 1), repeat=3) if any(d)]  # 26
FACES_AND_EDGES = [d for d in AROUND if sum(map(abs, d)) <= 2]  # 18


def flood(voxels: set[Voxel]) -> list[set[Voxel]]:
    """Components at 26 neighbours, one voxel after the other."""
    left, components = set(voxels), []
    while left:
        queue = deque([left.pop()])
        component = set(queue)
        while queue:
            here = queue.popleft()
            for step in AROUND:
                there = tuple(a + b for a, b in zip(here, step, strict=True))
                if there in left:
                    left.remove(there)
                    component.add(there)
                    queue.append(there)
        components.append(component)
    return components


def grown(voxels: set[Voxel], steps: int, shape: tuple[int, ...]) -> set[Voxel]:
    for _ in range(steps):
        moved = {tuple(a + b for a, b in zip(v, d, strict=True)) for v in voxels for d in FACES_AND_EDGES}
        voxels = voxels | {v for v in moved if all(0 <= n < size for n, size in zip(v, shape, strict=True))}
    return voxels


def slow_lesion_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], rule: LesionRule
) -> tuple[float, float, int, int, int]:
    """Dice, HD95, number of scored lesions, of missed ones, of false positives."""
    truth, shape = {tuple(v) for v in np.argwhere(reference).tolist()}, reference.shape
    zones = flood(grown(truth, rule.dilation, shape))
    components = flood({tuple(v) for v in np.argwhere(predicted).tolist()})
    matched: set[int] = set()
    dices, distances, missed = [], [], 0
    for zone in zones:
        lesion = zone & truth
        mine = grown(lesion, rule.dilation, shape)
        match = [i for i, component in enumerate(components) if component & mine]
        matched |= set(match)
        if len(lesion) <= rule.min_voxels:
            continue
        if not match:
            missed += 1
            dices.append(0.0)
            distances.append(374.0)
            continue
        found = set().union(*(components[i] for i in match))
        dices.append(2 * len(found & lesion) / (len(found) + len(lesion)))
        surfaces = []
        for voxels in (found, lesion):
            mask = np.zeros(shape, bool)
            mask[tuple(np.array(sorted(voxels)).T)] = True
            surfaces.append(slow_surface(mask, shape))
        a, b = surfaces
        both = (slow_directed(a, b, spacing), slow_directed(b, a, spacing))
        distances.append(min(374.0, max(slow_percentile(d, 0.95) for d in both)))
    false = len(components) - len(matched)
    count = len(dices) + false
    if count == 0:
        return 1.0, 0.0, 0, 0, 0
    return sum(dices) / count, (sum(distances) + 374.0 * false) / count, len(dices), missed, false


def random_volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, LesionRule]:
    """Small lesions, close, at the border or none, found in part, split, joined, missed, and invented."""
    shape = tuple(int(n) for n in rng.integers(6, (22, 20, 18)))
    reference = np.zeros(shape, bool)
    for _ in range(rng.integers(0, 7)):
        reference |= ball(shape, rng.uniform(-1, shape), rng.uniform(0.6, 3.5))
    predicted = reference.copy()
    if rng.random() < 0.8:
        predicted = np.roll(predicted, rng.integers(-2, 3, 3), (0, 1, 2)) & (rng.random(shape) < rng.uniform(0.3, 1))
    if rng.random() < 0.3:
        predicted[: shape[0] // 2] = False
    for _ in range(rng.integers(0, 4)):
        predicted |= ball(shape, rng.uniform(0, shape), rng.uniform(0.6, 2))
    if rng.random() < 0.1:
        predicted[:] = False
    if rng.random() < 0.3:  # a single slice, where surfaces are contours
        predicted, reference = predicted[:, :, 3:4], reference[:, :, 3:4]
    rules = [*LESION_RULES.values(), LesionRule(1, 5), LesionRule(2, 10), LesionRule(0, 0)]
    return predicted, reference, rules[rng.integers(len(rules))]


def test_random_volumes_against_flood_fill(soak: bool) -> None:
    seen = {"nothing": 0, "only false positives": 0, "missed": 0, "merged": 0, "dropped": 0, "border": 0, "slice": 0}
    for seed in range(200 if soak else 60):
        rng = np.random.default_rng(seed)
        predicted, reference, rule = random_volume(rng)
        spacing = SPACINGS[rng.integers(len(SPACINGS))]
        found = lesion_scores(np.asfortranarray(predicted), reference, spacing, rule)
        slow = slow_lesion_scores(predicted, reference, spacing, rule)
        numbers = (len(found.lesions), found.missed, found.false_positives)
        assert numbers == slow[2:], seed
        assert found.dice == pytest.approx(slow[0], abs=1e-12), seed
        assert found.hd95 == pytest.approx(slow[1], abs=1e-6), seed
        truth = {tuple(v) for v in np.argwhere(reference).tolist()}
        lesions = [zone & truth for zone in flood(grown(truth, rule.dilation, reference.shape))]
        seen["nothing"] += not reference.any() and not predicted.any()
        seen["only false positives"] += not reference.any() and found.false_positives > 0
        seen["missed"] += found.missed > 0
        seen["merged"] += len(lesions) < len(flood(truth))
        seen["dropped"] += any(len(lesion) <= rule.min_voxels for lesion in lesions)
        seen["slice"] += reference.shape[2] == 1 and len(found.lesions) > found.missed
        seen["border"] += any(0 in voxel for voxel in truth)
    assert all(seen.values()), seen


SHAPE = (30, 30, 30)
GLI, MET = LESION_RULES["gli"], LESION_RULES["met"]


def box(*corners: tuple[int, int, int], side: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for corner in corners:
        mask[tuple(slice(n, n + side) for n in corner)] = True
    return mask


def test_one_found_one_missed_one_invented() -> None:
    found = lesion_scores(box((2, 2, 2), (20, 2, 2)), box((2, 2, 2), (2, 20, 20)), (1, 1, 1), GLI)
    assert (len(found.lesions), found.detected, found.missed, found.false_positives) == (2, 1, 1, 1)
    assert found.dice == pytest.approx(1 / 3)
    assert found.hd95 == pytest.approx(2 * 374 / 3)


def test_lesions_that_lie_close_are_one() -> None:
    two = box((2, 2, 2), (2, 2, 10))  # four voxels between them: dilations of 3 meet, those of 1 do not
    assert [lesion.voxels for lesion in lesion_scores(two, two, (1, 1, 1), GLI).lesions] == [128]
    assert [lesion.voxels for lesion in lesion_scores(two, two, (1, 1, 1), MET).lesions] == [64, 64]
    half = lesion_scores(box((2, 2, 2)), two, (1, 1, 1), GLI)
    assert (half.dice, half.missed) == (pytest.approx(2 * 64 / (64 + 128)), 0)
    assert lesion_scores(box((2, 2, 2)), two, (1, 1, 1), MET).dice == 0.5


def test_everything_that_touches_a_lesion_is_its_match() -> None:
    lesion, near, far = box((10, 10, 10)), box((10, 10, 16)), box((10, 10, 17))
    # two voxels away: outside of the lesion, inside of its dilation
    found = lesion_scores(lesion | near, lesion, (1, 1, 1), GLI)
    assert (found.dice, found.false_positives) == (pytest.approx(2 * 64 / (64 + 128)), 0)
    apart = lesion_scores(lesion | far, lesion, (1, 1, 1), GLI)
    assert (apart.dice, apart.false_positives) == (0.5, 1)
    only = lesion_scores(near, lesion, (1, 1, 2), GLI)
    assert (only.dice, only.hd95, only.detected) == (0, 12.0, 1)


def test_the_match_of_a_dropped_lesion_is_no_false_positive() -> None:
    small = box((20, 20, 20), side=3)  # 27 voxels
    found = lesion_scores(box((2, 2, 2)) | small, box((2, 2, 2)) | small, (1, 1, 1), GLI)
    assert (len(found.lesions), found.false_positives, found.dice) == (1, 0, 1)
    assert len(lesion_scores(small, small, (1, 1, 1), MET).lesions) == 1
    alone = lesion_scores(small, small, (1, 1, 1), GLI)
    assert (alone.counted, alone.dice, alone.hd95) == (0, 1, 0)
    assert lesion_scores(np.zeros(SHAPE, bool), small, (1, 1, 1), GLI).dice == 1


@pytest.mark.parametrize("side", [2, 5])
def test_nothing_and_false_positives_only(side: int) -> None:
    empty = np.zeros(SHAPE, bool)
    nothing = lesion_scores(empty, empty, (1, 1, 1), GLI)
    assert (nothing.dice, nothing.hd95, nothing.counted) == (1, 0, 0)
    false = lesion_scores(box((2, 2, 2), (20, 20, 20), side=side), empty, (1, 1, 1), GLI)
    assert (false.dice, false.hd95, false.false_positives, false.missed) == (0, 374, 2, 0)


def test_lesions_at_the_border() -> None:
    corner = box((0, 0, 0), (26, 26, 26))
    found = lesion_scores(corner, corner, (1, 1, 1), GLI)
    assert (len(found.lesions), found.dice, found.hd95) == (2, 1, 0)


def test_a_find_is_never_worse_than_a_miss() -> None:
    """A lesion found with a tail of a metre counts as much as a missed one; in the challenge's images none is cut off."""
    lesion, found = np.zeros((10, 10, 600), bool), np.zeros((10, 10, 600), bool)
    lesion[2:6, 2:6, 2:6] = found[2:6, 2:6, 2:6] = found[4, 4, 4:590] = True
    tail, miss = (lesion_scores(mask, lesion, (1, 1, 2), GLI) for mask in (found, found & False))
    assert (tail.hd95, miss.hd95) == (374, 374)
    assert tail.dice > miss.dice == 0
    assert math.hypot(240, 240, 155) < 374
    near = lesion_scores(found, lesion, (1, 1, 0.5), GLI)
    assert 200 < near.hd95 < 374


def test_a_single_slice_is_measured_by_its_contour() -> None:
    x, y = np.mgrid[:128, :128]
    flat = [((x - centre) ** 2 + (y - 64) ** 2 < 30**2)[..., None] for centre in (60, 70)]
    assert lesion_scores(*flat, (1, 1, 5), GLI).hd95 == 10
    # lesions that lie in one slice of a volume have no inside
    thick = [np.concatenate([mask, mask & False], 2) for mask in flat]
    assert lesion_scores(*thick, (1, 1, 5), GLI).hd95 < 10


def test_rules() -> None:
    assert {name: (rule.dilation, rule.min_voxels) for name, rule in LESION_RULES.items()} == {
        "gli": (3, 50), "ped": (3, 50), "ssa": (3, 50), "men": (1, 50), "met": (1, 2),
    }  # fmt: skip
    assert lesion_rule_named("met") == LesionRule(1, 2)
    with pytest.raises(ConfigError, match="unknown"):
        lesion_rule_named("glioma")
