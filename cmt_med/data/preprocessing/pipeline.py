"""MONAI dictionary transforms: the deterministic part, which is cached and inverted, and the cutting of patches.

Keys of the dictionaries: ``image`` (C, *S) float32, ``label`` (1, *S) integers, ``foreground`` (1, *S) booleans.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import CropForegroundd
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from monai.transforms.transform import MapTransform, Randomizable
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.schema import Data, Train
from cmt_med.data.preprocessing.resampling import SlabResample
from cmt_med.data.volumes.gate import Loaded

POINTS_PER_LABEL = 4096
"""Voxels of each label remembered for sampling patches; enough to cover a lesion, small beside the volume."""

FOREGROUND_MARGIN = 4  # voxels kept around the foreground


def background_value(channel: NDArray[np.float32]) -> float | None:
    """The value outside the object, if there is one: that of more than half of the voxels on the volume's faces.

    Of a single slice, its edges.

    Not every data set has zero there (the five BRATS-2013 patients have a negative constant).
    """
    axes = [axis for axis in range(3) if channel.shape[axis] > 1] or range(3)
    faces = np.concatenate([np.take(channel, index, axis).ravel() for axis in axes for index in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    most = int(np.argmax(counts))
    return float(values[most]) if counts[most] > 0.5 * faces.size else None


def foreground_of(loaded: Loaded) -> NDArray[np.bool_]:
    """The object's voxels (D1, D2, D3): the case's mask, else where any channel differs from its background value.

    The whole volume where no background can be told apart.
    """
    if loaded.mask is not None:
        return loaded.mask
    result = np.zeros(loaded.grid.shape, dtype=bool)
    for channel in loaded.image:
        value = background_value(channel)
        if value is None:
            return np.ones(loaded.grid.shape, dtype=bool)
        result |= channel != value
    return result if result.any() else np.ones(loaded.grid.shape, dtype=bool)


def as_dictionary(loaded: Loaded) -> dict[str, MetaTensor]:
    """A loaded case as MONAI transforms take it."""
    affine = torch.as_tensor(loaded.grid.affine)
    arrays: dict[str, NDArray[Any]] = {
        "image": loaded.image,
        "foreground": foreground_of(loaded)[None].astype(np.uint8),
    }
    if loaded.label is not None:
        arrays["label"] = loaded.label[None]
    return {key: MetaTensor(torch.from_numpy(a), affine=affine) for key, a in arrays.items()}


class Normalised(MapTransform):
    """z-score per channel, over all voxels or over the foreground, with zero outside it.

    With ``clip``, brightness is first clipped to these percentiles of the same voxels: a few bright vessels would else set
    the scale of a whole scan. A channel that is constant there becomes zeros: to divide by its standard deviation would
    blow up rounding errors into an image.
    """

    def __init__(self, keys: Sequence[str], *, over: str, clip: Sequence[float] | None) -> None:
        super().__init__(keys)
        self.over, self.clip = over, clip

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        inside = data["foreground"][0] > 0 if self.over == "foreground" else None
        for key in self.key_iterator(result):
            image = result[key].clone()
            for channel in image:
                values = _chosen(channel, inside)
                if self.clip is not None:
                    low, high = np.percentile(values.numpy(), self.clip)
                    channel.clamp_(float(low), float(high))
                    values = _chosen(channel, inside)
                if _is_constant(values):
                    channel.zero_()
                    continue
                mean, spread = values.mean(), values.std(correction=0).clamp_min(1e-6)
                channel.sub_(mean).div_(spread)
            result[key] = image if inside is None else image.mul_(inside)
        return result


def _chosen(channel: Tensor, inside: Tensor | None) -> Tensor:
    """The values (n,) of a channel where ``inside`` is true, or all of them, which may be a view.

    By NumPy: torch would make three 64-bit indices for each voxel, six times the volume itself.
    """
    if inside is None:
        return torch.as_tensor(channel.numpy().reshape(-1))
    return torch.from_numpy(channel.numpy()[inside.numpy()])


def _is_constant(values: Tensor) -> bool:
    """Tell whether values differ by no more than resampling a constant leaves of it: eight roundings in float32."""
    low, high = (float(v) for v in torch.aminmax(values))
    return high - low <= 8 * torch.finfo(torch.float32).eps * max(abs(low), abs(high))


class WithForeground(MapTransform):
    """Add the foreground mask to the image's channels, as the last one, 0 or 1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            joined = torch.cat([image.as_tensor(), data["foreground"].as_tensor().to(image.dtype)])
            result[key] = MetaTensor(joined).copy_meta_from(image)
        return result


class FitIntod(MapTransform):
    """Bring whole images to one size (D1, D2, D3): scaled as they are, in the middle, with zeros around.

    Args:
        keys: entries, (C, *S) each.
        size: in voxels.
        enlarge: scale images up, too, until they touch two sides; else only those that are too large are scaled. Volumes whose
            voxels have a size in mm show it only without.
    """

    def __init__(self, keys: Sequence[str], *, size: Sequence[int], enlarge: bool) -> None:
        super().__init__(keys)
        self.size, self.enlarge = tuple(size), enlarge

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            values = torch.as_tensor(image.as_tensor())
            shape = values.shape[1:]
            factor = min(n / s for n, s in zip(self.size, shape, strict=True) if (n, s) != (1, 1))
            factor = factor if self.enlarge else min(1.0, factor)
            inner = [max(1, min(n, round(s * factor))) for n, s in zip(self.size, shape, strict=True)]
            if tuple(inner) != tuple(shape):
                flat = inner[2] == shape[2] == 1  # a 2D image: torch smooths what it scales down in 2D alone
                source = values[..., 0] if flat else values
                mode, chosen = ("bilinear", inner[:2]) if flat else ("trilinear", inner)
                scaled = F.interpolate(source[None], size=chosen, mode=mode, align_corners=False, antialias=flat)[0]
                values = scaled[..., None] if flat else scaled
            pads = [(n - s) // 2 for n, s in zip(self.size, inner, strict=True)]
            whole = values.new_zeros((len(values), *self.size))
            whole[(slice(None), *(slice(p, p + s) for p, s in zip(pads, inner, strict=True)))] = values
            result[key] = MetaTensor(whole)
        return result


def preprocessing(data: Data | Mapping[str, Any], *, with_label: bool) -> Compose:
    """The deterministic transforms of a data set: to RAS, to the network's spacing, crop, normalise.

    Args:
        data: ``data`` section of an experiment, or the ``preprocessing`` entry of a model.
        with_label: whether the dictionary has a label.
    """
    settings = preprocessing_settings(data) if isinstance(data, Data) else data
    keys = ["image", "foreground"] + (["label"] if with_label else [])
    nearest = ["bilinear", "nearest", "nearest"][: len(keys)]
    steps: list[Any] = [Orientationd(keys, axcodes="RAS", labels=None)]
    if settings["spacing"] is not None:
        spacing = Spacingd(keys, pixdim=settings["spacing"], mode=nearest, padding_mode="border")
        spacing.spacing_transform.sp_resample = SlabResample()
        steps.append(spacing)
    if settings["crop_foreground"]:
        steps.append(CropForegroundd(keys, source_key="foreground", margin=FOREGROUND_MARGIN, allow_smaller=True))
    steps.append(Normalised(["image"], over=settings["normalise"], clip=settings["clip"]))
    if settings.get("foreground_channel"):
        steps.append(WithForeground(["image"]))
    if settings.get("size"):
        steps.append(FitIntod(["image"], size=settings["size"], enlarge=settings["enlarge"]))
    return Compose(steps)


def seen_by(loaded: Loaded, settings: Mapping[str, Any]) -> Loaded:
    """A case as these settings look at it: without its mask, where nothing depends on that."""
    used = settings["crop_foreground"] or settings["normalise"] == "foreground" or settings.get("foreground_channel")
    return loaded if used else replace(loaded, mask=None)


def preprocessing_settings(data: Data) -> dict[str, Any]:
    """The settings that :func:`preprocessing` depends on; part of the model and of the cache's key."""
    return {
        "spacing": data.spacing,
        "crop_foreground": data.crop_foreground,
        "normalise": data.normalise,
        "clip": data.clip,
        "foreground_channel": data.foreground_channel,
    }


def whole_image_settings(data: Data, size: Sequence[int]) -> dict[str, Any]:
    """:func:`preprocessing_settings` where the network sees whole images of one size, (W, H) or (D1, D2, D3)."""
    full = [*size, 1] if len(size) == 2 else list(size)
    return preprocessing_settings(data) | {"size": full, "enlarge": data.enlarge}


def invert_probabilities(probabilities: Tensor, preprocessed: Mapping[str, Any], transform: Compose) -> Tensor:
    """Bring probabilities (K, *S') on the preprocessed grid back to the input's own grid (K, *S).

    Cropping and axis order are undone exactly, a change of spacing linearly; outside the crop everything is zero.
    """
    undo = Invertd("probabilities", transform, orig_keys="image", nearest_interp=False)
    result = undo({"image": preprocessed["image"], "probabilities": MetaTensor(probabilities)})["probabilities"]
    return torch.as_tensor(result.as_tensor())


class RandPatchd(MapTransform, Randomizable):
    """Cut a patch with a margin around it at a random place, with zeros where this leaves the volume.

    With probability ``foreground_fraction`` the centre is a voxel of a label (each label equally likely), drawn from
    ``points`` (L, n, 3); else the place is uniform. Either way the patch without its margin lies inside the volume, or
    covers it. Reads only what it needs from a memory-mapped volume.

    Args:
        keys: entries to cut, (C, *S) each.
        size: of the patch without the margin, in voxels.
        margin: added on both sides of every axis, in voxels.
        foreground_fraction: see above.
        slice_axes: for patches of slices (C, H, W) with a ``size`` of two numbers, the axes that slices lie across, each
            equally likely; empty for patches of volumes.
    """

    def __init__(
        self,
        keys: Sequence[str],
        size: Sequence[int],
        margin: Sequence[int],
        foreground_fraction: float,
        slice_axes: Sequence[int] = (),
    ) -> None:
        MapTransform.__init__(self, keys)
        self.size, self.margin, self.foreground_fraction = tuple(size), tuple(margin), foreground_fraction
        self.slice_axes = tuple(slice_axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        shape = data[self.keys[0]].shape[1:]
        size, margin, axis = list(self.size), list(self.margin), None
        if self.slice_axes:
            axis = self.slice_axes[self.R.randint(len(self.slice_axes)) if len(self.slice_axes) > 1 else 0]
            size.insert(axis, 1)
            margin.insert(axis, 0)
        start = [s - m for s, m in zip(self._draw(shape, size, data["points"]), margin, strict=True)]
        whole = [n + 2 * m for n, m in zip(size, margin, strict=True)]
        cut = {key: _cut(data[key], start, whole) for key in self.keys}
        return {key: patch if axis is None else patch.squeeze(1 + axis) for key, patch in cut.items()}

    def _draw(
        self, shape: Sequence[int], size: Sequence[int], points: Sequence[NDArray[np.signedinteger]]
    ) -> list[int]:
        present = [p for p in points if len(p)]
        wants_label, which, along = self.R.random(3)
        anywhere = self.R.random(3)
        start = []
        centre = None
        if present and wants_label < self.foreground_fraction:
            chosen = present[int(which * len(present))]
            centre = chosen[int(along * len(chosen))]
        for axis, (n, p) in enumerate(zip(shape, size, strict=True)):
            low, high = min(0, n - p), max(0, n - p)  # the patch covers the volume, or lies inside it
            if centre is not None:
                start.append(int(np.clip(int(centre[axis]) - p // 2, low, high)))
            else:
                start.append(low + int(anywhere[axis] * (high - low + 1)))
        return start


class WholeImaged(MapTransform, Randomizable):
    """A whole image with a margin of zeros around it, and an empty label map of that size; nothing is drawn.

    Args:
        keys: ``image`` alone.
        margin: added on both sides of every axis that the network sees, in voxels.
        slice_axes: the axis that a 2D image lies across, which is taken away; empty in 3D.
    """

    def __init__(self, keys: Sequence[str], margin: Sequence[int], slice_axes: Sequence[int] = ()) -> None:
        MapTransform.__init__(self, keys)
        self.margin, self.slice_axes = tuple(margin), tuple(slice_axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        margin = list(self.margin)
        for axis in self.slice_axes:
            margin.insert(axis, 0)
        shape = data[self.keys[0]].shape[1:]
        start, whole = [-m for m in margin], [n + 2 * m for n, m in zip(shape, margin, strict=True)]
        cut = _cut(data[self.keys[0]], start, whole)
        for axis in self.slice_axes:
            cut = cut.squeeze(1 + axis)
        return {self.keys[0]: cut, "label": torch.zeros((1, *cut.shape[1:]), dtype=torch.uint8)}


def _cut(array: NDArray[Any], start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box at ``start`` with ``size`` of (C, *S), zeros outside: (C, *size)."""
    source, pads = [slice(None)], [(0, 0)]
    for n, s, p in zip(array.shape[1:], start, size, strict=True):
        begin, end = max(0, s), min(n, s + p)
        source.append(slice(begin, end))
        pads.append((begin - s, s + p - end))
    cut = np.asarray(array[tuple(source)])
    if any(a or b for a, b in pads):
        return torch.from_numpy(np.pad(cut, pads))
    return torch.from_numpy(cut.copy())


def patches(data: Data, train: Train, margin: Sequence[int]) -> RandPatchd:
    """The cutting of an experiment's patches, with a margin around them."""
    return RandPatchd(
        ["image", "label"], train.patch_size, margin, train.foreground_fraction, slice_axes(data, len(train.patch_size))
    )


def slice_axes(data: Data, spatial_dims: int) -> tuple[int, ...]:
    """The axes of the volume that 2D slices lie across; none in 3D. 2D images are volumes of one slice, across the last."""
    if spatial_dims == 3:
        return ()
    return (0, 1, 2) if data.slice_axis == "all" else (2 if data.slice_axis is None else data.slice_axis,)
