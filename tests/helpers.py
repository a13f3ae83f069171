"""Small data sets made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

CONFIG = """
name: tiny
output: {output}
seed: 3
data:
  manifest: {manifest}
  channels: [a, b]
  split: {{by: last, count: 2}}
network:
  options: {{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [lightweight, window],
    kv_strides: [2, 1], full_channels: 4, drop_path: 0.0}}
optimizer: {{lr: 5e-3}}
train:
  epochs: 2
  batch_size: 2
  patch_size: [16, 16, 16]
  validate_every: 1
"""


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def tiny_dataset(
    folder: Path, cases: int = 6, size: tuple[int, int, int] = (18, 15, 20), labels: tuple[str, ...] = ("ball",)
) -> Path:
    """A ball to find in two noisy channels, as separate files; returns the case list, whose labels are 1, 2, ..."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    entries = []
    for i in range(cases):
        centre = np.array(size) / 2 + rng.uniform(-2, 2, 3)
        label = (np.linalg.norm(grid - centre, axis=-1) < 5).astype(np.uint8)
        image = {}
        for channel, contrast in (("a", 2.0), ("b", -1.0)):
            values = (label * contrast + rng.normal(0, 0.5, size)).astype(np.float32)
            save(folder / f"case{i}_{channel}.nii.gz", values)
            image[channel] = f"case{i}_{channel}.nii.gz"
        save(folder / f"case{i}_seg.nii.gz", label)
        entries.append({"id": f"case{i}", "image": image, "label": f"case{i}_seg.nii.gz"})
    manifest = folder / "dataset.json"
    manifest.write_text(
        json.dumps(
            {
                "name": "balls",
                "modality": {"0": "a", "1": "b"},
                "labels": {str(i): name for i, name in enumerate(("background", *labels))},
                "training": entries,
            }
        )
    )
    return manifest


def known_errors(folder: Path) -> tuple[Path, list[tuple[int, int, int]]]:
    """Two cases of nine labels whose largest errors are cubes; an inference folder ``p`` and the voxels in their middles.

    The first case has the larger error. Voxels are of 1 mm, so that positions in mm are voxels. Returns the case list, too.
    """
    reference = np.zeros((30, 26, 28), np.uint8)
    for value in range(1, 10):
        reference[4:12, 4:12, 2 * value : 2 * value + 2] = value
    rng = np.random.default_rng(0)
    entries, middles = [], [(21, 18, 9), (8, 19, 20)]
    for number, (edge, (x, y, z)) in enumerate(zip((3, 1), middles, strict=True)):
        name = f"case{number}"
        predicted = reference.copy()
        predicted[x - edge : x + edge + 1, y - edge : y + edge + 1, z - edge : z + edge + 1] = 1
        predicted[5, 5, 4] = 0  # a smaller error
        save(folder / f"p/{name}.nii.gz", predicted)
        save(folder / f"{name}_seg.nii.gz", reference)
        save(folder / f"{name}_a.nii.gz", rng.normal(100, 20, reference.shape).astype(np.float32))
        save(folder / f"{name}_b.nii.gz", (reference + rng.normal(0, 1, reference.shape)).astype(np.float32))
        images = {channel: f"{name}_{channel}.nii.gz" for channel in "ab"}
        entries.append({"id": name, "image": images, "label": f"{name}_seg.nii.gz"})
    names = {f"part {value}": value for value in range(1, 10)}
    run = {
        "model": "none",
        "labels": {"background": 0} | names,
        "targets": {name: [value] for name, value in names.items()},
    }
    (folder / "p/run.json").write_text(json.dumps(run | {"cases": ["case0", "case1"]}))
    labels = {"0": "background"} | {str(value): name for name, value in names.items()}
    manifest = folder / "list.json"
    manifest.write_text(json.dumps({"modality": {"0": "a", "1": "b"}, "labels": labels, "training": entries}))
    return manifest, middles


def tiny_config(folder: Path, manifest: Path, **replaced: str) -> Path:
    """A config for :func:`tiny_dataset`; ``replaced`` swaps text."""
    text = CONFIG.format(output=folder / "run", manifest=manifest)
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path
