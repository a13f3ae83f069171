"""Settings chosen on out-of-fold predictions whose best settings are known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Inference
from cmt_med.data.volumes.sums import volume_sum
from cmt_med.tasks.segmentation.choose import OutOfFoldCase, choose_settings, is_worth
from cmt_med.tasks.segmentation.labels import Regions
from cmt_med.tasks.segmentation.target import Target
from tests.helpers import save

BRATS = [Target("WT", (1, 2, 4), 2), Target("TC", (1, 4), 1), Target("ET", (4,), 4)]


def held_cases(folder: Path, *, spurious_et: bool) -> list[OutOfFoldCase]:
    """Six cases: WT right below 0.5 but above 0.3; ET real in half of them, in the others two wrong voxels."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(6):
        reference = np.zeros((12, 12, 12), dtype=np.uint8)
        reference[3:9, 3:9, 3:9] = 2
        reference[4:8, 4:8, 4:8] = 1
        real = i % 2 == 0
        if real:
            reference[5:8, 5:8, 5:8] = 4
        p = np.zeros((3, 12, 12, 12), dtype=np.float32)
        p[0] = np.where(reference > 0, 0.4, 0.1)
        p[1] = np.where(np.isin(reference, (1, 4)), 0.9, 0.1)
        p[2] = np.where(reference == 4, 0.9, 0.1)
        if spurious_et and not real:
            p[2, 6, 6, 6:8] = 0.9
        p += rng.uniform(-0.05, 0.05, p.shape).astype(np.float32)
        save(folder / f"{i}_prob.nii.gz", np.moveaxis(p, 0, -1))
        save(folder / f"{i}.nii.gz", reference)
        cases.append(OutOfFoldCase(str(i), i % 3, folder / f"{i}_prob.nii.gz", folder / f"{i}.nii.gz"))
    return cases


def test_a_threshold_that_helps_is_chosen(tmp_path: Path) -> None:
    held = held_cases(tmp_path, spurious_et=False)
    choice = choose_settings(held, BRATS, Inference(choose=["thresholds", "min_region_mm3"]))
    assert set(choice.settings.thresholds) == {"WT"}  # the others are right as they are
    assert choice.settings.thresholds["WT"] == 0.35  # of those that are as good, the nearest to 0.5
    assert choice.settings.min_region_mm3 == {}
    assert choice.after["WT"] == 1.0 > choice.before["WT"]
    assert choice.after["ET"] == choice.before["ET"] == 1.0


def test_a_minimum_that_helps_is_chosen(tmp_path: Path) -> None:
    held = held_cases(tmp_path, spurious_et=True)
    choice = choose_settings(held, BRATS, Inference(threshold=0.25, choose=["min_region_mm3"]))
    assert choice.settings.min_region_mm3 == {"ET": 25.0}  # two voxels of 1 mm³ are noise, 27 are not
    assert choice.settings.thresholds == {}
    assert choice.before["ET"] == 0.5
    assert choice.after["ET"] == 1.0


def test_cases_choose_for_what_they_annotate(tmp_path: Path) -> None:
    """Those without real ET say nothing of it: its minimum is not worth it, and its Dice is that of the others."""
    held = held_cases(tmp_path, spurious_et=True)
    settings = Inference(threshold=0.25, choose=["thresholds", "min_region_mm3"])
    partial = [case if int(case.name) % 2 == 0 else replace(case, annotated=(1, 2)) for case in held]
    choice = choose_settings(partial, BRATS, settings)
    assert "ET" not in choice.settings.min_region_mm3
    assert "ET" not in choice.settings.thresholds
    assert choice.before["ET"] == choice.after["ET"] == 1.0
    nobody = choose_settings([replace(case, annotated=(4,)) for case in held], BRATS, settings)
    assert set(nobody.before) == {"ET"}


def test_what_nobody_has_annotated_chooses_nothing(tmp_path: Path) -> None:
    """Two wrong voxels of ET in half of the cases, which the reference ignores."""
    held = held_cases(tmp_path, spurious_et=True)
    for case in held:
        reference = np.asarray(nib.load(case.reference).dataobj).copy()
        if int(case.name) % 2:
            reference[6, 6, 6:8] = 9
        save(case.reference, reference)
    choice = choose_settings(
        [replace(case, ignore=9) for case in held], BRATS, Inference(threshold=0.25, choose=["min_region_mm3"])
    )
    assert choice.settings.min_region_mm3 == {}
    assert choice.before["ET"] == 1.0


def test_the_estimate_is_of_settings_that_have_not_seen_the_case(tmp_path: Path) -> None:
    held = held_cases(tmp_path, spurious_et=True)
    # All wrong voxels are in fold 0: when it is left out, nothing speaks for a minimum, so its own gain must not be counted.
    sorted_out = [replace(case, fold=0 if int(case.name) % 2 else 1 + int(case.name) % 4 // 2) for case in held]
    choice = choose_settings(sorted_out, BRATS, Inference(threshold=0.25, choose=["min_region_mm3"]))
    assert choice.settings.min_region_mm3 == {"ET": 25.0}
    assert choice.after["ET"] == choice.before["ET"] == 0.5


def test_references_are_held_against_the_sums_of_their_list(tmp_path: Path) -> None:
    held = [
        replace(case, sums={case.reference: volume_sum(case.reference)})
        for case in held_cases(tmp_path, spurious_et=False)
    ]
    settings = Inference(choose=["thresholds"])
    assert set(choose_settings(held, BRATS, settings).settings.thresholds) == {"WT"}
    shutil.copy(held[0].reference, held[1].reference)
    with pytest.raises(DataError, match="E_HASH"):
        choose_settings(held, BRATS, settings)


def test_a_gain_within_its_error_is_noise() -> None:
    assert is_worth(np.array([0.02, 0.03, 0.01]))
    assert not is_worth(np.array([0.2, -0.15, 0.0, 0.01]))  # mean 0.015, standard error 0.07
    assert not is_worth(np.array([5e-4, 5e-4, 5e-4]))


def test_the_choice_is_what_to_labels_does(tmp_path: Path) -> None:
    """The mean Dice reported with the final settings on all cases, recomputed from label maps."""
    held = held_cases(tmp_path, spurious_et=True)
    choice = choose_settings(held, BRATS, Inference(choose=["thresholds", "min_region_mm3"]))
    scores = []
    for case in held:
        p = np.moveaxis(np.asarray(nib.load(case.probabilities).dataobj, dtype=np.float32), -1, 0)
        label, _ = Regions(BRATS).labels(p, choice.settings)
        reference = np.asarray(nib.load(case.reference).dataobj)
        a, b = label == 4, reference == 4
        scores.append(1.0 if a.sum() + b.sum() == 0 else 2 * (a & b).sum() / (a.sum() + b.sum()))
    assert choice.after["ET"] == np.mean(scores)
