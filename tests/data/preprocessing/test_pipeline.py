"""Preprocessing, its inverse, and patches that depend on their key alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from pydantic import ValidationError

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Augmentation, Data, Train
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.patches.augment import augment
from cmt_med.data.patches.cut import patches
from cmt_med.data.patches.loader import PatchSet, patch_batches
from cmt_med.data.preprocessing import resampling as resample
from cmt_med.data.preprocessing.cache import CachedCase, prepare
from cmt_med.data.preprocessing.normalisation import Normalised, background_value, foreground_of
from cmt_med.data.preprocessing.pipeline import (
    as_dictionary,
    invert_probabilities,
    preprocessing,
    preprocessing_settings,
)
from cmt_med.data.volumes.gate import Grid, Loaded
from tests.helpers import save, tiny_dataset

DATA = Data(manifest="m", channels=["a", "b"])
TRAIN = Train(epochs=1, patch_size=[12, 12, 12])


def patch_set(
    entries: list[CachedCase],
    settings: Augmentation,
    *,
    per_case: int = 1,
    seed: int = 0,
    data: Data = DATA,
    train: Train = TRAIN,
    apply: bool = True,
) -> PatchSet:
    change = augment(data, train, settings)
    cut = patches(data, train, change.margin)
    return PatchSet(entries, cut, change, patches_per_case=per_case, seed=seed, apply=apply)


def loaded(shape: tuple[int, int, int] = (12, 10, 14), affine: np.ndarray | None = None) -> Loaded:
    image = np.full((1, *shape), -3.5, np.float32)
    image[:, 3:9, 2:8, 4:11] = np.random.default_rng(0).normal(size=(6, 6, 7))
    return Loaded(image, None, None, Grid(shape, np.eye(4) if affine is None else affine))


def orientations() -> list[np.ndarray]:
    result = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(order)] * signs
            result.append(affine)
    return result


def test_background_and_foreground() -> None:
    case = loaded()
    assert background_value(case.image[0]) == -3.5
    assert foreground_of(case).sum() == 6 * 6 * 7
    noise = np.random.default_rng(0).normal(size=(1, 5, 5, 5)).astype(np.float32)
    assert foreground_of(Loaded(noise, None, None, Grid((5, 5, 5), np.eye(4)))).all()


def test_foreground_normalisation_by_hand() -> None:
    case = loaded()
    settings = {"spacing": None, "crop_foreground": True, "normalise": "foreground", "clip": None}
    image = preprocessing(settings, with_label=False)(as_dictionary(case))["image"]
    inside = case.image[0, 3:9, 2:8, 4:11]
    expected = (inside - inside.mean()) / inside.std()
    assert tuple(image.shape) == (1, 12, 10, 14)  # a margin of four voxels reaches every border here
    np.testing.assert_allclose(image[0, 3:9, 2:8, 4:11], expected, rtol=1e-4, atol=1e-5)
    assert image[0, 0].abs().max() == 0


def test_clipping_by_hand() -> None:
    case = loaded()
    case.image[0, 5, 5, 5] = 1000.0
    settings = {"spacing": None, "crop_foreground": False, "normalise": "foreground", "clip": (0.0, 99.0)}
    image = preprocessing(settings, with_label=False)(as_dictionary(case))["image"]
    inside = case.image[0, 3:9, 2:8, 4:11]
    clipped = np.minimum(inside, np.percentile(inside, 99))
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(image[0, 3:9, 2:8, 4:11], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", orientations(), ids=lambda a: "".join(f"{int(v):+d}" for v in a[:3, :3].sum(0)))
def test_48_axis_orders_come_back_exactly(affine: np.ndarray) -> None:
    case = loaded((40, 10, 14), affine)
    transform = preprocessing(
        {"spacing": None, "crop_foreground": True, "normalise": "image", "clip": None}, with_label=False
    )
    data = transform(as_dictionary(case))
    back = invert_probabilities(data["image"].as_tensor(), data, transform).numpy()
    assert back.shape == case.image.shape
    kept = np.zeros(back.shape, bool)
    kept[:, :13] = True  # the object, and the margin around it; zero outside
    inside = case.image[kept].astype(np.float64)
    expected = np.where(kept, (case.image - inside.mean()) / inside.std(), 0)
    np.testing.assert_allclose(back, expected, atol=1e-5)


def test_spacing_is_undone_on_the_own_grid() -> None:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    x = np.linspace(0, 1, 12, dtype=np.float32)[:, None, None]
    image = np.broadcast_to(x, (12, 10, 14)).copy()[None]
    case = Loaded(image, None, None, Grid((12, 10, 14), affine))
    transform = preprocessing(
        {"spacing": [1.0, 1.0, 1.0], "crop_foreground": False, "normalise": "image", "clip": None}, with_label=False
    )
    data = transform(as_dictionary(case))
    assert tuple(data["image"].shape) == (1, 23, 10, 14)
    back = invert_probabilities(data["image"].as_tensor(), data, transform).numpy()
    assert back.shape == image.shape
    slope, offset = np.polyfit(image[0, 1:-1].ravel(), back[0, 1:-1].ravel(), 1)
    np.testing.assert_allclose(back[0, 1:-1], slope * image[0, 1:-1] + offset, atol=1e-3)


@pytest.fixture
def entries(tmp_path: Path) -> list[CachedCase]:
    manifest = load_manifest(tiny_dataset(tmp_path / "d", 4))
    settings = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}
    return [
        prepare(c, channels=("a", "b"), labels=manifest.labels, settings=settings, folder=tmp_path / "cache")
        for c in manifest.cases
    ]


def test_batches_do_not_depend_on_workers_or_on_the_start(entries: list[CachedCase]) -> None:
    drawn = patch_set(entries, Augmentation(), per_case=2, seed=5)

    def take(start: int, count: int, workers: int) -> list[torch.Tensor]:
        stream = patch_batches(drawn, batch_size=3, start=start, workers=workers)
        return [next(stream)["image"] for _ in range(count)]

    whole = take(0, 6, 0)
    for ours, theirs in ((whole, take(0, 6, 2)), (whole[4:], take(4, 2, 0))):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    assert whole[0].shape == (3, 2, 12, 12, 12)
    assert not torch.equal(whole[0], whole[3])


def test_ranks_share_one_batch(entries: list[CachedCase]) -> None:
    drawn = patch_set(entries, Augmentation(), seed=5)
    one = next(patch_batches(drawn, batch_size=4, start=1, workers=0))["image"]
    halves = [next(patch_batches(drawn, batch_size=4, start=1, workers=0, rank=r, world=2))["image"] for r in (0, 1)]
    assert torch.equal(one[0::2], halves[0])
    assert torch.equal(one[1::2], halves[1])


def test_foreground_sampling_centres_on_labels(entries: list[CachedCase]) -> None:
    train = Train(epochs=1, patch_size=[3, 3, 3], foreground_fraction=1.0)
    still = Augmentation(flip=0, affine=0, intensity=0, gamma=0, noise=0)
    items = patch_set(entries, still, train=train)
    for i in range(12):
        drawn = items[(0, i % 4)]
        assert drawn["label"][0, 1, 1, 1] == 1
        assert drawn["image"].shape == (2, 3, 3, 3)


def test_image_and_label_move_together(entries: list[CachedCase]) -> None:
    turn = Augmentation(flip=1, affine=1, rotate_degrees=40, intensity=0, gamma=0, noise=0)
    train = Train(epochs=1, patch_size=[18, 15, 20], foreground_fraction=0.0)
    items = patch_set(entries, turn, train=train)
    for i in range(4):
        drawn = items[(i, i)]
        ball = drawn["label"][0] == 1
        assert ball.sum() > 200
        assert drawn["image"][0][ball].mean() > drawn["image"][0][~ball].mean() + 1.0


@pytest.mark.parametrize("kind", ["affine", "low_resolution", "blur"])
def test_augmentation_does_not_shift_the_image_against_its_label(kind: str) -> None:
    settings = {"flip": 0, "affine": 0, "intensity": 0, "gamma": 0, "noise": 0} | {kind: 1.0}
    train = Train(epochs=1, patch_size=[32, 48, 32], foreground_fraction=0.0)
    change = augment(DATA.model_copy(update={"channels": ["a"]}), train, Augmentation.model_validate(settings))
    cut = patches(DATA, train, change.margin)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (36, 50, 36)), indexing="ij"))
    radii, centre = np.array([7, 12, 8]), np.array([17.3, 24.6, 18.2])
    distance = np.sqrt(((grid.T - centre) ** 2 / radii**2).sum(-1)).T
    image = np.maximum(1.0 - distance, -0.5)[None].astype(np.float32)
    label = (image > 0).astype(np.uint8)
    shifts = []
    for seed in range(40):
        patch = cut.set_random_state(seed=seed)({"image": image, "label": label, "points": []})
        row = {name: value[None] for name, value in change.draw(np.random.default_rng(seed)).items()}
        drawn = change(patch["image"][None], patch["label"][None], row)
        where = [np.argwhere(part[0, 0].numpy() > 0).mean(0) for part in drawn]
        shifts.append(where[0] - where[1])
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.03  # voxels


def test_a_patch_without_an_affine_change_is_a_piece_of_the_volume() -> None:
    seldom = Augmentation(flip=0, affine=1e-9, scale=0.2, intensity=0, gamma=0, noise=0)
    train = Train(epochs=1, patch_size=[7, 10, 12], foreground_fraction=0.0)
    change = augment(DATA.model_copy(update={"channels": ["a"]}), train, seldom)
    cut = patches(DATA, train, change.margin)
    image = np.arange(9 * 10 * 11, dtype=np.float32).reshape(1, 9, 10, 11) + 1.0
    label = (image % 3 == 0).astype(np.uint8)
    places = set()
    for seed in range(60):
        whole = cut.set_random_state(seed=seed)({"image": image, "label": label, "points": []})
        row = {name: value[None] for name, value in change.draw(np.random.default_rng(seed)).items()}
        patch, mask = (part[0, 0].numpy() for part in change(whole["image"][None], whole["label"][None], row))
        assert patch.shape == (7, 10, 12)
        inside = patch > 0
        np.testing.assert_array_equal(mask[inside], patch[inside] % 3 == 0)
        x, y, z = np.unravel_index(int(patch[inside].min()) - 1, (9, 10, 11))
        offset = int(np.argwhere(inside.any(axis=(0, 1)))[0, 0])
        expected = np.pad(image[0, x : x + 7], ((0, 0), (0, 0), (offset, 1 - offset)))
        np.testing.assert_array_equal(patch, expected)
        assert (y, z) == (0, 0)
        places.add((int(x), offset))
    assert places == {(x, offset) for x in range(3) for offset in range(2)}  # every place, the border too


def test_2d_patches_are_slices(entries: list[CachedCase]) -> None:
    data = DATA.model_copy(update={"slice_axis": 1})
    train = Train(epochs=1, patch_size=[12, 10])
    items = patch_set(entries, Augmentation(), data=data, train=train)
    assert items[(0, 0)]["image"].shape == (2, 12, 10)
    assert items[(0, 0)]["label"].shape == (1, 12, 10)


def test_cache_is_never_stale(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_dataset(tmp_path / "d", 2))
    case = manifest.cases[0]
    settings = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None}

    def key(**changed: object) -> str:
        entry = prepare(
            case, channels=("a", "b"), labels=manifest.labels, settings=settings | changed, folder=tmp_path / "cache"
        )
        return entry.folder.name

    first = key()
    assert key() == first
    assert key(spacing=[2.0, 2.0, 2.0]) != first
    other = manifest.cases[1].images["a"][0].read_bytes()
    case.images["a"][0].write_bytes(other)
    assert key() != first


def test_slices_of_all_planes(entries: list[CachedCase]) -> None:
    """Every plane occurs, and each slice is one of the volume's."""
    data = Data(manifest="m", channels=["a", "b"], slice_axis="all")
    still = Augmentation(flip=0, affine=0, intensity=0, gamma=0, noise=0)
    items = patch_set(entries, still, per_case=8, data=data, train=Train(epochs=1, patch_size=[30, 30]))
    planes = set()
    for index in range(24):
        item = items[(0, index)]
        volume = entries[int(item["case"])].image()
        assert item["image"].shape == (2, 30, 30)
        content = np.sort(item["image"][0].numpy()[item["image"][0].numpy() != 0])  # padded around with zeros
        for axis in range(3):
            slices = np.moveaxis(volume[0], axis, 0).reshape(volume.shape[1 + axis], -1)
            if content.size == slices.shape[1] and (np.sort(slices, axis=1) == content).all(axis=1).any():
                planes.add(axis)
    assert planes == {0, 1, 2}


def test_the_foreground_is_one_more_channel_that_brightness_does_not_touch() -> None:
    case = loaded()
    settings = {
        "spacing": None,
        "crop_foreground": True,
        "normalise": "foreground",
        "clip": None,
        "foreground_channel": True,
    }
    transform = preprocessing(settings, with_label=False)
    data = transform(as_dictionary(case))
    assert data["image"].shape[0] == 2
    mask = data["image"][1].numpy()
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask.sum() == 6 * 6 * 7
    whole = invert_probabilities(torch.as_tensor(mask)[None], data, transform)  # the way back is still known
    np.testing.assert_array_equal(whole[0].numpy() > 0, case.image[0] != -3.5)


def test_augmentation_keeps_the_foreground_channel(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_dataset(tmp_path))
    data = Data(manifest="m", channels=["a", "b"], foreground_channel=True)
    settings = {
        "spacing": None,
        "crop_foreground": False,
        "normalise": "image",
        "clip": None,
        "foreground_channel": True,
    }
    entry = prepare(
        manifest.cases[0], channels=["a", "b"], labels=manifest.labels, settings=settings, folder=tmp_path / "c"
    )
    loud = Augmentation(flip=0.5, affine=0, intensity=1, gamma=1, noise=1, blur=1)
    items = patch_set([entry], loud, per_case=4, data=data)
    for index in range(4):
        image = items[(0, index)]["image"]
        assert image.shape[0] == 3
        assert set(image[2].unique().tolist()) == {1.0}
        assert not torch.equal(image[0], image[2])


@pytest.mark.parametrize("spacing", [(0.83, 0.91, 1.13), (2.03, 1.01, 0.71)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_resampling_by_slabs_is_resampling(
    monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, ...], signs: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([*(s * n for s, n in zip(spacing, signs, strict=True)), 1.0])
    grid = Grid((23, 18, 29), affine)
    image = rng.normal(size=(2, *grid.shape)).astype(np.float32) + 5
    label = (rng.random(grid.shape) > 0.8).astype(np.uint8)
    settings = {"spacing": [1.5, 1.2, 1.0], "crop_foreground": False, "normalise": "image", "clip": None}
    found = []
    for large, slab in ((0, 600), (1 << 24, 600)):
        monkeypatch.setattr(resample, "LARGE", large)
        monkeypatch.setattr(resample, "SLAB", slab)
        transform = preprocessing(settings, with_label=True)
        data = transform(as_dictionary(Loaded(image, label, None, grid)))
        back = invert_probabilities(data["image"].as_tensor(), data, transform)
        found.append((data["image"].as_tensor(), data["label"].as_tensor(), data["image"].affine, back))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.fault(24)
@pytest.mark.parametrize("spacing", [None, [1.3, 0.9, 2.0]])
@pytest.mark.parametrize("over", ["image", "foreground"])
@pytest.mark.parametrize("value", [0.0, 500.0, 1234.567, -3.6e-3, 7.1e8])
def test_a_constant_channel_becomes_zeros(value: float, over: str, spacing: list[float] | None) -> None:
    """Not its rounding errors, which resampling leaves and division by their spread would blow up."""
    case = loaded()
    image = np.concatenate([case.image, np.full_like(case.image, value)])
    settings = {"spacing": spacing, "crop_foreground": True, "normalise": over, "clip": None}
    found = preprocessing(settings, with_label=False)(as_dictionary(replace(case, image=image)))["image"]
    assert not found[1].any()
    assert float(found[0].std()) > 0.1


@pytest.mark.parametrize("over", ["image", "foreground"])
def test_a_missing_channel_is_the_mean_of_a_z_score(tmp_path: Path, over: str) -> None:
    """What is cached has 0 in its place, and the other channel as it would be alone; the entry is one of its own."""
    head = np.zeros((9, 8, 7), np.float32)
    head[2:7, 2:6, 2:5] = np.random.default_rng(0).normal(100, 20, (5, 4, 3))
    save(tmp_path / "a.nii.gz", head)
    save(tmp_path / "l.nii.gz", (head > 100).astype(np.uint8))
    case = Case("x", {"a": (tmp_path / "a.nii.gz", None)}, tmp_path / "l.nii.gz")
    data = Data(
        manifest="m",
        channels=["b", "a"],
        missing="zeros",
        crop_foreground=True,
        normalise=over,
        spacing=[1.0, 0.7, 1.0],
    )
    settings = preprocessing_settings(data)
    labels = {"background": 0, "x": 1}
    found = prepare(case, channels=["b", "a"], labels=labels, settings=settings, folder=tmp_path)
    alone = prepare(case, channels=["a"], labels=labels, settings=settings, folder=tmp_path)
    assert found.image().shape[0] == 2
    assert not found.image()[0].any()
    assert np.array_equal(found.image()[1], alone.image()[0])
    assert list(found.statistics()["channels"]) == ["a"]
    dropped = preprocessing_settings(data.model_copy(update={"missing": "drop"}))
    with pytest.raises(DataError, match="E_CHANNEL"):
        prepare(case, channels=["b", "a"], labels=labels, settings=dropped, folder=tmp_path)


@pytest.mark.fault(8)
@pytest.mark.parametrize("clip", [[99, 1], [50, 50], [-1, 99], [0, 101]])
def test_percentiles_that_leave_no_contrast(clip: list[float]) -> None:
    with pytest.raises(ValidationError):
        Data.model_validate({"manifest": "m", "channels": ["a"], "clip": clip})


@pytest.mark.fault(7)
@pytest.mark.parametrize("over", ["image", "foreground"])
def test_normalisation_takes_little_more_than_its_result(over: str) -> None:
    """Some times the volume itself: on a large one, indices of its voxels took most of the machine's memory."""
    size = 160
    image = torch.from_numpy(np.random.default_rng(0).normal(5, 3, (1, size, size, size)).astype(np.float32))
    foreground = torch.zeros(1, size, size, size, dtype=torch.uint8)
    foreground[:, 20:] = 1
    data = {"image": MetaTensor(image), "foreground": MetaTensor(foreground)}
    step = Normalised(["image"], over=over, clip=None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = step(data)["image"]
    taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert taken < 4 * image.nbytes  # all that torch has asked for, whether or not at one time
    inside = result[foreground > 0] if over == "foreground" else result
    assert abs(float(inside.mean())) < 1e-4
    assert abs(float(inside.std()) - 1) < 1e-4
    assert not result[foreground == 0].any() or over == "image"
