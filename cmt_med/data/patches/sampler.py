"""The order in which an epoch shows its cases: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Order = Callable[[int], NDArray[np.int64]]
"""From an epoch to the numbers of its items, of a length that is the same in every epoch."""


def shuffled(length: int, seed: int) -> Order:
    """Every item once."""

    @lru_cache(maxsize=4)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch, 0x0DE5]).permutation(length)

    return order


def balanced(classes: Sequence[int], seed: int) -> Order:
    """As many items as there are, of each class equally many: those of rare classes come several times.

    Args:
        classes: of each item.
        seed: with the epoch, the key of the order.
    """
    members = [np.flatnonzero(np.asarray(classes) == number) for number in sorted(set(classes))]

    @lru_cache(maxsize=4)
    def order(epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([seed, epoch, 0xBA1A])
        share = -(-len(classes) // len(members))
        rounds = [
            np.concatenate([rng.permutation(one) for _ in range(-(-share // len(one)))])[:share] for one in members
        ]
        return rng.permutation(np.concatenate(rounds))[: len(classes)]

    return order


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """The endless stream of batches of one rank, from step ``start`` on.

    Sample j of the stream is item ``j mod n`` of the order of epoch ``j div n``.
    """

    def __init__(
        self, order: Order, *, length: int, batch_size: int, start: int, rank: int = 0, world: int = 1
    ) -> None:
        self.order, self.length, self.batch_size, self.start = order, length, batch_size, start
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            first = step * self.batch_size
            batch = [self._key(first + i) for i in range(self.batch_size)]
            yield batch[self.rank :: self.world]
            step += 1

    def _key(self, sample: int) -> tuple[int, int]:
        epoch, position = divmod(sample, self.length)
        return epoch, int(self.order(epoch)[position])
