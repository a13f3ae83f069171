"""Batches of patches whose content depends on (seed, epoch, index) alone, not on workers or on where a run was cut."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cmt_med.base.boxes import Boxes
from cmt_med.data.patches import sampler
from cmt_med.data.patches.augment import Augment
from cmt_med.data.patches.cut import RandPatchd, WholeImaged
from cmt_med.data.preprocessing.cache import CachedCase

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's; nothing is written there by name
PREFETCHED = 2
"""Batches that each worker holds ready."""
WORKER_SECONDS = 120.0
"""A worker that takes longer for a batch hangs."""
GRACE_SECONDS = 5.0
"""Seconds in which a worker that has closed its files must end."""
NICE = 10
"""By how much workers are nicer than the training process."""
START = "fork" if sys.platform == "linux" else None
"""The way workers start: forked ones start at once, and leave by themselves when the training is killed, for torch watches the
parent process; one from a fork server has the server as its parent, and would stay. None: as the system has it."""


class WorkerGoneError(RuntimeError):
    """Data workers have ended, with the exit code of the first; negative for the signal that ended it."""

    def __init__(self, pids: Sequence[int | None], exit_code: int | None) -> None:
        self.pids, self.exit_code = tuple(pids), exit_code
        super().__init__(f"data workers {', '.join(map(str, pids))} have ended with exit code {exit_code}")


class WorkerHangsError(RuntimeError):
    """No batch has come for so many seconds; the workers were killed."""

    def __init__(self, pids: Sequence[int | None], seconds: float) -> None:
        self.pids, self.seconds = tuple(pids), seconds
        super().__init__(f"data workers {', '.join(map(str, pids))} gave no batch within {seconds:g} s")


class PatchSet(Dataset[dict[str, Any]]):
    """Random patches of cached cases, addressed by (epoch, index).

    Args:
        entries: the cases.
        cut: draws a patch with the margin that ``augment`` needs.
        augment: the random changes.
        patches_per_case: in an epoch.
        seed: with epoch and index, the key of everything random.
        apply: change the patch here; else it keeps its margin, and what was drawn comes with it, for the device.
        balanced: show each class equally often, where cases have one.
        numbered: give the numbers of objects as label, in place of their depths.
    """

    def __init__(
        self,
        entries: Sequence[CachedCase],
        cut: RandPatchd | WholeImaged,
        augment: Augment,
        *,
        patches_per_case: int,
        seed: int,
        apply: bool,
        balanced: bool = False,
        numbered: bool = False,
    ) -> None:
        self.entries, self.cut, self.augment = list(entries), cut, augment
        self.patches_per_case, self.seed, self.apply = patches_per_case, seed, apply
        self.points = [entry.points() if entry.target is None else [] for entry in self.entries]
        self.balanced, self.numbered = balanced, numbered
        self.annotated = _annotated(self.entries)
        self.axes = [axis for axis in range(3) if axis not in getattr(cut, "slice_axes", ())]
        boxed = [entry.boxes() for entry in self.entries if entry.boxed]
        self.boxes = boxed or None
        self.most = max((len(boxes) for boxes in boxed), default=0)

    def order(self) -> sampler.Order:
        """In which the items of each epoch come."""
        if not self.balanced:
            return sampler.shuffled(len(self), self.seed)
        classes = [entry.target for entry in self.entries if entry.target is not None]
        return sampler.balanced(classes * self.patches_per_case, self.seed)

    def __len__(self) -> int:
        return len(self.entries) * self.patches_per_case

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        case = index % len(self.entries)
        entry = self.entries[case]
        self.cut.set_random_state(seed=keyed_seed(self.seed, epoch, index))
        content: dict[Any, Any] = {"image": entry.image()}
        if entry.target is None:
            content |= {"points": self.points[case]} | (
                {}
                if entry.boxed or entry.unlabelled
                else {"label": entry.instances()[None] if self.numbered else entry.label()}
            )
        patch = self.cut(content)
        drawn = self.augment.draw(np.random.default_rng([self.seed, epoch, index, 0xA0A0]))
        image = patch["image"].float()
        label = (
            patch["label"].to(torch.int32 if self.numbered else torch.uint8)
            if "label" in patch
            else torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)
        )
        result = {"image": image, "label": label, "case": torch.tensor(case)}
        if entry.target is not None:
            result["class"] = torch.tensor(entry.target)
        if self.annotated is not None:
            result["annotated"] = self.annotated[case]
        if self.boxes is not None:
            result |= _padded(self.boxes[case], self.axes, patch["start"], max(1, self.most))
        if not self.apply:
            return result | {"drawn": drawn}
        images, labels = self.augment(image[None], label[None], {name: value[None] for name, value in drawn.items()})
        if self.boxes is not None:
            rows = {name: value[None] for name, value in drawn.items()}
            result["boxes"] = self.augment.move_boxes(result["boxes"][None], rows)[0]
        return result | {"image": images[0], "label": labels[0]}


def _padded(boxes: Boxes, axes: Sequence[int], start: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Boxes in voxels of a patch, as many rows for each: ``boxes`` (N, 2d), ``box_class``, 0 for none, ``box_ignored`` (N,)."""
    place = np.zeros((count, 2 * len(axes)), np.float32)
    classes, ignored = np.zeros(count, np.int64), np.zeros(count, bool)
    n = len(boxes)
    place[:n] = np.concatenate([boxes.low[:, axes], boxes.high[:, axes]], axis=1) - np.tile(start.numpy(), 2)
    classes[:n], ignored[:n] = boxes.classes, boxes.ignored
    return {
        "boxes": torch.from_numpy(place), "box_class": torch.from_numpy(classes), "box_ignored": torch.from_numpy(ignored),
    }  # fmt: skip


def _annotated(entries: Sequence[CachedCase]) -> torch.Tensor | None:
    """The label values that each case annotates, the background among them: (N, 256); None where all annotate all."""
    if all(entry.annotated is None for entry in entries):
        return None
    table = torch.ones((len(entries), 256), dtype=torch.bool)
    for row, entry in zip(table, entries, strict=True):
        if entry.annotated is not None:
            row[1:] = False
            row[list(entry.annotated)] = True
    return table


def keyed_seed(*key: int) -> int:
    """A seed in 32 bits from a tuple of integers, the same on every machine."""
    return int(np.random.SeedSequence(list(key)).generate_state(1)[0])


def patch_batches(
    patches: PatchSet,
    *,
    batch_size: int,
    start: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    seconds: float = WORKER_SECONDS,
) -> Iterator[dict[str, Any]]:
    """Batches ``{"image": (B, C, *S), "label": (B, 1, *S), "case": (B,)}`` without end, from step ``start`` on.

    ``"boxes"`` (B, N, 2d), ``"box_class"`` (B, N) and ``"box_ignored"`` (B, N) are there where cases have boxes,
    ``"class"`` (B,) is there where cases have one, ``"annotated"`` (B, 256), which label values are, where not all are. Where the
    patches are still to be changed, they have a margin, and ``"drawn"`` says how (:mod:`cmt_med.data.patches.augment`).
    ``batch_size`` counts all ranks together.

    Raises:
        WorkerHangsError: while a batch is waited for, if that takes longer than ``seconds``.
        WorkerGoneError: if a worker has ended.
    """
    if workers and not _fits_into_shared_memory(patches, batch_size // world, workers):
        workers = 0
    stream = sampler.KeyedBatches(
        patches.order(), length=len(patches), batch_size=batch_size, start=start, rank=rank, world=world
    )
    loader = DataLoader(
        patches,
        batch_sampler=stream,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=_modestly if workers else None,
        multiprocessing_context=START if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return _watched(loader, seconds) if workers else iter(loader)


def _fits_into_shared_memory(patches: PatchSet, batch_size: int, workers: int) -> bool:
    """Tell whether the batches that workers hold ready fit where they are handed over; if not, a warning says what to do.

    Containers have 64 MB there unless they are told otherwise, and a batch that does not fit ends the training.
    """
    if not SHARED_MEMORY.is_dir():
        return True  # not Linux
    batch = batch_size * sum(part.nbytes for part in patches[0, 0].values() if isinstance(part, torch.Tensor))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, all at the same moment
    needed, found = ranks * batch * (workers * PREFETCHED + 1), os.statvfs(SHARED_MEMORY)
    free = 0 if found.f_flag & os.ST_RDONLY else found.f_bavail * found.f_frsize
    if needed <= free:
        return True
    log.warning(
        "data.workers=%d is not used: workers would hold %.0f MB ready in %s, which has %.0f MB left; "
        "the result is the same, but slower (docker run --shm-size=1g gives more, data.workers=0 asks for none)",
        workers, needed / 1e6, SHARED_MEMORY, free / 1e6,
    )  # fmt: skip
    return False


def _watched(loader: DataLoader[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """The loader's batches; workers that hang are killed, in the middle of handing one over, too, where torch waits for ever."""
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    _listen()
    late = threading.Event()

    def end() -> None:
        late.set()
        for worker in workers:
            worker.kill()

    while True:
        watch = threading.Timer(seconds, end)
        watch.daemon = True
        watch.start()
        try:
            _awaited.extend(workers)
            _tell()  # of those that went while nobody waited
            batch = next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            if late.is_set():
                raise WorkerHangsError([worker.pid for worker in workers], seconds) from error
            # What a worker leaves behind may be missed before the system tells of its end: it closes its files first, the
            # sentinel among them, and can be asked for its exit code only later. join() waits for that.
            closed = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1.0)
            for worker in workers:
                if worker.sentinel in closed:
                    worker.join(GRACE_SECONDS)
            _awaited.extend(workers)
            _tell()
            raise
        finally:
            _awaited.clear()
            watch.cancel()
        yield batch


_awaited: list[BaseProcess] = []
"""Workers of the batch that is waited for."""


def _listen() -> None:
    """Take the place of torch's handler, which raises wherever the program happens to be when a worker ends.

    That may be where a file or a lock is being closed; ours raises only while a batch is waited for.
    """
    if threading.current_thread() is threading.main_thread() and sys.platform != "win32":
        signal.signal(signal.SIGCHLD, _tell)  # elsewhere torch finds it out when the time is over


def _tell(*_: object) -> None:
    gone = [worker for worker in _awaited if worker.exitcode is not None]
    if gone:
        _awaited.clear()  # it is said once
        raise WorkerGoneError([worker.pid for worker in gone], gone[0].exitcode)


def _modestly(_: int) -> None:
    """One thread, which leaves the cores to the training when both want them: a step waits for its slowest thread."""
    torch.set_num_threads(1)
    if sys.platform != "win32":
        os.nice(NICE)
