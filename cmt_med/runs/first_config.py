"""The config that init writes: patch and voxel size from a first look at the data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cmt_med.base.text import counted
from cmt_med.data.conventions.names import is_brain_tumour
from cmt_med.data.conventions.units import scale_of
from cmt_med.data.manifest import Manifest
from cmt_med.data.preprocessing.survey import Survey
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.volumes.box_files import listed_boxes

PATCHES = (128, 96, 64, 48, 32, 16)
PATCHES_2D = (256, 192, 128, 96, 64, 32)
SMALLEST_OBJECT = 16
"""Edge in pixels that a network sees of the usual object of the smallest class: four positions of its maps."""
LONGEST_BOXED = 512
"""Pixels of a patch in which boxes are learned in 2D."""
WHOLE_2D, WHOLE_3D = 128, 96
"""Longest edge of whole images: what a CPU trains on in minutes; a GPU can have more."""


def first_config(
    output: Path, listed: Path, manifest: Manifest, seen: Survey, found: Dataset, task: str | None = None
) -> str:
    """Write out the commented config of a data set.

    Args:
        output: file of the config, which gives the experiment its name.
        listed: file of the case list.
        manifest: the data set.
        seen: what a first look at its volumes has found.
        found: how it lies on disk.
        task: what is to be learned; None for what the targets say.
    """
    environment = Environment(  # noqa: S701 - YAML, where HTML's escapes would be wrong; names are quoted as JSON
        loader=PackageLoader("cmt_med", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    brain = bool(manifest.convention) or is_brain_tumour(manifest.labels, manifest.channels)
    patients = len({case.group for case in manifest.cases})
    lacking = sum(len(case.images) < len(manifest.channels) for case in manifest.cases)
    boxes = task == "detection" or any(case.boxes for case in manifest.cases)
    flat = boxes and found.pictures
    spacing = _spacing_of_boxes(manifest) if flat else _spacing(seen)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", output.stem).lstrip("._-")[:100] or "experiment"
    return environment.get_template("experiment.yaml.j2").render(
        name=name,
        output=output,
        manifest=_quoted(listed.name),
        channels=[_quoted(name) for name in manifest.channels],
        data_set=" ".join(found.title.split()),  # on one line: it stands in a comment
        convention=manifest.convention,
        brats=manifest.regions is not None and brain,
        listed=manifest.regions is not None and not brain,
        folds=_folds(manifest),
        dims=2 if found.pictures else 3,
        classes=list(manifest.classes),
        boxes=boxes,
        instances=any(case.instances for case in manifest.cases) and not boxes,
        patch=_whole(seen, found)
        if manifest.classes
        else _patch_of_boxes(seen, spacing)
        if flat
        else _patch(seen, 2 if found.pictures else 3),
        spacing=spacing,
        window=_mapping(window_of(manifest, seen)),
        cases=len(manifest.cases),
        zeros=counted(lacking, "case") if lacking else "",
        incomplete=counted(len(found.incomplete), "case") if found.incomplete else "",
        patients=patients,
    )


def window_of(manifest: Manifest, seen: Survey) -> dict[str, list[float]]:
    """Channel -> the window of values that mean the same in every case (CT, ADC, SUV).

    Between the percentiles of the labelled voxels, as cases have them on average; where no voxel is labelled, all that is usual.
    """
    found = {}
    for name in manifest.channels:
        scale = scale_of(name, seen.ranges.get(name, []))
        if scale is not None:
            low, high = np.mean(seen.inside[name], axis=0) if seen.inside.get(name) else scale.wide
            found[name] = scale.window(float(low), float(high))
    return found


def _spacing_of_boxes(manifest: Manifest) -> list[float] | None:
    """Pixels to the edge of one that the network sees: the usual object of the smallest class keeps 16 of these; None for one."""
    edges: dict[str, list[float]] = {}
    for case in manifest.cases:
        if case.boxes is not None:
            for box in listed_boxes(case.boxes, next(iter(case.images.values()))[0]):
                edges.setdefault(box.class_name, []).append(float(np.mean(np.subtract(box.high, box.low))))
    smallest = min((float(np.median(sizes)) for sizes in edges.values()), default=0.0)
    factor = float(min(8, max(1, int(smallest / SMALLEST_OBJECT))))
    return [factor, factor, 1.0] if factor > 1 else None


def _patch_of_boxes(seen: Survey, spacing: list[float] | None) -> list[int]:
    """Whole 2D images where they are not too large: windows cut objects."""
    middle = np.median(np.array(seen.shapes), axis=0)[:2] / np.array((spacing or [1.0, 1.0])[:2])
    return [min(LONGEST_BOXED, max(32, -(-int(n) // 16) * 16)) for n in middle]


def _mapping(windows: Mapping[str, Sequence[float]]) -> str:
    return f"{{{', '.join(f'{_quoted(name)}: {list(pair)}' for name, pair in windows.items())}}}" if windows else ""


def _folds(manifest: Manifest) -> int:
    """As many folds as the case list has, else five, or one for each patient."""
    listed = [case.fold for case in manifest.cases if case.fold is not None]
    if len(listed) == len(manifest.cases):
        return max(2, max(listed) + 1)
    return min(5, max(2, len({case.group for case in manifest.cases})))


def _patch(seen: Survey, dims: int) -> list[int]:
    """The largest patch up to 128³ or 256² that the middle of the cases fills; the plan scales it to the device."""
    middle, sizes = np.median(np.array(seen.shapes), axis=0)[:dims], PATCHES if dims == 3 else PATCHES_2D
    return [next((p for p in sizes if p <= n * 1.15), sizes[-1]) for n in middle]


def _whole(seen: Survey, found: Dataset) -> list[int]:
    """The size that whole images are brought to: of 2D images a square, of volumes what the largest one fills."""
    shapes = np.array(seen.shapes)
    if found.pictures:
        side = int(np.median(shapes.max(axis=1)))
        return [min(WHOLE_2D, max(32, side // 32 * 32))] * 2
    return [min(WHOLE_3D, -(-int(n) // 16) * 16) for n in shapes.max(axis=0)]


def _spacing(seen: Survey) -> list[float] | None:
    """The usual voxel size in mm, where cases differ; None where they do not."""
    sizes = np.array(seen.spacings)
    if np.allclose(sizes, sizes[0], rtol=0.02):
        return None
    return [round(float(v), 3) for v in np.median(sizes, axis=0)]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
