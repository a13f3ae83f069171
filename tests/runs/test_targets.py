"""Choosing what is learned, and keeping copies of an image on one side of every split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import load_case
from cmt_med.init import init
from cmt_med.launch.command import run_command
from cmt_med.runs.recognition import data_set
from tests.data.made import IMAGE, LABEL, nifti
from tests.processes import command


def both(folder: Path, count: int = 4) -> Path:
    """A table with label maps and classes."""
    lines = ["id,image,label,class"]
    for i in range(count):
        nifti(folder / f"i{i}.nii.gz", IMAGE + i)
        nifti(folder / f"l{i}.nii.gz", LABEL)
        lines.append(f"c{i},i{i}.nii.gz,l{i}.nii.gz,{'ab'[i % 2]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def test_two_readings_are_a_question(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table, output = both(tmp_path), tmp_path / "out"
    output.mkdir()
    assert run_command(init, [str(table), "--output", str(output)]) == 65
    assert "--task segmentation or --task classification" in capfd.readouterr().err
    assert not list(output.iterdir())
    for task in ("segmentation", "classification"):
        assert run_command(init, [str(table), "--output", str(output), "--task", task, "--force"]) == 0
        found = load_manifest(output / "t.json")  # a folder gets a config with the name of the data set
        assert bool(found.classes) == (task == "classification")
        assert all((case.label is None) == (task == "classification") for case in found.cases)
    assert data_set(table, task="segmentation").labels == {"background": 0, "foreground": 1}
    (tmp_path / "t.csv").write_text("id,image,label\nc0,i0.nii.gz,l0.nii.gz\n")
    with pytest.raises(DataError, match="nothing for classification") as raised:
        data_set(table, task="classification")
    assert raised.value.code == "E_TASK"


def test_equal_images_count_as_one_patient(tmp_path: Path) -> None:
    for i in range(4):
        nifti(tmp_path / f"set/images/c{i}.nii.gz", IMAGE + min(i, 2))  # the last two are the same
        nifti(tmp_path / f"set/labels/c{i}.nii.gz", LABEL)
    assert run_command(init, [str(tmp_path / "set"), "--output", str(tmp_path / "my.yaml")]) == 0
    groups = {case.name: case.group for case in load_manifest(tmp_path / "my.json").cases}
    assert groups == {"c0": "c0", "c1": "c1", "c2": "c2", "c3": "c2"}


def test_equal_images_of_two_classes_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = ["id,image,class"]
    for i in range(4):
        nifti(tmp_path / f"i{i}.nii.gz", IMAGE + i % 2)
        lines.append(f"c{i},i{i}.nii.gz,{'ab'[i // 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    assert run_command(init, [str(tmp_path / "t.csv"), "--output", str(tmp_path / "my.yaml")]) == 0
    said = capfd.readouterr().out
    assert "equal images: c0, c2; their classes differ: a, b; they count as one patient" in said


def test_a_killed_look_goes_on(tmp_path: Path) -> None:
    """What was seen is remembered: of the second call, only what the first had not seen and written is looked at."""
    nifti(tmp_path / "set/images/c.nii")
    content = (tmp_path / "set/images/c.nii").read_bytes()
    for i in range(8000):
        (tmp_path / f"set/images/c{i}.nii").write_bytes(content)
    place = {"CMT_CACHE": str(tmp_path / "cache")}
    with command("inspect", tmp_path / "set", "--quick", log=tmp_path / "1.log", environment=place) as running:
        while running.is_running() and not list(tmp_path.glob("cache/looked_at/*.jsonl")):
            pass
        running.kill()
    (journal,) = tmp_path.glob("cache/looked_at/*.jsonl")
    before = [json.loads(line)["key"] for line in journal.read_bytes().split(b"\n")[:-1]]
    assert 250 <= len(before) < 8001
    with command(
        "inspect", tmp_path / "set", "--quick", "--json", log=tmp_path / "2.log", environment=place
    ) as running:
        assert running.wait() == 0, running.said()
    after = [json.loads(line)["key"] for line in journal.read_bytes().split(b"\n")[:-1]]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 8001
    assert json.loads(running.said())["files"] == 8001


def test_what_changed_is_looked_at_again(tmp_path: Path) -> None:
    file = nifti(tmp_path / "set/images/c.nii")
    for i in range(1001):
        nifti(tmp_path / f"set/images/c{i}.nii")
    place = {"CMT_CACHE": str(tmp_path / "cache")}
    for change, code in ((lambda: None, 0), (lambda: file.write_bytes(file.read_bytes()[:200]), 2), (file.unlink, 0)):
        change()
        with command("inspect", tmp_path / "set", "--quick", log=tmp_path / "log", environment=place) as running:
            assert running.wait() == code, running.said()


def test_headers_that_disagree(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cmt_med.inspect import inspect

    nifti(tmp_path / "set/images/c.nii.gz")
    nifti(tmp_path / "set/labels/c.nii.gz", np.zeros((5, 6, 8), np.uint8))
    assert run_command(inspect, [str(tmp_path / "set"), "--quick"]) == 65
    assert "E_GRID" in capfd.readouterr().out
    assert run_command(inspect, [str(tmp_path / "set"), "--quick", "--fix", "--output", str(tmp_path / "o")]) == 64


def test_numbered_objects_as_one_label(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(120, dtype=np.uint8).reshape(12, 10)
    numbers = np.zeros((12, 10), np.uint16)
    numbers[2:5, 2:5], numbers[7:9, 3:8] = 1, 700
    for i in range(3):
        for folder, array in (("images", pixels + np.uint8(i)), ("instances", numbers)):
            (tmp_path / f"set/{folder}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / f"set/{folder}/{i}.png")
    assert all(case.instances for case in data_set(tmp_path / "set").cases)
    output = tmp_path / "my.yaml"
    assert run_command(init, [str(tmp_path / "set"), "--output", str(output), "--task", "segmentation"]) == 0
    manifest = load_manifest(tmp_path / "my.json")
    assert manifest.labels == {"background": 0, "object": 1}
    label = load_case(manifest.cases[0], manifest.channels, [0, 1]).label
    assert label is not None
    np.testing.assert_array_equal(label[..., 0].T, numbers > 0)


def test_masks_of_several_structures_are_looked_at_again(tmp_path: Path) -> None:
    """Their path is a pattern, and no file: what the journal keeps is that of its files."""
    from cmt_med.data.volumes.journal import Journal

    for name in ("a", "b"):
        nifti(tmp_path / f"m/{name}.nii", LABEL)
    pattern, looked = tmp_path / "m/*.nii", []

    def look() -> dict[str, int]:
        looked.append(len(looked))
        return {"count": len(looked)}

    def asked() -> int:
        journal = Journal(tmp_path / "j.jsonl")
        count = journal.remembered([pattern], "x", look)["count"]
        journal.close()
        return count

    assert [asked(), asked()] == [1, 1]
    nifti(tmp_path / "m/c.nii", LABEL)
    assert [asked(), asked()] == [2, 2]
    for file in tmp_path.glob("m/*"):
        file.unlink()
    assert [asked(), asked()] == [3, 4]  # nothing is kept of nothing
