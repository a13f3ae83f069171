"""Tensors that may be larger than memory: what windows are summed into."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmt_med.base.files import scratch

RESIDENT = 1 << 30
"""Bytes above which an accumulator lies in an unnamed file of the temporary folder (``TMPDIR``) instead of memory."""

SLAB = 1 << 26  # bytes that are worked on at once


class Accumulator:
    """Zeros (N, K, *S), float32, whose storage has the channels last, in memory or in a file that nobody can see.

    Args:
        batch, channels, size: N, K and S.
        device: for one in memory; one in a file belongs to the CPU.

    Attributes:
        values: the tensor.
    """

    def __init__(self, batch: int, channels: int, size: Sequence[int], device: torch.device) -> None:
        shape = (batch, *size, channels)
        self._mapped: mmap.mmap | None = None
        if 4 * math.prod(shape) <= RESIDENT:
            stored = torch.zeros(shape, device=device)
        else:
            self._mapped = scratch(4 * math.prod(shape))
            stored = torch.frombuffer(self._mapped, dtype=torch.float32).view(shape)
        self.values = stored.movedim(-1, 1)

    def release(self) -> None:
        """Let go of the memory of what was touched, which the file keeps."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def slabs(self) -> Iterator[tuple[slice, slice]]:
        """Pieces of bounded size over N and the first axis of S; each is let go of when the next one is asked for."""
        per_row = 4 * math.prod(self.values.shape[1:2] + self.values.shape[3:])
        rows = max(1, SLAB // per_row)
        batch = max(1, rows // self.values.shape[2])
        for n in range(0, self.values.shape[0], batch):
            for start in range(0, self.values.shape[2], rows):
                yield slice(n, n + batch), slice(start, start + rows)
                self.release()

    def add_(self, other: Accumulator) -> None:
        """Add another one of the same shape."""
        for n, rows in self.slabs():
            self.values[n, :, rows] += other.values[n, :, rows].to(self.values.device)
            other.release()

    def add_window(self, n: int, box: Sequence[slice], patch: Tensor, weight: Tensor) -> None:
        """Add ``patch * weight``, (K, *s) and (*s), at a place of one sample; of a file, a slab of it is in memory at a time."""
        target = self.values[n][(slice(None), *box)]
        rows = target.shape[1]
        if self._mapped is not None:
            rows = max(1, SLAB * rows // (4 * target.numel()))
        for start in range(0, target.shape[1], rows):
            part = slice(start, start + rows)
            target[:, part].addcmul_(patch[:, part], weight[part])
            self.release()

    def crop(self, box: Sequence[slice]) -> Accumulator:
        """A view of part of S, of the same storage."""
        result = Accumulator.__new__(Accumulator)
        result._mapped, result.values = self._mapped, self.values[(slice(None), slice(None), *box)]
        return result
