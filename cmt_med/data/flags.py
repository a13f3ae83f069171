"""What is suspicious in a case and yet no error: it is passed on to the result, never kept silent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def image_flags(channels: Sequence[str], image: NDArray[np.float32], given: Iterable[str]) -> tuple[str, ...]:
    """Flags of the images of a case, as sentences.

    Args:
        channels: names of the channels of ``image``.
        image: (C, D1, D2, D3).
        given: all channels that the case has.
    """
    flags = [flag for name, values in zip(channels, image, strict=True) for flag in constant_flag(name, values)]
    flags += [f"{one} and {other} are the same image" for one, other in copied_channels(channels, image)]
    flags += [f"channel {name} is not used" for name in given if name not in channels]
    return tuple(flags)


def constant_flag(name: str, values: NDArray[np.float32]) -> list[str]:
    """One flag if all values are the same: nothing can be segmented in such an image."""
    low, high = values.min(), values.max()
    return [f"{name} is constant" + (" (all zero)" if low == 0 else "")] if low == high else []


def copied_channels(channels: Sequence[str], image: NDArray[np.float32]) -> list[tuple[str, str]]:
    """Pairs of channels (C, *S) that are the same image, which 10 of 110 real patients have."""
    pairs = [(i, j) for i in range(len(channels)) for j in range(i + 1, len(channels))]
    return [(channels[i], channels[j]) for i, j in pairs if np.array_equal(image[i], image[j])]
