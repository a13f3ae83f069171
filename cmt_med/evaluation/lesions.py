"""Lesion-wise scores: each lesion counts alike, whatever its size, and so does each false positive.

After the BraTS 2023 challenge. Lesions of the reference that lie close together are one lesion: they are joined where
their dilations touch. The components of the prediction that touch a lesion's dilation are its match, and all of them
together are compared with it. A lesion without a match is missed, a component that touches no lesion is a false
positive, and both score as badly as can be: Dice 0 and an HD95 of 374 mm. A matched lesion's HD95 counts 374 mm at
most, so that finding it is never worse than missing it. In the challenge's images (240 × 240 × 155 voxels of 1 mm) no
distance is larger than 373.13 mm, and the numbers are the challenge's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.errors import ConfigError
from cmt_med.evaluation.surface import Points, axes_with_faces, bounding_box, point_distances, surface_points

MISSED_HD95_MM = 374.0  # and the most that a matched lesion counts
_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a face, an edge or a corner are connected


@dataclass(frozen=True)
class LesionRule:
    """A lesion of a mask.

    Attributes:
        dilation: steps over faces and edges (18 neighbours) by which lesions are dilated before they are joined.
        min_voxels: lesions of at most so many voxels are not scored, and what is matched to them is no false positive.
    """

    dilation: int
    min_voxels: int


LESION_RULES: dict[str, LesionRule] = {
    "gli": LesionRule(dilation=3, min_voxels=50),
    "ped": LesionRule(dilation=3, min_voxels=50),
    "ssa": LesionRule(dilation=3, min_voxels=50),
    "men": LesionRule(dilation=1, min_voxels=50),
    "met": LesionRule(dilation=1, min_voxels=2),
}


def lesion_rule_named(name: str) -> LesionRule:
    """The rule of a data set of the challenge.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in LESION_RULES:
        raise ConfigError(
            f"lesion rule {name!r} is unknown", where="--lesion-wise", fix=f"use {' or '.join(LESION_RULES)}"
        )
    return LESION_RULES[name]


@dataclass(frozen=True)
class Lesion:
    """One scored lesion: voxels of the reference and of its match (0 where missed), Dice, and HD95 in mm, at most 374."""

    voxels: int
    matched_voxels: int
    dice: float
    hd95: float


@dataclass(frozen=True)
class LesionScores:
    """The scored lesions of one mask, and the number of components that touch none."""

    lesions: tuple[Lesion, ...]
    false_positives: int

    @property
    def missed(self) -> int:
        """Lesions without a match."""
        return sum(lesion.matched_voxels == 0 for lesion in self.lesions)

    @property
    def detected(self) -> int:
        """Lesions that some component touches, be the overlap small or, within the dilation, none."""
        return len(self.lesions) - self.missed

    @property
    def counted(self) -> int:
        """The number that scores are divided by: lesions and false positives."""
        return len(self.lesions) + self.false_positives

    @property
    def dice(self) -> float:
        """Sum of the lesions' Dice over lesions and false positives; 1 if there is neither."""
        return sum(lesion.dice for lesion in self.lesions) / self.counted if self.counted else 1.0

    @property
    def hd95(self) -> float:
        """Mean HD95 in mm, where a false positive counts as a miss; 0 if there is neither."""
        total = sum(lesion.hd95 for lesion in self.lesions) + MISSED_HD95_MM * self.false_positives
        return total / self.counted if self.counted else 0.0


def lesion_scores(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float], rule: LesionRule
) -> LesionScores:
    """Match and score the lesions of two masks.

    Args:
        predicted, reference: masks (D1, D2, D3) of one region.
        spacing: size of a voxel in mm, per axis.
        rule: how lesions are joined, and which are dropped.
    """
    # Dilations that are cut at the box meet where the whole ones would: what meets outside does so on its face, too.
    box, faces = bounding_box(predicted | reference), axes_with_faces(reference.shape)
    predicted, reference = (np.ascontiguousarray(mask[box]) for mask in (predicted, reference))
    # A dilated component is the dilation of the lesion inside it: each of its voxels was reached from a voxel of it.
    zones, lesions = ndimage.label(_dilated(reference, rule.dilation), _TOUCHING)
    components, found = ndimage.label(predicted, _TOUCHING)
    sizes = np.bincount(zones[reference], minlength=lesions + 1)
    component_sizes = np.bincount(components[predicted], minlength=found + 1)
    matches = _touching(zones, components, predicted)
    hits = np.bincount(zones[predicted & reference], minlength=lesions + 1)
    surfaces = _grouped(surface_points(reference, faces), zones, lesions)
    component_surfaces = _grouped(surface_points(predicted, faces), components, found)
    scored = []
    for lesion in range(1, lesions + 1):
        size = int(sizes[lesion])
        if size <= rule.min_voxels:
            continue
        match = matches.get(lesion, [])
        if not match:
            scored.append(Lesion(size, 0, 0.0, MISSED_HD95_MM))
            continue
        matched = int(component_sizes[match].sum())
        points = np.concatenate([component_surfaces[component] for component in match])
        hd95 = min(point_distances(points, surfaces[lesion], spacing).hd95, MISSED_HD95_MM)
        scored.append(Lesion(size, matched, 2.0 * int(hits[lesion]) / (size + matched), hd95))
    touched = {component for match in matches.values() for component in match}
    return LesionScores(tuple(scored), found - len(touched))


def _touching(
    zones: NDArray[np.int32], components: NDArray[np.int32], predicted: NDArray[np.bool_]
) -> dict[int, list[int]]:
    """Lesion -> components that have a voxel in its zone."""
    count = int(components.max(initial=0)) + 1
    pairs = np.unique(zones[predicted].astype(np.int64) * count + components[predicted])
    matches: dict[int, list[int]] = {}
    for lesion, component in zip((pairs // count).tolist(), (pairs % count).tolist(), strict=True):
        if lesion:
            matches.setdefault(lesion, []).append(component)
    return matches


def _grouped(points: Points, labels: NDArray[np.int32], count: int) -> list[Points]:
    """The points (N, 3) of each label, at its place in the list (0 is the background).

    Voxels of different components share no face, so that the surface of the mask, taken apart, is the components'.
    """
    owner = labels[tuple(points.T)]
    order = np.argsort(owner, kind="stable")
    return np.split(points[order], np.searchsorted(owner[order], np.arange(1, count + 1)))


def _dilated(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """The mask grown over faces and edges: two axes at a time, which is several times faster than the 18 neighbours."""
    for _ in range(steps):
        first, second = _spread(mask, 0), _spread(mask, 1)
        mask = _spread(first, 1) | _spread(first, 2) | _spread(second, 2)
    return mask


def _spread(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """The mask and its neighbours on both sides along one axis."""
    result = mask.copy()
    source, target = np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0)
    target[1:] |= source[:-1]
    target[:-1] |= source[1:]
    return result
