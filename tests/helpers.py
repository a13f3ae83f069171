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


def tiny_dataset(folder: Path, cases: int = 6, size: tuple[int, int, int] = (18, 15, 20)) -> Path:
    """A ball to find in two noisy channels, as separate files; returns the case list."""
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
                "labels": {"0": "background", "1": "ball"},
                "training": entries,
            }
        )
    )
    return manifest


def tiny_config(folder: Path, manifest: Path, **replaced: str) -> Path:
    """A config for :func:`tiny_dataset`; ``replaced`` swaps text."""
    text = CONFIG.format(output=folder / "run", manifest=manifest)
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path
