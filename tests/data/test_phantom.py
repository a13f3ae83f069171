"""The phantom."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from cmt_med.data.manifest import load_manifest
from cmt_med.data.phantom import CHANNELS, make_head, make_phantom
from cmt_med.evaluation.baseline import ThresholdBaseline


def test_heads_repeat_by_seed_and_differ_between_seeds() -> None:
    a, b, c = make_head(1, 4.0), make_head(1, 4.0), make_head(2, 4.0)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.label, b.label)
    assert not np.array_equal(a.label, c.label)
    assert a.image.dtype == np.int16
    assert set(np.unique(a.label)) == {0, 1, 2, 4}


def test_full_size_is_that_of_brats() -> None:
    assert tuple(int(v / 1.0) for v in (240.0, 240.0, 155.0)) == make_head(0, 1.0).label.shape


def test_no_threshold_solves_it() -> None:
    baseline = ThresholdBaseline(CHANNELS, {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]})
    for seed in range(8):
        head = make_head(seed, 3.0)
        baseline.add(head.image.astype(np.float32), head.label, head.image.any(0))
    for region, best in baseline.best().items():
        assert best["dice"] < 0.6, region


def test_folder_and_case_list(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "brats_phantom.json"
    make_phantom(path, tmp_path / "heads", heads=2, spacing=8.0, processes=1)
    manifest = load_manifest(path)
    assert manifest.demo
    assert manifest.channels == ("t1", "t1ce", "t2", "flair")
    assert manifest.labels == {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
    for case in manifest.cases:
        image = nib.load(case.images["t1ce"][0])
        assert b"PHANTOM DATA" in bytes(image.header["descrip"])
        assert np.diag(image.affine).tolist() == [-8, -8, 8, 1]
        assert case.label is not None
        assert nib.load(case.label).shape == image.shape
