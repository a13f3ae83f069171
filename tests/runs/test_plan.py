"""What the recipe becomes on a device: reduced with a reason, or left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmt_med.config.reading import load_config
from cmt_med.config.schema import Experiment
from cmt_med.data.manifest import load_manifest
from cmt_med.runs import plan
from cmt_med.runs.prepare import Prepared, prepare_data
from tests.helpers import tiny_config, tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared]:
    folder = tmp_path_factory.mktemp("plan")
    manifest = tiny_dataset(folder, cases=3, size=(90, 40, 20))
    experiment = load_config(tiny_config(folder, manifest), ["train.patch_size=[128, 128, 128]", "train.batch_size=8"])
    return experiment, prepare_data(experiment, load_manifest(manifest), None)


def test_patch_and_batch_follow_data_and_device(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, data = prepared
    changed, notes = plan.fit_device(experiment, data, CPU, [])
    assert changed.train.patch_size == [64, 48, 32]  # 90 -> 96 -> 64 on a CPU, 40 -> 48, 20 -> 32
    assert changed.train.batch_size == 2
    assert len(notes) == 3
    assert "no case is longer than [96, 48, 32]" in notes[0]
    assert changed.model_copy(update={"train": experiment.train}) == experiment  # nothing else


def test_what_is_asked_for_stays(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, data = prepared
    asked = ["train.patch_size=[128, 128, 128]", "train.batch_size=8"]
    assert plan.fit_device(experiment, data, CPU, asked) == (experiment, ())
    fixed = experiment.model_copy(update={"train": experiment.train.model_copy(update={"fit_device": False})})
    assert plan.fit_device(fixed, data, CPU, []) == (fixed, ())


def test_a_small_memory_gets_a_small_batch_then_a_small_patch(
    prepared: tuple[Experiment, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, data = prepared
    per_voxel, weights = plan.activation_bytes_per_voxel(experiment, data)
    room = per_voxel * 64 * 48 * 32 * 1.5 + plan.WEIGHT_COPIES * weights
    monkeypatch.setattr(plan, "device_memory", lambda device: room / plan.SHARE["cpu"])
    changed, notes = plan.fit_device(experiment, data, CPU, [])
    assert (changed.train.patch_size, changed.train.batch_size) == ([64, 48, 32], 1)
    monkeypatch.setattr(plan, "device_memory", lambda device: room / 4 / plan.SHARE["cpu"])
    changed, notes = plan.fit_device(experiment, data, CPU, [])
    assert changed.train.batch_size == 1
    assert max(changed.train.patch_size) < 64
    assert "would not fit" in notes[-1]


def test_what_a_step_keeps_is_what_autograd_keeps(prepared: tuple[Experiment, Prepared]) -> None:
    """Bytes per voxel hold for other sizes: within a fifth of those kept at twice the edge."""
    experiment, data = prepared
    per_voxel, weights = plan.activation_bytes_per_voxel(experiment, data)
    network = plan.plain_network(experiment, data, deep_supervision=True)
    larger, _ = plan._kept_bytes(network, 2, 64, 3)
    assert per_voxel == pytest.approx(larger, rel=0.2)
    assert weights == sum(p.numel() * 4 for p in network.parameters())


def test_foresight_in_words() -> None:
    folder = Path(__file__).parents[2]
    experiment = load_config(folder / "configs/brats.yaml")
    lines = plan.foresee(experiment, 4, 3, 10)
    assert "5 steps per epoch" in lines[0]
    assert any("300 epochs" in line for line in lines)
    train = experiment.train.model_copy(update={"accumulate": 2})
    assert "3 steps per epoch" in plan.foresee(experiment.model_copy(update={"train": train}), 4, 3, 10)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (89, "89.0 s"), (91, "1.5 minutes"), (5400, "1.5 hours"), (200_000, "2.3 days")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert plan._duration(seconds) == text


def test_memory_is_what_a_job_may_use(tmp_path: Path) -> None:
    for place, limit in (("a", "max"), ("a/job", "4000000000"), ("a/job/step", "9000000000")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "memory.max").write_text(limit)
    (tmp_path / "membership").write_text("0::/a/job/step\n")
    assert min(plan._memory_limits(tmp_path, tmp_path / "membership")) == 4e9
    (tmp_path / "memory/slurm").mkdir(parents=True)
    (tmp_path / "memory/slurm/memory.limit_in_bytes").write_text("3000000000")
    (tmp_path / "membership").write_text("7:cpu,cpuacct:/x\n4:memory:/slurm\n")
    assert plan._memory_limits(tmp_path, tmp_path / "membership") == [3e9]
    assert plan._memory_limits(tmp_path, tmp_path / "nothing") == []
