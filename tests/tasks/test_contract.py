"""One contract for every task, in 2D and 3D, with random data sets."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmt_med.config.schema import Experiment
from cmt_med.data.manifest import Manifest, load_manifest
from cmt_med.data.preprocessing.cache import CachedCase, prepare
from cmt_med.networks import CLASSIFIERS, build_network
from cmt_med.runs.network import check_network
from cmt_med.runs.prepare import settings_of
from cmt_med.tasks import TASKS, task_class
from cmt_med.tasks.task import Task
from tests.helpers import save

NETWORKS = {True: ("cmt_unetr", {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8, "full_channels": 4,
                                 "attention": ("identity",) * 2, "kv_strides": (2, 1)}),
            "boxes": ("cmt_detector", {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8,
                                       "attention": ("identity",) * 2, "kv_strides": (2, 1)}),
            "queries": ("cmt_mask_queries", {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8, "queries": 9,
                                             "attention": ("identity",) * 2, "kv_strides": (2, 1), "drop_path": 0.0}),
            False: ("cmt_classifier", {"stem_channels": 8, "dims": (8, 16), "depths": (1, 1), "head_dim": 8,
                                       "attention": ("identity",) * 2, "kv_strides": (2, 1)})}  # fmt: skip


def data_set(folder: Path, dims: int, targets: int, seed: int) -> tuple[Manifest, Experiment]:
    """Cases with label maps of some labels and with classes, and an experiment on them."""
    rng = np.random.default_rng(seed)
    shape = (12, 10, 9 if dims == 3 else 1)
    entries = []
    for i in range(3 * targets):
        save(folder / f"i{i}.nii.gz", rng.normal(0, 1, shape).astype(np.float32))
        save(folder / f"l{i}.nii.gz", rng.integers(0, targets + 1, shape).astype(np.uint8))
        save(folder / f"o{i}.nii.gz", blocks(rng, shape))
        entries.append({"id": f"c{i}", "image": f"i{i}.nii.gz", "label": f"l{i}.nii.gz", "class": f"k{i % targets}",
                        "instances": f"o{i}.nii.gz"})  # fmt: skip
    names = {"0": "background"} | {str(n): f"part{n}" for n in range(1, targets + 1)}
    path = folder / "list.json"
    path.write_text(json.dumps({"modality": {"0": "a"}, "labels": names, "training": entries}))
    content: dict[str, Any] = {
        "name": "x", "output": str(folder / "run"), "data": {"manifest": str(path), "channels": ["a"]},
        "network": {"spatial_dims": dims}, "train": {"epochs": 1, "patch_size": [16] * dims},
    }  # fmt: skip
    return load_manifest(path), Experiment.model_validate(content)


def blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Up to eight objects, of which some touch."""
    numbers = np.zeros(shape, np.uint16)
    for number, (x, y) in enumerate(itertools.product((0, 4, 8), (0, 5)), 300):
        if rng.random() < 0.8:
            numbers[x : x + 4, y : y + 4] = number
    return numbers


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [*TASKS, "queries"])
@settings(max_examples=5, deadline=None)
@given(targets=st.integers(2, 4), seed=st.integers(0, 10_000))
def test_every_task(tmp_path_factory: pytest.TempPathFactory, name: str, dims: int, targets: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("data")
    manifest, plain = data_set(folder, dims, targets, seed)
    kind = task_class("instances", NETWORKS[name][0]) if name == "queries" else TASKS[name]
    experiment = plain.model_copy(update={"task": kind.name})
    assert all(kind.has_target(case) for case in manifest.cases)
    task = kind.from_data(experiment, manifest).with_training(manifest.cases)
    task.check(experiment.inference)
    assert issubclass(kind, TASKS[task.name])
    _the_card_says_it_all(task)
    network_name, options = NETWORKS["boxes" if task.boxes else "queries" if task.queries else task.dense]
    assert task_class(task.name, network_name) is kind
    assert (network_name in CLASSIFIERS) != task.dense
    network = build_network(network_name, spatial_dims=dims, in_channels=1, num_classes=task.channels, **options)
    cached = settings_of(experiment, task)
    entries = [
        prepare(
            case,
            channels=["a"],
            labels=task.labels,
            settings=cached,
            folder=folder / "cache",
            target=task.target(case),
            objects=task.objects,
            boxed=task.boxes,
            unlabelled=task.unlabelled,
        )
        for case in manifest.cases
    ]
    _learns(task, network, dims, targets)
    _is_scored(task, entries, experiment)


def _the_card_says_it_all(task: Task) -> None:
    again = type(task).from_card(dict(task.labels), task.regions)
    assert (again.labels, again.regions, again.channels, again.scored) == (
        task.labels, task.regions, task.channels, task.scored,
    )  # fmt: skip
    json.dumps(task.identity())


def _learns(task: Task, network: torch.nn.Module, dims: int, targets: int) -> None:
    """A gradient reaches the network, and steps against it lower the loss."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, *[16] * dims)
    batch = {
        "image": images,
        "label": torch.randint(0, targets + 1, (4, 1, *[16] * dims)).byte(),
        "class": torch.arange(4) % targets,
        "boxes": torch.tensor([[*[2.0] * dims, *[9.0] * dims]]).repeat(4, 2, 1),
        "box_class": torch.tensor([[1, 0]]).repeat(4, 1),
        "box_ignored": torch.zeros((4, 2), dtype=torch.bool),
    }
    batch = {**task.prepared(batch)}
    images = batch["image"]
    hints = task.hints(batch) if task.queries else ()
    network.train(task.queries)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        loss = task.loss(network(images, *hints), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses[0])
    assert min(losses[1:]) < losses[0]  # who is matched with whom may change in a step


def _is_scored(task: Task, entries: list[CachedCase], experiment: Experiment) -> None:
    """Right answers have the best score that there is, and probabilities are some."""
    logits = torch.randn(task.channels, 3, 2)
    chances = task.probabilities(logits)
    assert chances.shape == logits.shape
    assert bool(((chances >= 0) & (chances <= 1)).all())
    right, wrong = ([task.score(answer(entry), entry, experiment.inference) for entry in entries] for answer in (
        lambda entry: _answer(task, entry, 0), lambda entry: _answer(task, entry, 1)))  # fmt: skip
    best, worse = (
        task.summarise(np.array([*zip(*itertools.zip_longest(*rows, fillvalue=0.0), strict=True)]))
        for rows in (right, wrong)
    )
    assert best[task.monitor.name] == 1.0
    assert task.monitor.is_better(best[task.monitor.name], worse[task.monitor.name])


def _answer(task: Task, entry: CachedCase, shift: int) -> Any:
    """Probabilities that say what is right, or the next class or label in its place; or boxes or masks there, or beside."""
    if task.unlabelled:
        return SimpleNamespace(error=float(shift), variance=1.0)
    if task.queries:
        return np.roll(np.asarray(entry.instances()), 3 * shift, 0)
    if task.boxes:
        return entry.boxes().moved([2.0 * shift, 0, 0])
    if entry.target is not None:
        return torch.eye(task.channels)[(entry.target + shift) % task.channels]
    label = torch.from_numpy(np.array(entry.label()[0])).long()
    if entry.objects:
        depth = label.float() / 255
        return torch.stack([(depth > 0).float(), depth]).roll(shift * 3, 1)
    label = torch.where(label > 0, (label - 1 + shift) % (task.channels - 1) + 1, label)
    return torch.nn.functional.one_hot(label, task.channels).movedim(-1, 0).float()


@pytest.mark.parametrize("name", TASKS)
def test_the_network_must_fit_the_task(tmp_path: Path, name: str) -> None:
    _, plain = data_set(tmp_path, 3, 2, 0)
    dense = TASKS[name].dense
    boxes = TASKS[name].boxes
    for network, fits in (
        (NETWORKS[True][0], dense and not boxes), (NETWORKS[False][0], not dense), ("cmt_ti", not dense), ("cmt_detector", boxes),
        ("cmt_mask_queries", TASKS[name].objects),
    ):  # fmt: skip
        chosen = plain.network.model_copy(update={"name": network})
        experiment = plain.model_copy(update={"task": name, "network": chosen})
        if fits:
            check_network(experiment)
        else:
            with pytest.raises(Exception, match="this network"):
                check_network(experiment)
