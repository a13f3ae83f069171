"""What is found to be viewed: label values mean in the references what the case list says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.reports.sources import Source, find_source
from cmt_med.reports.volumes import load_shown
from tests.helpers import save

LABELS = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
TARGETS = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Predictions ``p`` that number ET 3, and ``list.json`` of the same voxels with ET 4."""
    reference = np.zeros((16, 16, 16), np.uint8)
    reference[2:14, 2:14, 2:14], reference[4:10, 4:10, 4:10], reference[5:9, 5:9, 5:9] = 2, 1, 4
    save(tmp_path / "one_t1.nii.gz", reference.astype(np.float32))
    save(tmp_path / "one_seg.nii.gz", reference)
    save(tmp_path / "p/one.nii.gz", np.where(reference == 4, 3, reference).astype(np.uint8))
    (tmp_path / "p/one.json").write_text(json.dumps({"input_sha256": {"t1": ""}}))
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": LABELS, "targets": TARGETS}))
    entry = {"id": "one", "image": {"t1": "one_t1.nii.gz"}, "label": "one_seg.nii.gz"}
    content = {"labels": {"0": "background", "1": "NCR", "2": "ED", "4": "ET"}, "training": [entry]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


def wrong_voxels(source: Source) -> int:
    shown = load_shown(source.listing.cases[0], source.listing.targets, source.listing.reference_targets)
    assert shown.wrong is not None
    return int(shown.wrong.sum())


def test_an_inference_folder_is_shown_in_the_numbers_of_the_case_list(folder: Path) -> None:
    arguments = ["--predictions", str(folder / "p"), "--references", str(folder / "list.json")]
    assert run_command(evaluate, [*arguments, "--output", str(folder / "o")]) == 0
    evaluated, inferred = find_source(folder / "o"), find_source(folder / "p", folder / "list.json")
    assert inferred.listing.reference_targets == {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    for source in (evaluated, inferred):
        assert wrong_voxels(source) == 0
        assert source.listing.targets == TARGETS
    (folder / "list.json").rename(folder / "dataset.json")
    assert wrong_voxels(find_source(folder / "p", folder)) == 0


def test_what_the_case_list_does_not_tell_apart_is_not_shown(folder: Path) -> None:
    run = {"labels": LABELS | {"RC": 9}, "targets": TARGETS | {"RC": [9]}}
    (folder / "p/run.json").write_text(json.dumps(run))
    source = find_source(folder / "p", folder / "list.json")
    assert list(source.listing.targets) == list(source.listing.reference_targets) == ["WT", "TC", "ET"]
    assert list(find_source(folder / "p").listing.targets) == ["WT", "TC", "ET", "RC"]


def test_labels_that_cannot_be_matched_are_an_error(folder: Path) -> None:
    (folder / "p/run.json").write_text(json.dumps({"targets": TARGETS}))
    with pytest.raises(DataError, match="E_RUN"):
        find_source(folder / "p", folder / "list.json")
    content = json.loads((folder / "list.json").read_text())
    del content["training"][0]["label"]
    (folder / "list.json").write_text(json.dumps(content))
    assert find_source(folder / "p", folder / "list.json").listing.targets == TARGETS  # no references, nothing to match
