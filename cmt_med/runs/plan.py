"""The plan: what a config's recipe becomes on the device and the data at hand, with the reason for every change."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.blocks.conv import channels_last
from cmt_med.config.schema import Experiment
from cmt_med.data.preprocessing.cache import CachedCase
from cmt_med.networks import build_network
from cmt_med.runs.network import plain_network
from cmt_med.runs.prepare import Prepared
from cmt_med.tasks import task_class

CPU_PATCH = {2: 192, 3: 64}
"""Longest edge of a patch on a CPU, where a step takes as long as it has voxels: more, smaller steps learn more."""
CPU_BATCH = {2: 16, 3: 2}
MULTIPLE = 16  # of voxels: windows and strides fit without padding
PROBE_EDGE = {2: 64, 3: 32}  # for bytes, which grow with the voxels exactly
TIMED_EDGE = {2: 128, 3: 64}  # for seconds, of which small patches waste a part
SHARE = {"cpu": 0.4, "cuda": 0.8}  # of the memory that activations may take
BFLOAT16 = 0.6  # of the bytes in float32: norms, softmax and the loss stay float32
WEIGHT_COPIES = 5  # weights, gradients, two moments, average

log = logging.getLogger(__name__)


def fit_device(
    experiment: Experiment, data: Prepared, device: torch.device, overrides: Sequence[str]
) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment with a patch and batch that device and data can carry.

    What a ``--set`` item gives stays as it is. The window of inference follows the patch where the config has none.

    Returns:
        The experiment, and a line for each change with its reason.

    Raises:
        ConfigError: E_MEMORY if what must stay as it is cannot fit into the device's memory.
    """
    train = experiment.train
    if not train.fit_device:
        _require_room(experiment, data, device)
        return experiment, ()
    given = {item.partition("=")[0].strip() for item in overrides}
    patch, batch, notes = list(train.patch_size), train.batch_size, []
    dims = len(patch)
    whole = not data.task.dense  # images have been brought to that size
    if not whole and not {"train.patch_size", "train"} & given:
        longest = [_round_up(n) for n in largest_shape(data)]
        if dims == 3 and any(p > n for p, n in zip(patch, longest, strict=True)):
            patch = [min(p, n) for p, n in zip(patch, longest, strict=True)]
            notes.append(f"train.patch_size {train.patch_size} -> {patch}: no case is longer than {longest}")
        if (
            device.type == "cpu" and max(patch) > CPU_PATCH[dims] and not data.task.boxes
        ):  # which small windows would cut
            before, patch = patch, [min(p, CPU_PATCH[dims]) for p in patch]
            notes.append(f"train.patch_size {before} -> {patch}: on a CPU, more and smaller steps learn more in a day")
    if not whole and not {"train.batch_size", "train"} & given and device.type == "cpu" and batch > CPU_BATCH[dims]:
        notes.append(f"train.batch_size {batch} -> {CPU_BATCH[dims]}: on a CPU, a batch is computed in turn")
        batch = CPU_BATCH[dims]
    changed = _with(experiment, patch, batch)
    if not whole and not {"train.batch_size", "train.patch_size", "train"} & given:
        changed, more = _into_memory(changed, data, device)
        notes += more
    else:
        _require_room(changed, data, device)
    for note in notes:
        log.info("plan: %s", note)
    return changed, tuple(notes)


def _require_room(experiment: Experiment, data: Prepared, device: torch.device) -> None:
    """Raise E_MEMORY, before the first step, where what a step keeps is more than the device's whole memory."""
    needed, room = _bytes_of_step(experiment, data, device), device_memory(device)
    patch, batch = experiment.train.patch_size, experiment.train.batch_size
    if needed(patch, batch) > room:
        size = "×".join(str(n) for n in patch)
        raise ConfigError(
            f"a training step would take about {needed(patch, batch) / 1e9:.1f} GB",
            where=f"train.batch_size={batch}, patches of {size}", why=f"there are {room / 1e9:.1f} GB",
            fix="set a smaller train.batch_size or train.patch_size, or leave both to train.fit_device: true; "
            "network.options.checkpointing saves some", code="E_MEMORY",
        )  # fmt: skip


def _bytes_of_step(
    experiment: Experiment, data: Prepared, device: torch.device
) -> Callable[[Sequence[int], int], float]:
    """A function from patch and batch to the bytes that a step keeps in this process: activations and copies of weights."""
    per_voxel, weights = activation_bytes_per_voxel(experiment, data)
    if device.type == "cuda" and experiment.train.amp:
        per_voxel *= BFLOAT16
    world = _processes()
    return lambda patch, batch: per_voxel * math.prod(patch) * math.ceil(batch / world) + WEIGHT_COPIES * weights


def _processes() -> int:
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def _into_memory(experiment: Experiment, data: Prepared, device: torch.device) -> tuple[Experiment, list[str]]:
    room, notes = SHARE[device.type] * device_memory(device), []
    needed, world = _bytes_of_step(experiment, data, device), _processes()
    patch, batch = list(experiment.train.patch_size), experiment.train.batch_size
    while needed(patch, batch) > room and (batch > world or max(patch) > MULTIPLE):
        if batch > world:
            batch = max(world, batch // 2 // world * world)
            notes.append(f"train.batch_size -> {batch}: activations would not fit into {room / 1e9:.1f} GB")
        else:
            patch[patch.index(max(patch))] -= MULTIPLE
    if patch != list(experiment.train.patch_size):
        notes.append(
            f"train.patch_size {list(experiment.train.patch_size)} -> {patch}: "
            f"activations would not fit into {room / 1e9:.1f} GB"
        )
    return _with(experiment, patch, batch), notes


def _with(experiment: Experiment, patch: list[int], batch: int) -> Experiment:
    train = experiment.train.model_copy(update={"patch_size": patch, "batch_size": batch})
    return experiment.model_copy(update={"train": train})


def largest_shape(data: Prepared) -> list[int]:
    """The longest extent of a preprocessed case along each axis, in voxels."""
    entries: list[CachedCase] = [*data.training_entries, *data.validation_entries]
    return [max(sizes) for sizes in zip(*(entry.image().shape[1:] for entry in entries), strict=True)]


def activation_bytes_per_voxel(experiment: Experiment, data: Prepared) -> tuple[float, float]:
    """Bytes that a training step keeps for the backward pass, per voxel of a patch, in float32; and of the weights.

    Measured on a small patch: everything that is kept grows with the voxels.
    """
    network = plain_network(experiment, data, deep_supervision=experiment.train.deep_supervision)
    channels = len(data.channels) + int(experiment.data.foreground_channel)
    dims = experiment.network.spatial_dims
    return _kept_bytes(network, channels, PROBE_EDGE[dims], dims)


def _kept_bytes(network: torch.nn.Module, channels: int, edge: int, dims: int) -> tuple[float, float]:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Two, since BatchNorm (the paper's networks) refuses a single position, which is what stride 32 leaves of a patch.
        output = network.train()(torch.randn(2, channels, *[edge] * dims))
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in network.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    del output  # until here, so that no storage is freed and its place counted for another
    return activations / (2 * edge**dims), float(sum(weights.values()))


def foresee(experiment: Experiment, channels: int, targets: int, cases: int) -> list[str]:
    """Estimate what training would take on this machine, from a step on a small patch: lines for people.

    Args:
        experiment: as written.
        channels: of the images.
        targets: channels of the network's output.
        cases: number of cases that are trained on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dims = experiment.network.spatial_dims
    train, task = experiment.train, task_class(experiment.task, experiment.network.name)
    patch = list(train.patch_size)
    batch = train.batch_size
    if device.type == "cpu" and task.dense:  # whole images stay whole
        if not task.boxes:
            patch = [min(p, CPU_PATCH[dims]) for p in patch]
        batch = min(batch, CPU_BATCH[dims])
    network = build_network(
        experiment.network.name, spatial_dims=dims, in_channels=channels, num_classes=targets,
        deep_supervision=train.deep_supervision and task.dense and not task.boxes and not task.queries,
        **experiment.network.options,
    ).to(device)  # fmt: skip
    seconds = _step_seconds(network, channels, TIMED_EDGE[dims], dims, device)
    per_voxel, weights = _kept_bytes(network.cpu(), channels, PROBE_EDGE[dims], dims)
    voxels = math.prod(patch) * batch
    step = seconds * voxels / TIMED_EDGE[dims] ** dims
    step *= train.accumulate
    steps = math.ceil(cases * train.patches_per_case / (batch * train.accumulate))
    memory = (per_voxel * voxels + WEIGHT_COPIES * weights) / 1e9
    lines = [
        f"on this machine ({device}): patch {patch}, batch {batch}, {steps} steps per epoch",
        f"memory about {memory:.1f} GB for a training step",
        f"about {step:.2f} s per step, {_duration(step * steps)} per epoch",
    ]
    if train.epochs is not None:
        lines.append(f"{train.epochs} epochs in about {_duration(step * steps * train.epochs)}")
    return lines


def _duration(seconds: float) -> str:
    """For people: in the unit in which it is at least 1.5, else in seconds."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _step_seconds(network: torch.nn.Module, channels: int, edge: int, dims: int, device: torch.device) -> float:
    """Seconds of a forward and backward pass on a small patch, the better of two."""
    x = channels_last(torch.randn(1, channels, *[edge] * dims, device=device))
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        output = network.train()(x)
        parts = [output] if isinstance(output, Tensor) else [part for part in output if part.numel()]
        torch.stack([part.square().mean() for part in parts]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def device_memory(device: torch.device) -> float:
    """Bytes of the device: of the GPU, or of the machine, or what a container or a job of a cluster may use of it."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    installed = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if addresses != resource.RLIM_INFINITY:
        installed = min(installed, float(addresses))
    return min([installed, *_memory_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _memory_limits(root: Path, membership: Path) -> list[float]:
    """Memory limits in bytes that control groups (Linux, version 1 or 2) set for this process, its own and those above it."""
    limits = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        place = base / group.lstrip("/")
        for folder in (place, *place.parents):
            with contextlib.suppress(OSError, ValueError):  # "max", or a group that is not seen from inside a container
                limits.append(float(int((folder / name).read_text())))
            if folder == base:
                break
    return limits


def _round_up(n: int) -> int:
    return -(-n // MULTIPLE) * MULTIPLE
