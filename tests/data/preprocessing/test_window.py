"""CT: recognised by its values, and scaled alike in every case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from cmt_med.config.reading import load_config
from cmt_med.data.conventions.units import in_hounsfield_units, scale_of
from cmt_med.data.preprocessing.normalisation import Normalised
from cmt_med.init import init
from cmt_med.launch.command import run_command
from tests.data.made import LABEL, nifti

HU = (
    np.where(LABEL, 60.0, -1000.0).astype(np.float32) + np.arange(LABEL.size, dtype=np.float32).reshape(LABEL.shape) % 7
)
HU.ravel()[np.flatnonzero(LABEL.ravel() == 0)[0]] = 400.0  # bone


def test_a_window_by_hand() -> None:
    image = torch.tensor([[-1000.0, -160.0, 40.0, 240.0, 900.0], [1.0, 2.0, 3.0, 4.0, 5.0]]).reshape(2, 5, 1, 1)
    done = Normalised(["image"], over="image", clip=None, windows=[[-160, 240], None])({"image": MetaTensor(image)})[
        "image"
    ]
    np.testing.assert_allclose(done[0].numpy().ravel(), [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(done[1].numpy().ravel(), (np.arange(5) - 2) / np.std(np.arange(5)), atol=1e-5)
    empty = Normalised(["image"], over="image", clip=None, windows=[[-160, 240]])(
        {"image": MetaTensor(torch.zeros(1, 4, 1, 1))}
    )
    assert not empty["image"].any()  # a channel that a case lacks


@pytest.mark.parametrize(
    ("name", "ranges", "found"),
    [
        ("image", [(-1024, 1500)], True), ("image", [(-1024, 1500), (0, 255)], False), ("image", [(0, 4000)], False),
        ("image", [(-3.6, 9)], False), ("ct", [(-150, 300)], True), ("ct", [(0, 1)], False), ("t1", [(-2000, -900)], False),
        ("image", [(-32768, 3000)], False), ("image", [], False),
    ],
)  # fmt: skip
def test_hounsfield_units(name: str, ranges: list[tuple[float, float]], found: bool) -> None:
    assert in_hounsfield_units(name, ranges) == found


@pytest.mark.parametrize(
    ("name", "ranges", "unit", "window"),
    [
        ("ct", [(-1024, 1500)], "HU", [30, 140]), ("adc", [(0, 3400), (0, 2900)], "10⁻⁶ mm²/s", [30, 140]),
        ("adc", [(0, 2.9)], "10⁻³ mm²/s", [80.25, 80.35]), ("adc", [(0, 0.0031)], "mm²/s", None),
        ("adc", [(-900, 900)], "", None),
        ("adc", [(0, 60000)], "", None), ("suv", [(0, 31.5)], "SUV", [79.8, 80.8]), ("suv", [(0, 40000)], "", None),
        ("pet", [(0, 31.5)], "", None), ("t1", [(0, 2900)], "", None), ("suv", [], "", None),
    ],
)  # fmt: skip
def test_scales(name: str, ranges: list[tuple[float, float]], unit: str, window: list[float] | None) -> None:
    """Values that mean the same in every case, by name and by value; the window around 80.25 to 80.35, which is widened."""
    scale = scale_of(name, ranges)
    assert (scale.unit if scale is not None else "") == unit
    if scale is not None and window is not None:
        found = scale.window(80.25, 80.35)
        assert found == window
        assert found[1] - found[0] >= scale.least - 1e-9


def test_init_writes_the_window(tmp_path: Path) -> None:
    for i in range(2):
        nifti(tmp_path / f"set/images/p{i}.nii.gz", HU + i)
        nifti(tmp_path / f"set/labels/p{i}.nii.gz", LABEL)
        nifti(tmp_path / f"mr/images/p{i}.nii.gz", HU + 1000 + i)
        nifti(tmp_path / f"mr/labels/p{i}.nii.gz", LABEL)
    assert run_command(init, [str(tmp_path / "set"), "--output", str(tmp_path / "a.yaml")]) == 0
    assert load_config(tmp_path / "a.yaml").data.window == {"image": (10, 120)}  # 60 to 66, and 100 HU at least
    assert run_command(init, [str(tmp_path / "mr"), "--output", str(tmp_path / "b.yaml")]) == 0
    assert load_config(tmp_path / "b.yaml").data.window is None


@pytest.mark.data
def test_real_ct(real_data: Path, tmp_path: Path) -> None:
    assert run_command(init, [str(real_data / "spleen_ct"), "--output", str(tmp_path / "a.yaml")]) == 0
    window = load_config(tmp_path / "a.yaml").data.window
    assert window is not None
    (pair,) = window.values()
    assert -100 <= pair[0] < 60 < pair[1] <= 300
