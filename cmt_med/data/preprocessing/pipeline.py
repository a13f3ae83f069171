"""MONAI dictionary transforms of whole volumes: deterministic, cached, and undone for results.

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
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmt_med.config.schema import Data
from cmt_med.data.preprocessing.normalisation import Normalised, foreground_of
from cmt_med.data.preprocessing.resampling import SlabResample
from cmt_med.data.volumes.gate import Loaded

POINTS_PER_LABEL = 4096
"""Voxels of each label remembered for sampling patches; enough to cover a lesion, small beside the volume."""

FOREGROUND_MARGIN = 4  # voxels kept around the foreground


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


class WithForeground(MapTransform):
    """Add the foreground mask to the image's channels, as the last one, 0 or 1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            joined = torch.cat([image.as_tensor(), data["foreground"].as_tensor().to(image.dtype)])
            result[key] = MetaTensor(joined).copy_meta_from(image)
        return result


class FitToSized(MapTransform):
    """Bring whole images to one size (D1, D2, D3): scaled by one factor, centred and padded with zeros.

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
    steps.append(
        Normalised(["image"], over=settings["normalise"], clip=settings["clip"], windows=settings.get("window"))
    )
    if settings.get("foreground_channel"):
        steps.append(WithForeground(["image"]))
    if settings.get("size"):
        steps.append(FitToSized(["image"], size=settings["size"], enlarge=settings["enlarge"]))
    return Compose(steps)


def seen_by(loaded: Loaded, settings: Mapping[str, Any]) -> Loaded:
    """A case as these settings look at it: without its mask, where nothing depends on that."""
    used = settings["crop_foreground"] or settings["normalise"] == "foreground" or settings.get("foreground_channel")
    return loaded if used else replace(loaded, mask=None)


def preprocessing_settings(data: Data) -> dict[str, Any]:
    """The settings that :func:`preprocessing` depends on, ``window`` of each channel if one has any, and
    ``missing`` if a case may lack a channel.

    They are part of the model and of the cache's key.
    """
    return {
        "spacing": data.spacing,
        "crop_foreground": data.crop_foreground,
        "normalise": data.normalise,
        "clip": data.clip,
        "foreground_channel": data.foreground_channel,
        **({"window": [data.window.get(name) for name in data.channels]} if data.window else {}),
        **({"missing": data.missing} if data.missing != "drop" else {}),
    }


def takes_zeros(settings: Mapping[str, Any]) -> bool:
    """Tell whether, by these settings, zeros stand for channels that a case lacks."""
    return settings.get("missing") == "zeros"


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


def invert_numbers(numbers: Tensor, preprocessed: Mapping[str, Any], transform: Compose) -> Tensor:
    """Bring numbers (*S') on the preprocessed grid back to the input's own (*S), each from the nearest voxel."""
    undo = Invertd("numbers", transform, orig_keys="image", nearest_interp=True)
    kept = MetaTensor(numbers[None].double())  # whole numbers stay so
    result = undo({"image": preprocessed["image"], "numbers": kept})["numbers"]
    return torch.as_tensor(result.as_tensor())[0].round().to(numbers.dtype)
