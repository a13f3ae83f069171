"""How a report says that it came about."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cmt_med
from cmt_med.base.files import sha256
from cmt_med.reports.provenance import describe_evaluation, shared_and_own, sum_of_files


def test_an_evaluation_names_command_version_and_references(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text("{}")
    options = {"predictions": Path("a b"), "labels": ["x=1", "y=2"], "lesion_wise": None, "empty": "nan"}
    found = describe_evaluation(options, listed, {})
    assert found["command"] == "cmt-med evaluate --predictions 'a b' --labels x=1 --labels y=2 --empty nan"
    assert found["cmt_med"] == cmt_med.__version__
    assert found["references"] == str(listed)
    assert found["references_sha256"] == hashlib.sha256(b"{}").hexdigest()


def test_references_in_a_folder_have_one_sum(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("b", "a", "gone")}
    for name in ("a", "b"):
        files[name].write_bytes(name.encode())
    found = describe_evaluation({}, tmp_path, files)["references_sha256"]
    lines = f"{sha256(files['a'])}  a\n{sha256(files['b'])}  b\nabsent  gone\n"
    assert found == hashlib.sha256(lines.encode()).hexdigest()
    files["a"].write_bytes(b"changed")
    assert sum_of_files(files) != found


def test_folds_share_what_they_share() -> None:
    folds = {
        "fold 0": {"Card": {"network": "n", "sum": 1}, "Environment": {"seed": 3}},
        "fold 1": {"Card": {"network": "n", "sum": 2}, "Environment": {"seed": 3, "git": "x"}},
    }
    assert shared_and_own(folds) == {
        "Card": {"network": "n"},
        "Card, fold 0": {"sum": 1},
        "Card, fold 1": {"sum": 2},
        "Environment": {"seed": 3},
        "Environment, fold 1": {"git": "x"},
    }
