"""Folders that are linked into themselves: every file is found, and found once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.sources.walk import walk
from tests.helpers import tiny_dataset
from tests.inference.models import LABELS, save_random_model
from tests.processes import command


def _looped(folder: Path) -> Path:
    """Two cases, each in a folder of its own, and links that lead back to the top and from one case to the other."""
    tiny_dataset(folder / "made", cases=2, labels=LABELS)
    data = folder / "data"
    for name in ("case0", "case1"):
        (data / name).mkdir(parents=True)
        for file in (folder / "made").glob(f"{name}_*"):
            file.rename(data / name / file.name)
    (data / "case0/again").symlink_to(data, target_is_directory=True)
    (data / "case1/aside").symlink_to(data / "case0", target_is_directory=True)
    (data / "a_first_link").symlink_to(data / "case1", target_is_directory=True)
    return data


@pytest.mark.fault(18)
def test_each_file_is_found_once(tmp_path: Path) -> None:
    data = _looped(tmp_path)
    problems: list[DataError] = []
    found = list(walk(data, 8, problems, is_leaf=lambda folder: False))
    assert sorted(found) == sorted(data.glob("case?/*.nii.gz"))  # under the folders' own names, not those of links
    assert not problems


@pytest.mark.fault(18)
def test_a_folder_behind_a_link_is_looked_into(tmp_path: Path) -> None:
    made = tiny_dataset(tmp_path / "elsewhere", cases=1).parent
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to(made, target_is_directory=True)
    found = list(walk(tmp_path / "data", 8, [], is_leaf=lambda folder: False))
    assert {path.name for path in found} == {path.name for path in made.iterdir()}


@pytest.mark.fault(18)
def test_infer_copes_with_a_loop(tmp_path: Path) -> None:
    arguments = ["--model", save_random_model(tmp_path / "model"), "--input", _looped(tmp_path)]
    with command("infer", *arguments, "--output", tmp_path / "out", log=tmp_path / "log") as running:
        assert running.wait() == 0, running.said()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case0.nii.gz", "case1.nii.gz"]


@pytest.mark.fault(18)
def test_init_copes_with_a_loop(tmp_path: Path) -> None:
    data = _looped(tmp_path)
    for file in sorted(data.glob("case?/*_[ab].nii.gz")):
        file.rename(file.with_name(file.name.replace("_a.", "_t1.").replace("_b.", "_t2.")))
    arguments = [data, "--output", tmp_path / "my/looped.yaml", "--convention", "brats2021"]
    with command("init", *arguments, log=tmp_path / "log") as running:
        running.wait_for((tmp_path / "my/looped.yaml").exists)  # both files are there, and the plan follows
    listed = json.loads((tmp_path / "my/looped.json").read_text())
    assert [entry["id"] for entry in listed["training"]] == ["case0", "case1"]
