"""From probabilities to labels, on volumes small enough to check by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Inference
from cmt_med.data.conventions.brats import CONVENTIONS, standard_regions
from cmt_med.data.conventions.regions import region_values
from cmt_med.tasks.segmentation.labels import Classes, Regions
from cmt_med.tasks.segmentation.target import Target, surrounding

WT, TC, ET = Target("WT", (1, 2, 4), 2), Target("TC", (1, 4), 1), Target("ET", (4,), 4)
BRATS = [WT, TC, ET]


def row(*channels: list[float]) -> torch.Tensor:
    """Channels of a volume that is one line of voxels."""
    return torch.tensor(channels)[:, :, None, None]


def test_regions_are_painted_in_order() -> None:
    p = row([0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.9, 0.1], [0.1, 0.1, 0.9, 0.9])
    found, removed = Regions(BRATS).labels(p, Inference())
    assert found.ravel().tolist() == [2, 1, 4, 4]
    assert removed.as_dict() == {}


def test_the_most_probable_class_is_written_with_its_value() -> None:
    p = row([0.6, 0.2, 0.1], [0.3, 0.7, 0.1], [0.1, 0.1, 0.8])
    found, _ = Classes([Target("a", (3,), 3), Target("b", (7,), 7)]).labels(p, Inference())
    assert found.ravel().tolist() == [0, 3, 7]


def test_each_region_has_its_own_threshold() -> None:
    p = row([0.4, 0.6], [0.4, 0.4], [0.0, 0.0])
    found, _ = Regions(BRATS).labels(p, Inference(thresholds={"TC": 0.3}))
    assert found.ravel().tolist() == [1, 1]
    found, _ = Regions(BRATS).labels(p, Inference())
    assert found.ravel().tolist() == [0, 2]


@pytest.mark.parametrize(("minimum", "voxel_mm3", "expected"), [(3.0, 1.0, [1, 1, 2]), (2.0, 1.0, [4, 4, 2]),
                                                                (3.0, 2.0, [4, 4, 2])])  # fmt: skip
def test_enhancing_tumour_that_is_too_small_becomes_core(minimum: float, voxel_mm3: float, expected: list[int]) -> None:
    p = row([0.9, 0.9, 0.9], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1])  # one of its voxels is not even predicted as core
    chosen = Inference(min_region_mm3={"ET": minimum})
    found, removed = Regions(BRATS).labels(p, chosen, voxel_mm3=voxel_mm3)
    assert found.ravel().tolist() == expected
    assert removed.as_dict() == ({"below_minimum_mm3": {"ET": 2.0}} if expected[0] == 1 else {})


def test_small_parts_go_unless_the_network_is_sure_of_them() -> None:
    p = row([0.6, 0.6, 0.1, 0.6, 0.1, 0.95], [0.0] * 6, [0.0] * 6)
    found, removed = Regions(BRATS).labels(p, Inference(min_component_mm3={"WT": 2.0}))
    assert found.ravel().tolist() == [2, 2, 0, 0, 0, 0]
    assert removed.as_dict() == {"components": {"WT": 2}, "component_mm3": {"WT": 2.0}}
    found, _ = Regions(BRATS).labels(p, Inference(min_component_mm3={"WT": 2.0}, confident=0.9))
    assert found.ravel().tolist() == [2, 2, 0, 0, 0, 2]


def test_parts_that_touch_at_a_corner_are_one() -> None:
    p = torch.zeros(3, 2, 2, 2)
    p[0, 0, 0, 0] = p[0, 1, 1, 1] = 0.9
    found, _ = Regions(BRATS).labels(p, Inference(min_component_mm3={"WT": 2.0}))
    assert int((found == 2).sum()) == 2


def test_small_parts_of_a_class_become_background() -> None:
    p = row([0.1, 0.1, 0.8, 0.1], [0.9, 0.9, 0.2, 0.9])
    found, _ = Classes([Target("a", (5,), 5)]).labels(p, Inference(min_component_mm3={"a": 2.0}))
    assert found.ravel().tolist() == [5, 5, 0, 0]


def test_what_surrounds_what() -> None:
    assert surrounding(ET, BRATS) == TC
    assert surrounding(TC, BRATS) == WT
    assert surrounding(WT, BRATS) is None


def test_a_region_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no region 'EET'"):
        Regions(BRATS).check(Inference(min_region_mm3={"EET": 5.0}))
    with pytest.raises(ConfigError, match="classes have no thresholds"):
        Classes([Target("a", (1,), 1)]).check(Inference(thresholds={"a": 0.4}))


@given(name=st.sampled_from(sorted(CONVENTIONS)), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_labels_to_regions_to_labels_is_the_identity(name: str, seed: int) -> None:
    labels = CONVENTIONS[name].labels
    values = np.array(list(labels.values()), dtype=np.uint8)
    label = np.random.default_rng(seed).choice(values, (4, 5, 6))
    regions = region_values(standard_regions(labels), labels)
    perfect = np.stack([np.isin(label, members) for _, members, _ in regions]).astype(np.float32)
    targets = [Target(region, tuple(members), write) for region, members, write in regions]
    found, _ = Regions(targets).labels(perfect, Inference())
    np.testing.assert_array_equal(found, label)
