"""A segmentation target: a class or a region, its label values and the value that is written for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A region or a class: its name, the label values it consists of, and the value written for it."""

    name: str
    values: tuple[int, ...]
    write: int


def surrounding(target: Target, targets: Sequence[Target]) -> Target | None:
    """The smallest other target that contains all of a target's labels, and writes another one (ET -> TC)."""
    wider = [
        t for t in targets if set(t.values) > set(target.values) and t.write not in target.values
    ]  # WT around TC writes ED
    return min(wider, key=lambda t: len(t.values), default=None)
