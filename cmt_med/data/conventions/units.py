"""The unit of an image by its values and the name of its channel: whose values mean the same in every case.

Facts: apparent diffusion coefficients lie between 0 and about 3 · 10⁻³ mm²/s (free water), and are stored in mm²/s, 10⁻³ or
10⁻⁶ mm²/s; standardised uptake values (SUV) are 1 on the average of the body, and rarely above 50. CT: air has −1000 HU, water 0;
scanners fill what lies outside of their circle with −1024, −2000 or −3024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Scale:
    """A scale of values that mean the same in every case.

    Attributes:
        unit: for people.
        step: that bounds of a window are rounded to.
        least: width of a window.
        wide: the window where nothing is labelled.
    """

    unit: str
    step: float
    least: float
    wide: tuple[float, float]

    def window(self, low: float, high: float) -> list[float]:
        """The window around two values: rounded outwards, and not too narrow."""
        middle, half = (low + high) / 2, max(self.least / 2, (high - low) / 2)
        bounds = (  # a multiple of the step stays, whatever its last bit
            math.floor((middle - half) / self.step + 1e-6) * self.step,
            math.ceil((middle + half) / self.step - 1e-6) * self.step,
        )
        return [int(value) if value == int(value) else round(value, 6) for value in bounds]


HOUNSFIELD = Scale("HU", 10.0, 100.0, (-1000.0, 1000.0))  # without labels, from air to bone
UPTAKE = Scale("SUV", 0.1, 1.0, (0.0, 10.0))
DIFFUSION = (  # by the largest value that is usual
    Scale("mm²/s", 1e-5, 1e-4, (0.0, 3e-3)), Scale("10⁻³ mm²/s", 0.01, 0.1, (0.0, 3.0)),
    Scale("10⁻⁶ mm²/s", 10.0, 100.0, (0.0, 3000.0)),
)  # fmt: skip
_UPTAKE_NAMES, _DIFFUSION_NAMES = ("suv", "petsuv", "pet_suv"), ("adc",)


def scale_of(channel: str, ranges: Sequence[tuple[float, float]]) -> Scale | None:
    """The scale of a channel whose values mean the same in every case; None where they do not, or nobody knows.

    PET is on one only if it is called so (``suv``): activity concentrations (Bq/mL) depend on dose and weight.

    Args:
        channel: its name.
        ranges: smallest and largest value of each case.
    """
    if channel not in (*_UPTAKE_NAMES, *_DIFFUSION_NAMES):
        return HOUNSFIELD if in_hounsfield_units(channel, ranges) else None
    highest = sorted(high for _, high in ranges)
    if not ranges or min(low for low, _ in ranges) < -0.1 * highest[len(highest) // 2]:
        return None
    usual = highest[len(highest) // 2]
    if channel in _UPTAKE_NAMES:
        return UPTAKE if usual <= 200 else None
    if channel in _DIFFUSION_NAMES:
        return next((scale for scale in DIFFUSION if scale.wide[1] / 6 <= usual <= scale.wide[1] * 6), None)
    return None
