"""Random changes of patches: what they do by hand, beside MONAI's, and that a batch is its patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms.intensity.array import AdjustContrast, GaussianSmooth
from monai.transforms.spatial.array import Affine
from torch import Tensor

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Augmentation
from cmt_med.data.patches.augment import Augment, Drawn, rotation

NOTHING = Augmentation(flip=0, affine=0, intensity=0, gamma=0, noise=0)
EVERYTHING = Augmentation(
    flip=0.5,
    affine=0.6,
    rotate_degrees=30,
    scale=0.25,
    intensity=0.5,
    gamma=0.5,
    noise=0.5,
    blur=0.5,
    low_resolution=0.5,
    channel_dropout=0.5,
)


def drawn_for(change: Augment, count: int = 1, **changed: Any) -> Drawn:
    """What nothing draws, but for what is given."""
    still = Augment(NOTHING, size=change.size, channels=change.channels)
    rows = [still.draw(np.random.default_rng(i)) for i in range(count)]
    found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found | {name: torch.as_tensor(value)[None] for name, value in changed.items()}


def random_patch(change: Augment, *, count: int = 1, channels: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    whole = [n + 2 * m for n, m in zip(change.size, change.margin, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, channels, *whole, generator=generator)
    return image, torch.randint(0, 4, (count, 1, *whole), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(6, 8), (6, 8, 7)])
def test_nothing_drawn_is_the_middle(size: tuple[int, ...]) -> None:
    change = Augment(NOTHING.model_copy(update={"affine": 1e-9, "scale": 0.3}), size=size, channels=2)
    assert change.margin == tuple(math.ceil(n * 0.15) for n in size)
    image, label = random_patch(change)
    middle = (..., *(slice(m, m + n) for m, n in zip(change.margin, size, strict=True)))
    before = image.clone()
    found = change(image, label, drawn_for(change))
    assert torch.equal(found[0], image[middle])
    assert torch.equal(found[1], label[middle])
    found[0].zero_()
    assert torch.equal(image, before), "what comes in is left as it is"


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 5), dims=st.sampled_from([2, 3]))
def test_a_batch_is_its_patches(seed: int, count: int, dims: int) -> None:
    change = Augment(EVERYTHING, size=(9, 8, 7)[:dims], channels=2)
    image, label = random_patch(change, count=count, channels=3, seed=seed)
    rows = [change.draw(np.random.default_rng([seed, i])) for i in range(count)]
    drawn = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    images, labels = change(image, label, drawn)
    for i in range(count):
        alone = {name: value[i : i + 1] for name, value in drawn.items()}
        one, its_label = change(image[i : i + 1], label[i : i + 1], alone)
        torch.testing.assert_close(images[i], one[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(labels[i], its_label[0])
        assert labels.dtype == torch.uint8
        assert set(labels[i].unique().tolist()) <= set(label[i].unique().tolist()) | {0}


@pytest.mark.parametrize(("angles", "scales"), [((0.3,), (1.1, 0.9)), ((0.2, -0.4, 0.7), (0.8, 1.2, 1.05))])
def test_affine_changes_are_monais(angles: tuple[float, ...], scales: tuple[float, ...]) -> None:
    size = (12, 10, 14)[: len(scales)]
    narrow = Augmentation(affine=1, rotate_degrees=180, scale=0.4)
    change = Augment(narrow, size=size, channels=2)

    matrix = torch.as_tensor(rotation(np.array(angles)) * np.array(scales), dtype=torch.float32)
    image, label = random_patch(change)
    ours, our_label = change(image, label, drawn_for(change, affine=True, matrix=matrix))
    rotate = list(angles) if len(angles) > 1 else angles[0]
    for found, source, mode in ((ours, image, "bilinear"), (our_label, label, "nearest")):
        affine = Affine(
            rotate_params=rotate,
            scale_params=scales,
            spatial_size=size,
            mode=mode,
            padding_mode="zeros",
            image_only=True,
        )
        torch.testing.assert_close(found[0].float(), torch.as_tensor(affine(source[0].float())), rtol=1e-4, atol=1e-4)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    change = Augment(NOTHING, size=(7, 7), channels=2)
    image, label = random_patch(change)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # patch offset (u, v) comes from (-v, u)
    found, its_label = change(image, label, drawn_for(change, affine=True, matrix=turn))
    torch.testing.assert_close(found, torch.rot90(image, -1, (2, 3)), rtol=1e-5, atol=1e-5)
    assert torch.equal(its_label, torch.rot90(label, -1, (2, 3)))


@pytest.mark.parametrize("size", [(9, 8), (8, 7, 9)])
def test_labels_are_moved_and_never_mixed(size: tuple[int, ...]) -> None:
    """Between a label and a value far off there are no labels: what nobody has annotated stays so."""
    change = Augment(EVERYTHING.model_copy(update={"affine": 1.0, "rotate_degrees": 180.0}), size=size, channels=2)
    for seed in range(20):
        image, label = random_patch(change, seed=seed)
        label = torch.where(label % 2 == 0, torch.tensor(255, dtype=torch.uint8), torch.tensor(2, dtype=torch.uint8))
        drawn = {name: row[None] for name, row in change.draw(np.random.default_rng(seed)).items()}
        found = change(image, label, drawn)[1]
        assert set(found.unique().tolist()) <= {0, 2, 255}  # 0 comes from beyond the volume
        assert (found == 255).any()


def test_flips_brightness_and_noise_by_hand() -> None:
    change = Augment(NOTHING.model_copy(update={"flip": 0.5}), size=(2, 3), channels=2)
    image = torch.arange(18.0).view(1, 3, 2, 3)
    label = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    found, its_label = change(
        image, label, drawn_for(change, flip=[False, True], factor=[2.0, 1.0], offset=[0.5, -1.0])
    )
    assert found[0, 0].tolist() == [[4.5, 2.5, 0.5], [10.5, 8.5, 6.5]]
    assert found[0, 1].tolist() == [[7, 6, 5], [10, 9, 8]]
    assert found[0, 2].tolist() == [[14, 13, 12], [17, 16, 15]], "what is no brightness only moves"
    assert its_label[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    large = Augment(NOTHING, size=(64, 64), channels=1)
    blank = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    first, again, other = (large(*blank, drawn_for(large, noise=0.1, seed=seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.std()) - 0.1) < 0.005


def test_gamma_and_blur_are_monais() -> None:
    change = Augment(NOTHING, size=(11, 9, 10), channels=2)
    image, label = random_patch(change)
    found, _ = change(image, label, drawn_for(change, gamma=1.4))
    torch.testing.assert_close(found[0], AdjustContrast(1.4, retain_stats=True)(image[0]), rtol=1e-4, atol=1e-4)
    found, _ = change(image, label, drawn_for(change, sigma=[0.6, 0.9, 0.5]))
    torch.testing.assert_close(found[0], GaussianSmooth([0.6, 0.9, 0.5])(image[0]), rtol=1e-4, atol=1e-5)


def test_low_resolution_moves_nothing() -> None:
    change = Augment(NOTHING, size=(16, 20), channels=1)
    ramp = torch.arange(20.0).expand(1, 1, 16, 20)
    found, _ = change(ramp, torch.zeros(1, 1, 16, 20, dtype=torch.uint8), drawn_for(change, zoom=0.5))
    torch.testing.assert_close(found[..., 2:-2], ramp[..., 2:-2])
    assert found[0, 0, 0, 0] == pytest.approx(0.5), "the first two voxels became one"


def test_one_channel_is_dropped_and_never_the_last() -> None:
    """Four patches of three channels: all there, without the second, with the third alone, with none."""
    change = Augment(NOTHING.model_copy(update={"channel_dropout": 0.5}), size=(2, 2), channels=3)
    image = torch.ones(4, 4, 2, 2) * torch.arange(1.0, 5.0).view(4, 1, 1)
    for i, missing in enumerate(([], [1], [0, 1], [0, 1, 2])):
        image[i, missing] = 0
    label = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)

    def left(place: float, **more: Any) -> list[list[float]]:
        drawn = drawn_for(change, 4) | {"dropped": torch.full((4,), place)} | more
        return change(image, label, drawn)[0][:, :, 0, 0].tolist()

    assert left(-1.0) == [[1, 2, 3, 4], [1, 0, 3, 4], [0, 0, 3, 4], [0, 0, 0, 4]]
    assert left(0.0) == left(0.33) == [[0, 2, 3, 4], [0, 0, 3, 4], [0, 0, 3, 4], [0, 0, 0, 4]]
    assert left(0.6) == [[1, 0, 3, 4], [1, 0, 0, 4], [0, 0, 3, 4], [0, 0, 0, 4]]
    assert left(1.0) == [[1, 2, 0, 4], [1, 0, 0, 4], [0, 0, 3, 4], [0, 0, 0, 4]]
    brighter = {"factor": torch.full((4, 3), 2.0), "offset": torch.ones(4, 3), "noise": torch.full((4,), 1e-9)}
    found = np.round(left(0.0, **brighter), 3).tolist()
    assert found == [[0, 5, 7, 4], [0, 0, 7, 4], [0, 0, 7, 4], [0, 0, 0, 4]], "what is missing gets no brightness"


def test_channels_are_dropped_alike() -> None:
    change = Augment(NOTHING.model_copy(update={"channel_dropout": 0.5}), size=(2, 2), channels=4)
    rows = [change.draw(np.random.default_rng([3, i])) for i in range(2000)]
    drawn = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    found = change(torch.ones(2000, 4, 2, 2), torch.zeros(2000, 1, 2, 2, dtype=torch.uint8), drawn)[0]
    gone = (found.flatten(2) == 0).all(-1)
    assert gone.sum(1).max() == 1
    assert np.allclose(gone.float().mean(0), 0.125, atol=0.025)


def test_how_often_what_is_drawn() -> None:
    change = Augment(EVERYTHING, size=(4, 4, 4), channels=2)
    rows = [change.draw(np.random.default_rng([7, i])) for i in range(2000)]
    share = {
        "affine": np.mean([bool(r["affine"]) for r in rows]),
        "factor": np.mean([bool((r["factor"] != 1).any()) for r in rows]),
        "offset": np.mean([bool((r["offset"] != 0).any()) for r in rows]),
        **{
            name: np.mean([float(r[name]) != neutral for r in rows])
            for name, neutral in (("gamma", 1), ("noise", 0), ("zoom", 1))
        },
        "dropped": np.mean([float(r["dropped"]) >= 0 for r in rows]),
        "sigma": np.mean([bool((r["sigma"] > 0).all()) for r in rows]),
        "flip": np.mean([r["flip"].float().mean() for r in rows]),
    }
    assert share.pop("affine") == pytest.approx(0.6, abs=0.04)
    assert all(value == pytest.approx(0.5, abs=0.04) for value in share.values()), share
    determinants = [float(torch.det(r["matrix"])) for r in rows]
    assert 0.75**3 <= min(determinants) < 0.6
    assert 1.7 < max(determinants) <= 1.25**3
    assert all(0.5 <= float(r["zoom"]) <= 1 and 0 <= float(r["noise"]) <= 0.15 for r in rows)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("affine", ["affine"]),
        ("intensity", ["factor", "offset"]),
        ("gamma", ["gamma"]),
        ("noise", ["noise"]),
        ("blur", ["sigma"]),
        ("low_resolution", ["zoom"]),
        ("channel_dropout", ["dropped"]),
    ],
)
def test_switching_one_change_off_leaves_the_others(name: str, keys: list[str]) -> None:
    whole, part = (
        Augment(EVERYTHING.model_copy(update=update), size=(4, 4), channels=1).draw(np.random.default_rng(5))
        for update in ({}, {name: 0.0})
    )
    assert all(torch.equal(whole[key], part[key]) for key in whole if key not in keys)


def test_a_flip_axis_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="flip axis") as error:
        Augment(Augmentation(flip_axes=[2]), size=(4, 4), channels=1)
    assert "0 to 1" in error.value.fix
    seen = [Augment(EVERYTHING.model_copy(update={"flip": 1.0, "flip_axes": [0]}), size=(4, 4), channels=1)]
    assert all(
        change.draw(np.random.default_rng(i))["flip"].tolist() == [True, False] for change in seen for i in (1, 2)
    )
