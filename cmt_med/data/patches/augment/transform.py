"""The common base of random changes: randomness is drawn first, and applied afterwards.

Letters: B patches, C channels, d = 2 or 3 spatial axes, S sizes of a patch, W = S + 2 margin.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

Drawn = dict[str, Tensor]
"""The numbers that were drawn, a row for each patch; a change that does not happen has its neutral value."""


class RandomTransform(Protocol):
    """A random transform of a patch.

    Attributes:
        key: of its randomness, which no other change has: a new one changes no draw of the others.
    """

    key: ClassVar[int]

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw what happens to one patch. All numbers are drawn, whether they are used or not."""
        ...


class IntensityTransform(RandomTransform, Protocol):
    """A random transform of intensities, which leaves the label as it is."""

    def apply(self, image: Tensor, drawn: Drawn) -> None:
        """Change patches (B, C, *S) in place, by rows that were drawn on the CPU, so that nothing waits for the device."""
        ...


def chosen(flags: Tensor) -> list[int]:
    """The numbers of the rows that are true."""
    found: list[int] = flags.nonzero().flatten().tolist()
    return found
