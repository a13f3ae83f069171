"""Masks to score, and a slow recomputation of surfaces and distances that shares no code with the package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPACINGS = ((1.0, 1.0, 1.0), (0.5, 0.5, 3.0), (1.2, 0.7, 2.5), (4.0, 1.0, 0.25), (0.9375, 0.9375, 1.2))


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A prediction, a reference and a spacing; every kind of trouble comes up among a few dozen."""
    shape = tuple(int(n) for n in rng.integers(1, (18, 16, 14)))
    masks = []
    for _ in range(2):
        kind = rng.choice(["empty", "voxel", "full", "noise", "balls", "corners"], p=[0.06, 0.08, 0.06, 0.3, 0.3, 0.2])
        mask = np.zeros(shape, bool)
        if kind == "voxel":
            mask[tuple(rng.integers(0, shape))] = True
        elif kind == "full":
            mask[:] = True
        elif kind == "noise":
            mask = rng.random(shape) < rng.choice([0.02, 0.3, 0.9])
        elif kind in ("balls", "corners"):
            for _ in range(rng.integers(1, 4)):
                mask |= ball(shape, rng.uniform(0, shape), rng.uniform(1, 6))
        if kind == "corners":
            mask[0, 0, 0] = mask[-1, -1, -1] = True
        masks.append(np.asfortranarray(mask) if rng.random() < 0.5 else mask)
    if rng.random() < 0.3:  # a prediction that is nearly right
        masks[0] = masks[1] ^ (rng.random(shape) < 0.01)
    return masks[0], masks[1], SPACINGS[rng.integers(len(SPACINGS))]


def ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return np.asarray(np.linalg.norm(grid - np.asarray(centre), axis=-1) < radius)


def slow_surface(mask: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
    """Voxels (N, 3) with a face on a voxel that is not in the mask, or on the outside of the image.

    Along an axis of one voxel there are no faces, unless the image (of ``shape``, the mask's own by default) is one
    voxel.
    """
    whole = mask.shape if shape is None else shape
    inside = {tuple(v) for v in np.argwhere(mask).tolist()}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    faces = [s for s in steps if max(whole) == 1 or whole[np.argmax(np.abs(s))] > 1]
    edge = [
        v for v in sorted(inside) if any(tuple(a + b for a, b in zip(v, f, strict=True)) not in inside for f in faces)
    ]
    return np.array(edge, dtype=float).reshape(-1, 3)


def slow_directed(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """For each of ``a`` (N, 3), the least of all distances to ``b`` (M, 3)."""
    return np.array([min(np.sqrt((((p - b) * spacing) ** 2).sum(1))) for p in a])


def slow_percentile(values: np.ndarray, share: float) -> float:
    ordered = sorted(values.tolist())
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def slow_scores(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """hd, hd95, assd and nsd at 1 and 2 mm of two masks that are not empty."""
    a, b = slow_surface(predicted), slow_surface(reference)
    ab, ba = slow_directed(a, b, spacing), slow_directed(b, a, spacing)
    both = np.concatenate([ab, ba])
    return {
        "hd": float(both.max()),
        "hd95": max(slow_percentile(ab, 0.95), slow_percentile(ba, 0.95)),
        "assd": float(both.mean()),
        "nsd_1mm": sum(d <= 1 + 1e-5 for d in both) / len(both),
        "nsd_2mm": sum(d <= 2 + 1e-5 for d in both) / len(both),
    }


def slow_case(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], rule: str) -> dict[str, float]:
    """Every score but the lesion-wise ones, from sets of voxels and the table of rules."""
    nan = float("nan")
    p, r = ({tuple(v) for v in np.argwhere(mask).tolist()} for mask in (predicted, reference))
    image, ml = predicted.size, spacing[0] * spacing[1] * spacing[2] / 1000
    both, background = len(p & r), image - len(r)
    scores = {
        "reference_voxels": len(r), "predicted_voxels": len(p), "reference_ml": len(r) * ml, "predicted_ml": len(p) * ml,
        "specificity": (background - len(p - r)) / background if background else nan,
        "volume_error_ml": (len(p) - len(r)) * ml,
        "relative_volume_error": (len(p) - len(r)) / len(r) if r else nan,
    }  # fmt: skip
    diagonal = float(np.linalg.norm(np.array(predicted.shape) * spacing))
    penalty = max(diagonal, 373.13) if rule == "challenge" else diagonal
    ratios, distances = ("dice", "iou", "sensitivity", "precision", "nsd_1mm", "nsd_2mm"), ("hd", "hd95", "assd")
    if p and r:
        scores |= {
            "dice": 2 * both / (len(p) + len(r)), "iou": both / len(p | r), "sensitivity": both / len(r),
            "precision": both / len(p),
        } | slow_scores(predicted, reference, spacing)  # fmt: skip
    elif r:  # missed
        scores |= dict.fromkeys(ratios, 0.0) | dict.fromkeys(distances, penalty)
    elif rule in ("challenge", "diagonal"):
        scores |= dict.fromkeys(ratios, float(not p)) | dict.fromkeys(distances, penalty if p else 0.0)
    elif rule == "nan" and p:
        scores |= dict.fromkeys(ratios, 0.0) | dict.fromkeys(distances, nan) | {"sensitivity": nan}
    else:
        scores |= dict.fromkeys(ratios + distances, nan)
    if rule == "skip" and not r:
        scores |= {"specificity": nan, "volume_error_ml": nan}
    scores["absolute_volume_error_ml"] = abs(scores["volume_error_ml"])
    scores["absolute_relative_volume_error"] = abs(scores["relative_volume_error"])
    return scores
