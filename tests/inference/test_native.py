"""Labels made slab by slab are those of whole probabilities brought back to the case's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmt_med.config.schema import Inference
from cmt_med.data.preprocessing.pipeline import as_dictionary
from cmt_med.data.volumes.gate import Loaded
from cmt_med.data.volumes.grid import Grid
from cmt_med.inference import accumulator as accumulator
from cmt_med.inference import native
from cmt_med.inference.model import ModelCard
from cmt_med.inference.predict import Ensemble, Predictor


def ensemble(channels: int, *, regions: bool, spacing: Any, crop: bool, members: int = 1, **settings: Any) -> Ensemble:
    labels = {"background": 0} | {f"l{i}": i for i in range(1, channels + (1 if regions else 0))}
    card = ModelCard(
        name="made", network={"name": "made", "spatial_dims": 3, "in_channels": 1, "num_classes": channels},
        channels=["t1"], labels=labels,
        regions=[{"name": f"l{i}", "values": list(range(i, channels + 1)), "write": i} for i in range(1, channels + 1)]
        if regions else None,
        preprocessing={"spacing": spacing, "crop_foreground": crop, "normalise": "foreground", "clip": None},
        slice_axes=[], mirrored_axes=[0, 2], window=[12, 12, 12], patch=[12, 12, 12],
        inference=Inference(overlap=0.5, **settings), provenance={}, validation=None,
    )  # fmt: skip

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Conv3d(1, channels, 5, padding=2)

    return Ensemble([Predictor(network(i), card, torch.device("cpu")) for i in range(members)])


def case(shape: tuple[int, ...], axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> Loaded:
    torch.manual_seed(1)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * np.array(signs) * np.array(spacing)
    affine[:3, 3] = (10, -20, 30)
    image = 100 + torch.randn(1, *shape).numpy() * 20
    image[:, :4], image[:, -3:], image[:, :, :2], image[:, :, :, -1:] = 0, 0, 0, 0
    return Loaded(image.astype(np.float32), None, None, Grid(shape, affine))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in files, and in slabs of a few rows."""
    monkeypatch.setattr(accumulator, "RESIDENT", 1 << 14)
    monkeypatch.setattr(accumulator, "SLAB", 1 << 17)
    monkeypatch.setattr(native, "SLAB", 1 << 17)


GRIDS: list[tuple[Any, ...]] = [
    ((21, 16, 19), (0, 1, 2), (1, 1, 1), (1.0, 1.0, 1.0)),
    ((21, 16, 19), (2, 0, 1), (-1, 1, -1), (0.8, 0.8, 1.3)),
    ((14, 26, 17), (1, 0, 2), (1, -1, -1), (2.0, 0.7, 1.5)),
]


SPACINGS = (None, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5])
EACH: list[Any] = [({}, grid, spacing) for grid in range(len(GRIDS)) for spacing in SPACINGS]


@pytest.mark.parametrize(
    ("more", "grid", "spacing"), [*EACH, ({"tta": "flips"}, 1, SPACINGS[2]), ({"members": 2}, 2, SPACINGS[2])], ids=str
)
def test_the_same_labels(small: None, more: dict[str, Any], grid: int, spacing: Any) -> None:
    loaded = case(*GRIDS[grid])
    for regions, channels, crop, settings in (
        (False, 3, True, {}),
        (False, 9, False, {}),
        (True, 3, True, {"thresholds": {"l2": 0.45}, "min_region_mm3": {"l3": 900.0}}),
    ):
        made = ensemble(channels, regions=regions, spacing=spacing, crop=crop, **(more | settings))
        expected, removed = made.labels(made.probabilities(loaded), loaded.grid)
        found, taken = made.segment(loaded)
        assert len(np.unique(expected)) > 1
        assert np.array_equal(found, expected)
        assert taken == removed


def test_what_needs_whole_probabilities_gets_them() -> None:
    loaded = case(*GRIDS[0])
    made = ensemble(3, regions=True, spacing=None, crop=True, min_component_mm3={"l3": 1e6})
    expected, removed = made.labels(made.probabilities(loaded), loaded.grid)
    found, taken = made.segment(loaded)
    assert np.array_equal(found, expected)
    assert taken == removed
    assert removed.components


def test_only_where_neighbours_differ_is_anything_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    between = native._between

    def counted(accumulator: Any, axes: Any, points: Tensor, decide: Any) -> Tensor:
        asked.append(len(points))
        return between(accumulator, axes, points, decide)

    monkeypatch.setattr(native, "_between", counted)
    values = torch.zeros(1, 2, 12, 12, 12)
    values[0, 1, :6] = 1.0
    values[0, 0, 6:] = 1.0
    made = ensemble(2, regions=False, spacing=[2.0, 2.0, 2.0], crop=False)
    loaded = case((24, 24, 24), (0, 1, 2), (1, 1, 1), (1.0, 1.0, 1.0))
    data = made.predictors[0].transform(as_dictionary(loaded))
    assert data["image"].shape[1:] == (12, 12, 12)
    whole = accumulator.Accumulator(1, 2, (12, 12, 12), torch.device("cpu"))
    whole.values.copy_(values)
    found = native.labels_on_grid(whole, data, loaded.grid, lambda p: p.argmax(0).to(torch.uint8))
    assert sum(asked) <= 2 * 24 * 24
    assert set(np.unique(found[:11])) == {1}
    assert set(np.unique(found[13:])) == {0}
