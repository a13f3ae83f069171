"""Steps: changes on the device are those of the worker; the time outside the network."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cmt_med.config.schema import Augmentation, Data, Optimizer, Train
from cmt_med.data.manifest import load_manifest
from cmt_med.data.patches.augment import augment
from cmt_med.data.patches.cut import patches
from cmt_med.data.patches.loader import PatchSet, patch_batches
from cmt_med.data.preprocessing.cache import prepare
from cmt_med.networks import build_network
from cmt_med.networks.weights.frozen import freeze_encoder
from cmt_med.tasks.segmentation.labels import Classes
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.segmentation.task import Segmentation
from cmt_med.training.averaging import AveragedWeights
from cmt_med.training.optimiser import optimiser
from cmt_med.training.progress import OutsideShare
from cmt_med.training.steps import on_device, training_step
from tests.helpers import tiny_dataset


def test_changes_on_the_device_are_those_of_the_worker(tmp_path: Path) -> None:
    """What a GPU does to a whole batch, here on the CPU, beside what a data worker does patch by patch."""
    manifest = load_manifest(tiny_dataset(tmp_path / "d", 3))
    settings = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}
    entries = [
        prepare(c, channels=("a", "b"), labels=manifest.labels, settings=settings, folder=tmp_path / "cache")
        for c in manifest.cases
    ]
    data, train = Data(manifest="m", channels=["a", "b"]), Train(epochs=1, patch_size=[12, 10, 8])
    change = augment(data, train, Augmentation(affine=0.7, gamma=0.5, noise=0.5, blur=0.5, low_resolution=0.5))
    cut = patches(data, train, change.margin)
    there, here = (
        patch_batches(
            PatchSet(entries, cut, change, patches_per_case=2, seed=3, apply=apply), batch_size=3, start=0, workers=1
        )
        for apply in (True, False)
    )
    for _ in range(4):
        done, raw = next(there), next(here)
        assert raw["image"].shape[2:] == (14, 12, 10), "with the margin"
        moved = on_device(raw, torch.device("cpu"), change)
        images, labels = moved["image"], moved["label"]
        torch.testing.assert_close(images, done["image"], rtol=1e-5, atol=1e-5)
        assert images.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(labels, done["label"])
        assert torch.equal(raw["case"], done["case"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_step_is_a_step() -> None:
    torch.manual_seed(0)
    # Whether our networks can be compiled is asked in tests/networks: here it is the step that matters.
    first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.GELU(), nn.Conv3d(4, 2, 1))
    batch = {"image": torch.randn(2, 1, 12, 12, 12), "label": torch.randint(0, 2, (2, 1, 12, 12, 12)).byte()}
    task = Segmentation(Classes([Target("one", (1,), 1)]), {"background": 0, "one": 1})
    found = []
    for compiled in (False, True):
        network = copy.deepcopy(first)
        step = training_step(
            network, torch.optim.SGD(network.parameters(), lr=0.1), task.loss,
            rate_at=lambda _: 0.1, average=AveragedWeights(network, 0.0), seed=0, clip=10.0, amp=False, compiled=compiled,
        )  # fmt: skip
        engine = SimpleNamespace(state=SimpleNamespace(iteration=1))
        losses = [step(engine, [batch])["loss"] for _ in range(2)]  # type: ignore[arg-type]
        found.append((losses, network.state_dict()))
    (eager, weights), (fast, its_weights) = found
    assert fast == pytest.approx(eager, rel=1e-4)
    assert eager[0] != pytest.approx(eager[1], rel=1e-3), "the first step has changed the weights"
    assert weights.keys() == its_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(its_weights[name], value, rtol=1e-3, atol=1e-4)


def test_share_outside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 14.0])
    monkeypatch.setattr("cmt_med.training.progress.time.perf_counter", lambda: next(now))
    share = OutsideShare()
    assert share.value == 0
    share.begin()
    share.end(1.0)
    assert share.value == 0.75  # one of four seconds was inside
    share.end(1.0)  # without a beginning it counts for nothing
    assert share.value == 0.75
    share.clear()
    assert share.value == pytest.approx(0)


def test_a_frozen_encoder_keeps_its_statistics_too() -> None:
    """A batch norm moves in train mode even where no gradient flows."""
    torch.manual_seed(0)
    options = {
        "stem_channels": 8,
        "dims": (8, 16),
        "depths": (1, 1),
        "head_dim": 8,
        "full_channels": 4,
        "norm": "batch",
    }
    few = {"attention": ("identity", "identity"), "kv_strides": (1, 1)}
    network = build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=2, **options, **few)
    task = Segmentation(Classes([Target("one", (1,), 1)]), {"background": 0, "one": 1})
    frozen = freeze_encoder(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step = training_step(
        network, optimiser(network, Optimizer()), task.loss, rate_at=lambda _: 0.1, average=AveragedWeights(network, 0.9),
        seed=0, clip=10.0, amp=False, frozen=(frozen,),
    )  # fmt: skip
    batch = {"image": 3 + torch.randn(2, 1, 16, 16), "label": torch.randint(0, 2, (2, 1, 16, 16)).byte()}
    step(SimpleNamespace(state=SimpleNamespace(iteration=1)), [batch])  # type: ignore[arg-type]
    after = network.state_dict()
    assert any("running_mean" in name for name in after if name.startswith("encoder."))
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) or not name.startswith("encoder."), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
