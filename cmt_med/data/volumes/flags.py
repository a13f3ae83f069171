"""Flags for what is suspicious in a case and yet no error: it is passed on to the result, never kept silent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cmt_med.data.volumes.values import usual_size

FAR = (100.0, 1 / 100)
"""An image is flagged if its largest value is more than this many times what all but this share of its voxels have; in 489 real
volumes it is at most 5 times as much."""


def image_flags(channels: Sequence[str], image: NDArray[np.float32], given: Iterable[str]) -> tuple[str, ...]:
    """Flags of the images of a case, as sentences.

    Args:
        channels: names of the channels of ``image``.
        image: (C, D1, D2, D3).
        given: all channels that the case has.
    """
    flags = [flag for name, values in zip(channels, image, strict=True) for flag in range_flags(name, values)]
    flags += [f"{one} and {other} are the same image" for one, other in copied_channels(channels, image)]
    flags += [f"channel {name} is not used" for name in given if name not in channels]
    return tuple(flags)


def range_flags(name: str, values: NDArray[np.float32]) -> list[str]:
    """A flag if all values are the same, for nothing can be segmented then, or if a few are far beyond all others."""
    return flags_of(name, float(values.min()), float(values.max()), values)


def flags_of(name: str, low: float, high: float, sample: NDArray[np.float32]) -> list[str]:
    """As :func:`range_flags`, where the smallest and largest value are known and of the others a sample."""
    if low == high:
        return [f"{name} is constant" + (" (all zero)" if low == 0 else "")]
    largest, usual = max(abs(low), abs(high)), usual_size(sample, FAR[1])
    if 0 < usual * FAR[0] < largest:
        return [f"{name} reaches {largest / usual:.0f} times as far as {1 - FAR[1]:.0%} of its voxels"]
    return []


def copied_channels(channels: Sequence[str], image: NDArray[np.float32]) -> list[tuple[str, str]]:
    """Pairs of channels (C, *S) that are the same image, which 10 of 110 real patients have."""
    pairs = [(i, j) for i in range(len(channels)) for j in range(i + 1, len(channels))]
    return [(channels[i], channels[j]) for i, j in pairs if np.array_equal(image[i], image[j])]
