"""Post-processing chosen on out-of-fold predictions, with an honest estimate of what it brings.

A threshold per region and the smallest total volume at which the innermost regions (enhancing tumour) are still written.
Both are chosen for the mean Dice by the challenge's rule. What the choice brings is estimated by choosing on all folds but one
and applying the choice to that one: a gain measured on the cases that chose it would flatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.config.schema import Inference
from cmt_med.data.case import Case, Codes
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.tasks.segmentation.labels import Regions
from cmt_med.tasks.segmentation.target import Target, surrounding

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(17))
MINIMA_MM3 = (0.0, 25.0, 50.0, 100.0, 200.0, 300.0, 500.0, 750.0, 1000.0)
WORTH = 1e-3  # a smaller gain in mean Dice is not worth a setting


@dataclass(frozen=True)
class OutOfFoldCase:
    """A case with a prediction by a network that has not seen it; ``sums`` and what follows are of the case."""

    name: str
    fold: int
    probabilities: Path
    reference: Path
    sums: Mapping[Path, str] = field(default_factory=dict)
    colours: Codes = field(default_factory=dict)
    ignore: int | None = None
    annotated: tuple[int, ...] | None = None

    def annotates(self, target: Target) -> bool:
        """Tell whether the reference shows a target."""
        return self.annotated is None or set(target.values) <= set(self.annotated)


@dataclass(frozen=True)
class Choice:
    """The settings for the model, and the mean Dice per target without them and with cross-fitted ones."""

    settings: Inference
    before: dict[str, float]
    after: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        chosen = {"thresholds": self.settings.thresholds, "min_region_mm3": self.settings.min_region_mm3}
        return {"chosen": chosen, "dice_without": self.before, "dice_with_cross_fitted": self.after}


@dataclass(frozen=True)
class _Sizes:
    """One case under some thresholds: Dice, and what it would be if an innermost target were not written.

    Targets that the case does not annotate have none.
    """

    dice: dict[str, float]
    mm3: dict[str, float]
    dice_if_left_out: dict[str, float]


def choose_settings(held: Sequence[OutOfFoldCase], outputs: Sequence[Target], settings: Inference) -> Choice:
    """Choose what ``settings.choose`` names.

    Args:
        held: all cases with their out-of-fold probabilities (a 4D file with a channel per target).
        outputs: the network's regions.
        settings: of the model so far; what is given there stays as it is where it is not to be chosen.
    """
    folds = sorted({case.fold for case in held})
    curves = {case.name: _curve(case, outputs) for case in held} if "thresholds" in settings.choose else {}

    def thresholds(cases: Sequence[OutOfFoldCase]) -> dict[str, float]:
        return _best_thresholds([curves[case.name] for case in cases], outputs, settings) if curves else {}

    variants = {None: thresholds(held)} | {f: thresholds([c for c in held if c.fold != f]) for f in folds}
    with_thresholds = {
        f: settings.model_copy(update={"thresholds": settings.thresholds | t}) for f, t in variants.items()
    }
    sizes = _sizes(held, outputs, [settings, *with_thresholds.values()])

    def minimum(cases: Sequence[OutOfFoldCase], under: Inference) -> dict[str, float]:
        rows = [sizes[_key(under)][case.name] for case in cases]
        return _best_minimum(rows, outputs) if "min_region_mm3" in settings.choose else settings.min_region_mm3

    after = []
    for f in folds:
        under = with_thresholds[f]
        least = minimum([c for c in held if c.fold != f], under)
        after += [_dice_with(sizes[_key(under)][c.name], least) for c in held if c.fold == f]
    before = [_dice_with(sizes[_key(settings)][case.name], settings.min_region_mm3) for case in held]
    final = with_thresholds[None].model_copy(update={"min_region_mm3": minimum(held, with_thresholds[None])})
    return Choice(final, _means(before), _means(after))


# ---- thresholds


def _read(case: OutOfFoldCase, outputs: Sequence[Target]) -> tuple[NDArray[np.float32], NDArray[np.uint8], float]:
    channels = [target.name for target in outputs]
    several = len(channels) > 1
    files = Case(case.name, {name: (case.probabilities, i if several else None) for i, name in enumerate(channels)})
    loaded = load_case(files, channels)
    reference, grid = load_labels(case.reference, case.name, sums=case.sums, colours=case.colours, like=loaded.grid)
    if case.ignore is not None:  # such voxels are in no mask, whatever is predicted there
        loaded.image[:, reference == case.ignore] = 0.0
    return loaded.image, reference, float(np.prod(grid.spacing))


def _curve(case: OutOfFoldCase, outputs: Sequence[Target]) -> NDArray[np.float64]:
    """Dice of every target at every threshold: (K, T); NaN for targets that the case does not annotate."""
    chances, reference, _ = _read(case, outputs)
    edges = np.array([-np.inf, *THRESHOLDS, np.inf])
    rows = []
    for chance, target in zip(chances, outputs, strict=True):
        inside = np.isin(reference, target.values)
        # Voxels above each threshold, from the counts between neighbouring thresholds.
        predicted, hit = (np.histogram(v, edges)[0][::-1].cumsum()[::-1][1:] for v in (chance, chance[inside]))
        rows.append([_dice(int(h), int(p), int(inside.sum())) for h, p in zip(hit, predicted, strict=True)])
    known = np.array([case.annotates(target) for target in outputs])
    return np.where(known[:, None], np.array(rows), np.nan)


def _best_thresholds(
    curves: Sequence[NDArray[np.float64]], outputs: Sequence[Target], settings: Inference
) -> dict[str, float]:
    chosen = {}
    for k, target in enumerate(outputs):
        rows = np.array([curve[k] for curve in curves if not np.isnan(curve[k, 0])])  # (cases, T)
        if not len(rows):
            continue
        plain = settings.thresholds.get(target.name, settings.threshold)
        here = np.array([np.interp(plain, THRESHOLDS, row) for row in rows])
        means = rows.mean(axis=0)
        as_good = [t for t, score in zip(THRESHOLDS, means, strict=True) if score >= means.max() - WORTH / 10]
        if is_worth(rows[:, int(np.argmax(means))] - here):
            chosen[target.name] = min(as_good, key=lambda t, p=plain: abs(t - p))  # type: ignore[misc]
    return chosen


def is_worth(gains: NDArray[np.float64]) -> bool:
    """Tell whether the cases' gains in Dice are more than noise: a mean above :data:`WORTH` and above its standard error."""
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return float(gains.mean()) > max(WORTH, error)


# ---- the smallest volume that is written


def innermost(outputs: Sequence[Target]) -> list[Target]:
    """Targets inside another one that have no other inside them: enhancing tumour."""
    inner = [t for t in outputs if surrounding(t, outputs) is not None]
    return [t for t in inner if not any(set(o.values) < set(t.values) for o in outputs)]


def _sizes(
    held: Sequence[OutOfFoldCase], outputs: Sequence[Target], variants: Sequence[Inference]
) -> dict[str, dict[str, _Sizes]]:
    bare = {_key(v): v.model_copy(update={"min_region_mm3": {}}) for v in variants}
    result: dict[str, dict[str, _Sizes]] = {key: {} for key in bare}
    for case in held:
        chances, reference, voxel_mm3 = _read(case, outputs)
        for key, settings in bare.items():
            label, _ = Regions(outputs).labels(chances, settings, voxel_mm3=voxel_mm3)
            known = [target for target in outputs if case.annotates(target)]
            result[key][case.name] = _measure(label, reference, known, innermost(outputs), voxel_mm3)
    return result


def _measure(
    label: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    outputs: Sequence[Target],
    inner: Sequence[Target],
    voxel_mm3: float,
) -> _Sizes:
    dice, mm3, left_out = {}, {}, {}
    for target in outputs:
        p, r = np.isin(label, target.values), np.isin(reference, target.values)
        dice[target.name] = _dice(int((p & r).sum()), int(p.sum()), int(r.sum()))
        if target in inner:
            mm3[target.name] = float(p.sum()) * voxel_mm3
            left_out[target.name] = _dice(0, 0, int(r.sum()))
    return _Sizes(dice, mm3, left_out)


def _best_minimum(rows: Sequence[_Sizes], outputs: Sequence[Target]) -> dict[str, float]:
    chosen = {}
    for target in innermost(outputs):
        known = [row for row in rows if target.name in row.dice]
        if not known:
            continue
        scores = np.array([[_dice_with(row, {target.name: m})[target.name] for m in MINIMA_MM3] for row in known])
        best = int(np.argmax(scores.mean(axis=0)))
        if is_worth(scores[:, best] - scores[:, 0]):
            chosen[target.name] = MINIMA_MM3[best]
    return chosen


def _dice_with(row: _Sizes, minimum: Mapping[str, float]) -> dict[str, float]:
    small = {name for name, least in minimum.items() if name in row.mm3 and 0 < row.mm3[name] < least}
    return {name: row.dice_if_left_out[name] if name in small else value for name, value in row.dice.items()}


def _dice(both: int, predicted: int, reference: int) -> float:
    return float(predicted == 0) if reference == 0 else 2.0 * both / (predicted + reference)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _key(settings: Inference) -> str:
    """Variants that differ in nothing that is chosen here need computing only once."""
    return str(sorted(settings.thresholds.items()))
