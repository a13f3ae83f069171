"""The Dice of a threshold on a single channel: the floor that any network must clear on a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 200


class ThresholdBaseline:
    """Best Dice of "brighter than t" and "darker than t" over all thresholds and channels, averaged over cases.

    Thresholds are shared by all cases: the best one is chosen with the answers at hand, which favours the baseline.
    Channels are first scaled so that their foreground's 1st and 99th percentile become 0 and 1.
    """

    def __init__(self, channels: Sequence[str], targets: Mapping[str, Sequence[int]]) -> None:
        self.channels, self.targets = list(channels), dict(targets)
        self.levels = np.linspace(-0.2, 1.6, LEVELS)
        self._sums = np.zeros((len(self.channels), len(self.targets), 2, LEVELS))
        self._cases = np.zeros(len(self.targets))

    def add(
        self,
        image: NDArray[np.float32],
        label: NDArray[np.uint8],
        foreground: NDArray[np.bool_],
        annotated: Collection[int] | None = None,
    ) -> None:
        """Add a case: image (C, D1, D2, D3), label map and foreground (D1, D2, D3), and label values it has; None for all."""
        known = [annotated is None or set(labels) <= set(annotated) for labels in self.targets.values()]
        self._cases += known
        inside_label = label[foreground]
        edges = np.concatenate([[-np.inf], self.levels, [np.inf]])
        for c, channel in enumerate(image):
            values = channel[foreground]
            low, high = np.percentile(values, [1, 99])
            scaled = (values - low) / max(float(high - low), 1e-6)
            everything = np.histogram(scaled, edges)[0]
            for t, labels in enumerate(self.targets.values()):
                if not known[t]:
                    continue
                hit = np.isin(inside_label, labels)
                target = np.histogram(scaled[hit], edges)[0]
                size = int(hit.sum())
                for side in (0, 1):
                    both, chosen = (
                        np.cumsum(counts[::-1])[::-1][1:] if side == 0 else np.cumsum(counts)[:-1]
                        for counts in (target, everything)
                    )
                    self._sums[c, t, side] += 2.0 * both / np.maximum(1, chosen + size)

    def best(self) -> dict[str, dict[str, Any]]:
        """target -> mean Dice of its best threshold, the channel and the rule."""
        means = self._sums / np.maximum(1, self._cases)[:, None, None]
        result = {}
        for t, target in enumerate(self.targets):
            c, side, level = np.unravel_index(int(np.argmax(means[:, t])), means[:, t].shape)
            sign = ">" if side == 0 else "<"
            result[target] = {
                "dice": float(means[c, t, side, level]),
                "channel": self.channels[c],
                "rule": f"{sign} {self.levels[level]:.2f}",
            }
        return result
