"""Fingerprints of training data in numbers, and cases unlike them: a network says nothing when it does not.

Ranges over all training cases of voxel size, extent, share of the foreground, brightness after normalisation, noise, and the
volume of each target; never of a single case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cmt_med.config.schema import Section
from cmt_med.data.preprocessing.normalisation import foreground_of
from cmt_med.data.volumes.gate import Loaded

QUANTILES = (5, 25, 50, 75, 95)
"""Percentiles of the brightness over the foreground, in standard deviations from its mean."""
SLICES = 24  # from front to back of the volume, on which noise and brightness are measured
SPACING_FACTOR = 1.5  # voxels may be so much smaller or larger than in training; see also RESAMPLED
RESAMPLED = 3.0  # where they are resampled to one size
EXTENT_FACTOR = 2.0
VOLUME_FACTOR = 2.0
ROUGHNESS_FACTOR = 1.5
SHARE_MARGIN = 0.15
QUANTILE_MARGIN = 0.5

Range = tuple[float, float]
_Range = Annotated[Range, Field(strict=False)]


class ChannelFingerprint(Section):
    """Ranges of one channel: for each of ``QUANTILES``, and of the mean difference of neighbours in standard deviations."""

    quantiles: list[_Range] = Field(min_length=len(QUANTILES), max_length=len(QUANTILES))
    roughness: _Range


class Fingerprint(Section):
    """Of training data; axes are right, front and top of the patient, lengths in mm, volumes in mL."""

    cases: Annotated[int, Field(ge=1)]
    spacing: list[_Range] = Field(min_length=3, max_length=3)
    extent: list[_Range] = Field(min_length=3, max_length=3)
    foreground_share: _Range
    channels: dict[str, ChannelFingerprint]
    volumes_ml: dict[str, _Range]


def case_statistics(loaded: Loaded, channels: Sequence[str], clip: Sequence[float] | None) -> dict[str, Any]:
    """Statistics of a case for :func:`fingerprint_of`; all of JSON.

    Args:
        loaded: the case as read.
        channels: names of its channels.
        clip: percentiles that brightness is clipped to before normalisation, if it is.
    """
    order = _to_patient(loaded)
    spacing = np.array(loaded.grid.spacing)[order]
    shape = np.array(loaded.grid.shape)[order]
    foreground = foreground_of(loaded)
    every = max(1, shape[2] // SLICES)
    inside = foreground.transpose(order)[:, :, ::every]
    result: dict[str, Any] = {
        "spacing": spacing.tolist(),
        "extent": (spacing * shape).tolist(),
        "foreground_share": float(foreground.mean()),
        "channels": {
            name: _channel(values.transpose(order)[:, :, ::every], inside, clip)
            for name, values in zip(channels, loaded.image, strict=True)
            if name not in loaded.missing
        },
    }
    if loaded.label is not None:
        planes = np.moveaxis(loaded.label, -1, 0)  # one at a time: bincount makes 64-bit numbers of them
        counts = sum((np.bincount(plane.ravel(), minlength=256) for plane in planes), np.zeros(256, dtype=np.int64))
        voxel_ml = float(np.prod(spacing)) / 1000.0
        result["volumes_ml"] = {str(value): int(n) * voxel_ml for value, n in enumerate(counts) if n and value}
    return result


def fingerprint_of(cases: Sequence[Mapping[str, Any]], targets: Mapping[str, Sequence[int]]) -> Fingerprint:
    """The ranges over cases of :func:`case_statistics`.

    Args:
        cases: at least one.
        targets: name -> label values that it consists of. The volume of one is that of cases that annotate all of them.
    """
    seen = {
        name: [case["channels"][name] for case in cases if name in case["channels"]] for name in _channels_of(cases)
    }
    return Fingerprint(
        cases=len(cases),
        spacing=_ranges(case["spacing"] for case in cases),
        extent=_ranges(case["extent"] for case in cases),
        foreground_share=_range([case["foreground_share"] for case in cases]),
        channels={
            name: ChannelFingerprint(
                quantiles=_ranges(channel["quantiles"] for channel in found),
                roughness=_range([channel["roughness"] for channel in found]),
            )
            for name, found in seen.items()
        },
        volumes_ml={
            name: _range([sum(case["volumes_ml"].get(str(value), 0.0) for value in values) for case in known])
            for name, values in targets.items()
            if (known := [case for case in cases if set(values) <= {*case.get("annotated", values)}])
        },
    )


def _channels_of(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The channels of the cases, some of which may lack one."""
    return list(dict.fromkeys(name for case in cases for name in case["channels"]))


def joint_fingerprint(parts: Sequence[Fingerprint | None]) -> Fingerprint | None:
    """The ranges of several networks' training data together; None if one of them is not known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    return Fingerprint(
        cases=max(part.cases for part in known),  # folds share cases
        spacing=[_joint(part.spacing[i] for part in known) for i in range(3)],
        extent=[_joint(part.extent[i] for part in known) for i in range(3)],
        foreground_share=_joint(part.foreground_share for part in known),
        channels={
            name: ChannelFingerprint(
                quantiles=[_joint(one.quantiles[i] for one in same) for i in range(len(QUANTILES))],
                roughness=_joint(one.roughness for one in same),
            )
            for name in dict.fromkeys(name for part in known for name in part.channels)
            for same in [[part.channels[name] for part in known if name in part.channels]]
        },
        volumes_ml={
            name: _joint(part.volumes_ml[name] for part in known if name in part.volumes_ml)
            for name in dict.fromkeys(name for part in known for name in part.volumes_ml)
        },
    )


def unlike_training(
    seen: Mapping[str, Any], volumes_ml: Mapping[str, float], trained: Fingerprint, *, resampled: bool
) -> list[str]:
    """Flags, as sentences, for what a case has that training did not show.

    Args:
        seen: the case's :func:`case_statistics`.
        volumes_ml: of each target as predicted.
        trained: of the model.
        resampled: whether the model brings cases to one voxel size.
    """
    flags = [*_sizes(seen, trained, resampled=resampled)]
    share, (low, high) = seen["foreground_share"], trained.foreground_share
    if not low - SHARE_MARGIN <= share <= high + SHARE_MARGIN:
        flags.append(f"the foreground is {share:.0%} of the image, in training {low:.0%} to {high:.0%}")
    for name, channel in trained.channels.items():
        found = seen["channels"].get(name)
        if found is not None:
            flags += _brightness(name, found, channel)
    for name, volume in volumes_ml.items():
        most = trained.volumes_ml.get(name, (0.0, np.inf))[1]
        if volume > VOLUME_FACTOR * most:
            flags.append(f"{name} has {volume:.4g} mL, in training at most {most:.4g} mL")
    return flags


def _sizes(seen: Mapping[str, Any], trained: Fingerprint, *, resampled: bool) -> Iterator[str]:
    factor = RESAMPLED if resampled else SPACING_FACTOR
    for what, key, allowed in (("voxels measure", "spacing", factor), ("the image measures", "extent", EXTENT_FACTOR)):
        ranges: list[Range] = getattr(trained, key)
        if any(
            not low / allowed <= size <= high * allowed for size, (low, high) in zip(seen[key], ranges, strict=True)
        ):
            sizes = " × ".join(f"{size:.3g}" for size in seen[key])
            usual = " × ".join(f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}" for low, high in ranges)
            yield f"{what} {sizes} mm, in training {usual} mm"


def _brightness(name: str, found: Mapping[str, Any], trained: ChannelFingerprint) -> Iterator[str]:
    for percent, value, (low, high) in zip(QUANTILES, found["quantiles"], trained.quantiles, strict=True):
        margin = max(QUANTILE_MARGIN, (high - low) / 2)
        if not low - margin <= value <= high + margin:
            yield (
                f"{name} is distributed unlike the training data: {percent}% lie below {value:.2f} standard deviations, "
                f"in training {low:.2f} to {high:.2f}"
            )
            break
    low, high = trained.roughness
    if found["roughness"] > high * ROUGHNESS_FACTOR:
        yield f"{name} is noisier than the training data: neighbours differ by {found['roughness']:.2f} standard " \
              f"deviations, in training {low:.2f} to {high:.2f}"  # fmt: skip


def _to_patient(loaded: Loaded) -> list[int]:
    """The axes of the volume that run right, front and top, or against it."""
    letters = loaded.grid.axes
    return [next(i for i, letter in enumerate(letters) if letter in pair) for pair in ("RL", "AP", "SI")]


def _channel(values: NDArray[np.float32], inside: NDArray[np.bool_], clip: Sequence[float] | None) -> dict[str, Any]:
    """Brightness and noise of a channel (X, Y, n slices) within the foreground."""
    chosen = values[inside].astype(np.float64)
    if chosen.size == 0:
        return {"quantiles": [0.0] * len(QUANTILES), "roughness": 0.0}
    if clip is not None:
        low, high = np.percentile(chosen, clip)
        chosen, values = chosen.clip(low, high), values.clip(low, high)
    spread = max(float(chosen.std()), 1e-6)
    quantiles = (np.percentile(chosen, QUANTILES) - chosen.mean()) / spread
    steps = []
    for axis in (0, 1):
        first, second = (np.take(inside, range(s, inside.shape[axis] - 1 + s), axis) for s in (0, 1))
        pairs = first & second
        if pairs.any():
            steps.append(float(np.abs(np.diff(values, axis=axis))[pairs].mean()) / spread)
    return {"quantiles": quantiles.tolist(), "roughness": float(np.mean(steps)) if steps else 0.0}


def _range(values: Sequence[float]) -> Range:
    return float(min(values)), float(max(values))


def _ranges(rows: Iterable[Sequence[float]]) -> list[Range]:
    return [_range(column) for column in zip(*rows, strict=True)]


def _joint(ranges: Iterable[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)
