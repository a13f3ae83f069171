"""Whether saved probabilities mean what they say: of the voxels given 0.7, is 70% in the reference?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.data.gate import grid_of, load_labels
from cmt_med.data.readers.decoder import decode
from cmt_med.data.values import brightness
from cmt_med.errors import CmtError, DataError
from cmt_med.evaluation.overlap import mask_of

BINS = 10
MAX_CASES = 20  # reading probabilities takes a second or two a case


@dataclass(frozen=True)
class Reliability:
    """Voxels of all cases by their probability: per bin their number, mean probability, and share in the reference."""

    voxels: NDArray[np.float64]
    probability: NDArray[np.float64]
    observed: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error over the bins but the first; NaN if they are empty.

        The first (below 0.1) is nearly all of the image and far from every border: with it, every model looks perfect.
        """
        kept = self.voxels[1:] > 0
        weights = self.voxels[1:][kept]
        gaps = np.abs(self.probability[1:][kept] - self.observed[1:][kept])
        return float((weights * gaps).sum() / weights.sum()) if weights.size else float("nan")


def probabilities_beside(prediction: Path) -> Path | None:
    """``CASE_prob.nii.gz`` beside ``CASE.nii.gz``, if it is there."""
    for ending in (".nii.gz", ".nii"):
        if prediction.name.endswith(ending):
            path = prediction.with_name(f"{prediction.name.removesuffix(ending)}_prob.nii.gz")
            return path if path.is_file() else None
    return None


def measure_reliability(
    saved: Mapping[str, tuple[Path, Path]],
    reference_targets: Mapping[str, Sequence[int]],
    sums: Mapping[Path, str] | None = None,
) -> tuple[dict[str, Reliability], list[str]]:
    """Reliability of each target over cases.

    Args:
        saved: case -> (probabilities, a channel per target or background and a channel per target; reference).
        reference_targets: name -> label values in the reference, in the order of the channels.
        sums: SHA-256 that references must have, where the case list says so.

    Returns:
        target -> reliability, empty without cases, and a sentence for each case that was left out.
    """
    totals: dict[str, NDArray[np.float64]] = {name: np.zeros((3, BINS)) for name in reference_targets}
    left_out = []
    used = 0
    for case, (probabilities, reference) in saved.items():
        try:
            found = _read(case, probabilities, reference, reference_targets, sums)
        except CmtError as error:
            left_out.append(f"{case}: {error.what}")
            continue
        used += 1
        for name, (chance, truth) in found.items():
            totals[name] += _binned(chance, truth)
    if not used:
        return {}, left_out
    return {name: _reliability(total) for name, total in totals.items()}, left_out


def _read(
    case: str,
    probabilities: Path,
    reference: Path,
    targets: Mapping[str, Sequence[int]],
    sums: Mapping[Path, str] | None,
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    where = f"case {case}: {probabilities}"
    volume = decode(probabilities)
    shape = volume.stored.shape
    channels = shape[3] if len(shape) == 4 else 1
    first = channels - len(targets)  # of classes, the background comes first
    if first not in (0, 1) or len(shape) not in (3, 4):
        raise DataError(
            f"{channels} channels of probabilities for {len(targets)} targets", where=where,
            fix="predict again with --probabilities", code="E_NDIM",
        )  # fmt: skip
    labels, grid = load_labels(reference, case, sums=sums)
    if not grid.equals(grid_of(volume)):
        raise DataError("probabilities and reference lie on different grids", where=where, code="E_GRID")
    return {
        name: (brightness(volume, where, first + i if len(shape) == 4 else None), mask_of(labels, values))
        for i, (name, values) in enumerate(targets.items())
    }


def _binned(chance: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(3, BINS): voxels, sum of probabilities, voxels in the reference."""
    flat, inside = chance.ravel(), truth.ravel()
    bins = np.clip((flat * BINS).astype(np.intp), 0, BINS - 1)
    return np.stack(
        [
            np.bincount(bins, minlength=BINS),
            np.bincount(bins, weights=flat, minlength=BINS),
            np.bincount(bins, weights=inside, minlength=BINS),
        ]
    )


def _reliability(total: NDArray[np.float64]) -> Reliability:
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(total[0], total[1] / total[0], total[2] / total[0])
