"""Seeded splits that keep patients together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cmt_med.base.errors import ConfigError
from cmt_med.base.text import counted
from cmt_med.config.schema import Split
from cmt_med.data.case import Case


def split_cases(cases: Sequence[Case], split: Split, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; all cases of one group fall on the same side.

    Raises:
        ConfigError: if either side would be empty, or a patient's cases lie in several folds of the manifest.
    """
    if split.by == "none":
        return list(cases), []
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: c.name):
        groups.setdefault(case.group, []).append(case)
    if split.by == "fold":
        held = _fold_groups(groups, split, seed)
    else:
        wanted = split.count if split.count is not None else math.ceil((split.fraction or 0) * len(cases))
        order = list(groups)
        if split.by == "random":
            order = [order[i] for i in np.random.default_rng([seed, 0x5B11]).permutation(len(order))]
        held, taken = set(), 0
        for group in reversed(order):
            if taken >= wanted:
                break
            held.add(group)
            taken += len(groups[group])
    training = [case for case in cases if case.group not in held]
    validation = sorted((case for case in cases if case.group in held), key=lambda c: c.name)
    if not training or not validation:
        raise ConfigError(
            "the split leaves one side empty",
            where="data.split",
            why=f"{counted(len(cases), 'case')} of {counted(len(groups), 'patient')} give {len(training)} to train, "
            f"{len(validation)} to validate",
            fix="change data.split, or set data.split.by=none to train on all cases without validation",
        )
    return training, validation


def _fold_groups(groups: dict[str, list[Case]], split: Split, seed: int) -> set[str]:
    if all(case.fold is not None for members in groups.values() for case in members):
        mixed = [group for group, members in groups.items() if len({case.fold for case in members}) > 1]
        if mixed:
            raise ConfigError(
                "one patient's cases lie in several folds",
                where=f"group {mixed[0]}",
                why="validation would see a patient that was trained on",
                fix="correct 'fold' in the case list",
            )
        return {group for group, members in groups.items() if members[0].fold == split.fold}
    order = np.random.default_rng([seed, 0x5B11]).permutation(len(groups))
    names = list(groups)
    return {names[g] for position, g in enumerate(order) if position % split.folds == split.fold}
