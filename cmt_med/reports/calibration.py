"""Calibration of saved probabilities: of the voxels given 0.7, is 70% in the reference?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.errors import CmtError, DataError
from cmt_med.data.case import Codes
from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.data.volumes.gate import grid_of, load_labels
from cmt_med.data.volumes.values import brightness
from cmt_med.evaluation.overlap import known_voxels, mask_of

BINS = 10
MAX_CASES = 20  # reading probabilities takes a second or two a case
MARGIN_MM = 10.0
_TOLERANCE = 1e-3  # of the range: averages and resampling may leave [0, 1] by rounding


@dataclass(frozen=True)
class Reliability:
    """Voxels of all cases by their probability: per bin their number, mean probability, and share in the reference.

    Voxels of the first bin (below 0.1) count where they lie within 10 mm, along each axis, of the reference or of a
    voxel above 0.1. The others are background far from everything: with them, every model looks perfect; without any of
    the first bin, one that surely misses what is there would.

    Attributes:
        voxels, probability, observed: (BINS,); the latter two are NaN where a bin is empty.
        missed: share of the reference's voxels that are given less than 0.1; NaN without reference.
    """

    voxels: NDArray[np.float64]
    probability: NDArray[np.float64]
    observed: NDArray[np.float64]
    missed: float

    @property
    def error(self) -> float:
        """Expected calibration error: mean over the voxels of |probability - observed| of their bin; NaN without any."""
        kept = self.voxels > 0
        weights = self.voxels[kept]
        gaps = np.abs(self.probability[kept] - self.observed[kept])
        return float((weights * gaps).sum() / weights.sum()) if weights.size else float("nan")


@dataclass(frozen=True)
class SavedChances:
    """Files of one case: probabilities, infer's record of them, which names their channels, and the reference.

    ``ignore`` is the value of voxels in the reference that nobody has annotated: they count nowhere.
    ``unscored`` are targets that the reference does not annotate.
    """

    probabilities: Path
    record: Path
    reference: Path
    ignore: int | None = None
    unscored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """Reliability of each target, the number of cases that it is from, and a sentence for whatever was left out."""

    curves: dict[str, Reliability]
    read: int
    left_out: list[str]


def probabilities_beside(prediction: Path) -> tuple[Path, Path] | None:
    """``CASE_prob.nii.gz`` and ``CASE.json`` beside ``CASE.nii.gz``, if the former is there."""
    name = volume_stem(prediction)
    path = prediction.with_name(f"{name}_prob.nii.gz")
    return (path, prediction.with_name(f"{name}.json")) if path.is_file() else None


def measure_reliability(
    saved: Mapping[str, SavedChances],
    targets: Mapping[str, Sequence[int]],
    reference_targets: Mapping[str, Sequence[int]],
    digests: Mapping[Path, str] | None = None,
    colours: Codes | None = None,
) -> Calibration:
    """Reliability of each target over cases, from the channel of its name.

    Args:
        saved: files by case.
        targets: name -> label values in the predictions; a channel of that name must mean the same values.
        reference_targets: name -> label values in the reference.
        digests: SHA-256 that references must have, where the case list says so.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    left_out: dict[str, list[str]] = {}
    read = 0
    for case, files in saved.items():
        try:
            found, without = _read(case, files, targets, reference_targets, digests, colours)
        except CmtError as error:
            left_out.setdefault(error.what, []).append(case)
            continue
        read += bool(found)
        for reason in without:
            left_out.setdefault(reason, []).append(case)
        for name, counts in found.items():
            sums[name] = sums.get(name, 0) + counts
    curves = {name: _reliability(sums[name]) for name in targets if name in sums}
    return Calibration(curves, read, [f"{_some(cases)}: {reason}" for reason, cases in left_out.items()])


def _some(cases: Sequence[str]) -> str:
    return ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")


def _read(
    case: str,
    files: SavedChances,
    targets: Mapping[str, Sequence[int]],
    reference_targets: Mapping[str, Sequence[int]],
    digests: Mapping[Path, str] | None,
    colours: Codes | None,
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """The sums of each target that a channel is named after, and why others have none."""
    where = f"case {case}: {files.probabilities}"
    channels = _channels(files.record, where)
    volume = decode(files.probabilities)
    shape = volume.stored.shape
    count = shape[3] if len(shape) == 4 else 1
    if count != len(channels) or len(shape) not in (3, 4):
        raise DataError(
            f"{count} channels of probabilities, of which {files.record.name} names {len(channels)}", where=where,
            why="the files are not of one prediction", fix="predict again with --probabilities", code="E_NDIM",
        )  # fmt: skip
    labels, grid = load_labels(files.reference, case, sums=digests, colours=colours, like=grid_of(volume))
    if not grid.equals(grid_of(volume)):
        raise DataError("probabilities and reference lie on different grids", where=where, code="E_GRID")
    known = known_voxels(labels, files.ignore)
    found, without = {}, []
    for name, values in targets.items():
        if name in files.unscored:
            continue
        if name not in channels:
            without.append(f"no channel of the probabilities is called {name} (they are {', '.join(channels)})")
        elif channels[name][1] != sorted(values):
            without.append(f"the channel {name} means other label values than what is scored as {name}")
        else:
            chance = brightness(volume, where, channels[name][0] if len(shape) == 4 else None)
            if chance.min() < -_TOLERANCE or chance.max() > 1 + _TOLERANCE:
                raise DataError("values outside [0, 1] are no probabilities", where=where,
                                why=f"{name} has {chance.min():g} to {chance.max():g}", code="E_RANGE")  # fmt: skip
            found[name] = _counted(chance, mask_of(labels, reference_targets[name]), grid.spacing, known)
    return found, without


def _channels(record: Path, where: str) -> dict[str, tuple[int, list[int]]]:
    """name -> position and label values of each channel, as infer has noted them."""
    try:
        entries = json.loads(record.read_text(encoding="utf-8"))["probability_channels"]
        found = {str(e["name"]): (i, sorted(int(v) for v in e["values"])) for i, e in enumerate(entries)}
        if len(found) != len(entries):
            raise ValueError("two channels of one name")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "what the channels of the probabilities mean is not known; predict again with --probabilities", where=where,
            why=f"{record.name} does not name them", code="E_REPORT",
        ) from error  # fmt: skip
    return found


def _counted(
    chance: NDArray[np.float32],
    truth: NDArray[np.bool_],
    spacing: Sequence[float],
    known: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """Count for each bin (3, BINS), as :class:`Reliability` does: voxels, sum of probabilities, voxels in the reference."""
    bins = np.clip((chance * BINS).astype(np.intp), 0, BINS - 1)
    seen = (bins > 0) | truth
    near = (seen if known is None else seen & known).astype(np.uint8)
    for axis, size in enumerate(spacing):
        near = ndimage.maximum_filter1d(near, 2 * round(MARGIN_MM / size) + 1, axis, mode="constant")
    kept = near > 0 if known is None else (near > 0) & known
    at = bins[kept]
    return np.stack([np.bincount(at, weights, BINS) for weights in (None, chance[kept], truth[kept])])


def _reliability(total: NDArray[np.float64]) -> Reliability:
    with np.errstate(invalid="ignore", divide="ignore"):
        missed = float(total[2, 0] / total[2].sum())
        return Reliability(total[0], total[1] / total[0], total[2] / total[0], missed)
