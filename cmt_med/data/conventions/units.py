"""The unit of an image by its values and the name of its channel.

Facts: air has −1000 HU, water 0; scanners fill what lies outside of their circle with −1024, −2000 or −3024.
"""

from __future__ import annotations

from collections.abc import Sequence

CT_NAMES = ("ct", "cta", "cbct")
_AIR, _LOWEST, _TISSUE = -500.0, -3100.0, 100.0


def in_hounsfield_units(channel: str, ranges: Sequence[tuple[float, float]]) -> bool:
    """Tell whether a channel is a CT in Hounsfield units.

    Args:
        channel: its name; ``ct`` is one unless its values say otherwise, others are if their values show air.
        ranges: smallest and largest value of each case.
    """
    if not ranges:
        return False
    plausible = [low >= _LOWEST and high >= _TISSUE for low, high in ranges]
    if channel in CT_NAMES:  # cropped ones show no air, and rescaled ones nothing below zero
        return all(plausible) and any(low < 0 for low, _ in ranges)
    return all(plausible) and sum(low <= _AIR for low, _ in ranges) > 0.5 * len(ranges)
