"""Surfaces and distances by hand, against brute force, and beside MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from cmt_med.evaluation import surface
from cmt_med.evaluation.surface import SurfaceDistances, bounding_box, surface_distances, surface_points
from tests.evaluation.masks import ball, random_pair, slow_scores, slow_surface


def cube(low: tuple[int, int, int], side: int = 3, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    result = np.zeros(shape, bool)
    result[tuple(slice(n, n + side) for n in low)] = True
    return result


def between(predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> SurfaceDistances:
    found = surface_distances(predicted, reference, spacing)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("axis", "spacing", "unit"),
    [(0, (1, 1, 1), 1.0), (0, (2, 1, 1), 2.0), (2, (1, 1, 3), 3.0), (1, (5, 0.5, 5), 0.5)],
)
def test_two_cubes_five_voxels_apart(axis: int, spacing: tuple[float, ...], unit: float) -> None:
    low = [1, 1, 1]
    low[axis] += 5
    found = between(cube((1, 1, 1)), cube(tuple(low)), spacing)
    # of the 26 surface voxels, 9 lie 5, 8 (the one in the centre is inside) lie 4, and 9 lie 3 voxels away
    assert found.from_predicted.size == found.from_reference.size == 26
    assert found.hd == found.hd95 == 5 * unit
    assert found.assd == pytest.approx(4 * unit, abs=1e-12)
    assert found.surface_dice(3 * unit) == 9 / 26
    assert found.surface_dice(4 * unit) == 17 / 26
    assert found.surface_dice(2.99 * unit) == 0


def test_single_voxels_and_anisotropic_spacing() -> None:
    found = between(cube((2, 3, 4), side=1), cube((3, 5, 7), side=1), (0.5, 1.0, 2.0))
    distance = math.sqrt(0.5**2 + 2**2 + 6**2)
    assert found.hd == found.hd95 == found.assd == distance
    assert found.surface_dice(distance) == 1


def test_identical_masks() -> None:
    found = between(cube((4, 4, 4), side=5), cube((4, 4, 4), side=5), (0.7, 1.3, 2.0))
    assert (found.hd, found.hd95, found.assd, found.surface_dice(0.001)) == (0, 0, 0, 1)


def test_voxels_on_the_border_are_surface() -> None:
    whole, middle = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    middle[1, 1, 1] = True
    assert len(surface_points(whole)) == 26
    found = between(middle, whole)
    # 6 faces at 1, 12 edges at √2, 8 corners at √3
    assert found.hd == found.hd95 == math.sqrt(3)
    assert found.assd == pytest.approx((1 + 6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)) / 27)
    assert found.surface_dice(1) == 7 / 27
    assert len(surface_points(np.ones((2, 4, 4), bool))) == 32


def disc(centre: int, radius: int) -> np.ndarray:
    x, y = np.mgrid[:128, :128]
    return np.asarray((x - centre) ** 2 + (y - 64) ** 2 < radius**2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_has_a_contour(axis: int) -> None:
    """Two discs 10 pixels apart: whatever the thickness of the slice, the numbers of 2D."""
    flat = between(disc(60, 30), disc(70, 30), (1.0, 1.0))
    assert (flat.hd95, flat.assd) == (10.0, pytest.approx(6.0776, abs=1e-4))
    masks = [np.expand_dims(mask, axis) for mask in (disc(60, 30), disc(70, 30))]
    spacing = [1.0, 1.0]
    spacing.insert(axis, 5.0)
    found = between(*masks, tuple(spacing))
    assert np.array_equal(np.sort(found.from_predicted), np.sort(flat.from_predicted))
    assert np.array_equal(np.sort(found.from_reference), np.sort(flat.from_reference))
    # a slice of a volume is not a volume of a slice: its voxels are all surface, as before
    thick = [np.concatenate([mask, mask & False], axis) for mask in masks]
    assert len(surface_points(thick[0])) == masks[0].sum()


def test_lines_and_points_have_a_surface() -> None:
    assert surface_points(np.ones((1, 9, 1), bool)).tolist() == [[0, 0, 0], [0, 8, 0]]
    point = np.ones((1, 1, 1), bool)
    assert surface_points(point).tolist() == [[0, 0, 0]]
    assert between(point, point).hd == 0


def test_hd95_is_the_larger_direction_linearly_interpolated() -> None:
    row, end = np.zeros((11, 2, 2), bool), np.zeros((11, 2, 2), bool)
    row[:, 0, 0], end[0, 0, 0] = True, True
    for predicted, reference in ((row, end), (end, row)):
        found = between(predicted, reference)
        assert (found.hd, found.hd95) == (10, 9.5)  # of 0 … 10 one way, of a single 0 the other


def test_nothing_to_measure() -> None:
    empty = np.zeros((4, 4, 4), bool)
    for pair in ((empty, empty), (empty, ~empty), (~empty, empty)):
        assert surface_distances(*pair, (1, 1, 1)) is None
    assert bounding_box(empty) == (slice(0, 0),) * 3
    assert surface_points(empty).shape == (0, 3)


def test_a_layer_does_not_fall_outside_by_rounding() -> None:
    spacing = float(np.float32(1.0) + np.finfo(np.float32).eps)
    assert spacing > 1
    assert between(cube((1, 1, 1), side=1), cube((2, 1, 1), side=1), (spacing,) * 3).surface_dice(1) == 1


def test_random_pairs_against_brute_force(soak: bool) -> None:
    compared = 0
    for seed in range(500 if soak else 60):
        predicted, reference, spacing = random_pair(np.random.default_rng(seed))
        assert np.array_equal(
            np.array(sorted(surface_points(predicted).tolist())).reshape(-1, 3), slow_surface(predicted)
        )
        found = surface_distances(predicted, reference, spacing)
        assert (found is None) == (not predicted.any() or not reference.any())
        if found is not None:
            compared += 1
            values = {"hd": found.hd, "hd95": found.hd95, "assd": found.assd}
            values |= {"nsd_1mm": found.surface_dice(1), "nsd_2mm": found.surface_dice(2)}
            assert values == pytest.approx(slow_scores(predicted, reference, spacing), abs=1e-6, rel=0), seed
    assert compared > (300 if soak else 30)


@pytest.mark.parametrize("stray", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.6, 4.0), (2.0, 0.3, 1.0)])
def test_looking_nearby_and_the_tree_agree(
    monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, ...], stray: bool
) -> None:
    shape = (40, 44, 30)
    predicted, reference = ball(shape, (20, 21, 14), 11), ball(shape, (19, 23, 15), 10)
    predicted[0, 0, 0] = predicted[-1, -1, -1] = stray
    both = between(predicted, reference, spacing)
    monkeypatch.setattr(surface, "FEW", 10**9)
    tree = between(predicted, reference, spacing)
    assert np.array_equal(both.from_predicted, tree.from_predicted)
    assert np.array_equal(both.from_reference, tree.from_reference)
    monkeypatch.setattr(surface, "FEW", 1)
    assert np.array_equal(between(predicted, reference, spacing).from_predicted, tree.from_predicted)


def test_the_same_numbers_as_monai(soak: bool) -> None:
    compared = 0
    for seed in range(200 if soak else 40):
        predicted, reference, spacing = random_pair(np.random.default_rng(1000 + seed))
        found = surface_distances(predicted, reference, spacing)
        if found is None:
            continue
        thick = [axis for axis, n in enumerate(predicted.shape) if n > 1]
        if len(thick) < 2:
            continue  # MONAI wants two axes
        compared += 1
        # MONAI gets a single slice as the 2D image that it is
        spacing = tuple(spacing[axis] for axis in thick)
        p, r = (torch.from_numpy(np.ascontiguousarray(m.squeeze()))[None, None].float() for m in (predicted, reference))
        common = {"include_background": True, "spacing": spacing}
        theirs = {
            "hd": compute_hausdorff_distance(p, r, **common),
            "hd95": compute_hausdorff_distance(p, r, percentile=95, **common),
            "assd": compute_average_surface_distance(p, r, symmetric=True, **common),
            "nsd": compute_surface_dice(p, r, [2.0], **common),
        }
        ours = {"hd": found.hd, "hd95": found.hd95, "assd": found.assd, "nsd": found.surface_dice(2.0)}
        # MONAI computes in float32
        assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, rel=2e-6, abs=1e-6), seed
    assert compared > 20
