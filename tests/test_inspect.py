"""``cmt-med inspect`` from the command line: reports, exit codes, repairs, sums."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import load_case
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from tests.data.made import IMAGE, LABEL, nifti
from tests.data.volumes.test_dicom import series
from tests.helpers import tiny_dataset
from tests.processes import command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Exit code and the JSON on standard output (None if there is none)."""
    code = run_command(inspect, [*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, json.loads(captured.out) if captured.out else captured.err


def problems(content: dict[str, Any]) -> dict[str, list[str]]:
    return {case["name"]: [p["code"] for p in case["problems"]] for case in content["cases"]}


def test_a_list_that_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_dataset(tmp_path, cases=3)
    for given in (path, tmp_path):  # a folder with a dataset.json is that list
        code, content = run(capsys, given)
        assert code == 0
        assert content["kind"] == "case list"
        summary = content["summary"]
        assert (summary["cases"], summary["faulty"], summary["flagged"]) == (3, 0, 0)
        assert summary["channels"] == {"a": 3, "b": 3}
        assert summary["formats"] == {"NIfTI-1": 9}
        assert summary["labels"] == {
            "0": {"name": "background", "cases": 3},
            "1": {"name": "ball", "cases": 3},
        }
        assert summary["shapes"] == {"18×15×20": 9}
        assert summary["axes"] == {"RAS": 9}
        label = next(file for file in content["cases"][0]["files"] if file["role"] == "label")
        expected = np.asanyarray(nib.load(tmp_path / "case0_seg.nii.gz").dataobj)
        assert label["labels"] == {"0": int((expected == 0).sum()), "1": int((expected == 1).sum())}
        assert label["spacing"] == [1, 1, 1]
    assert run_command(inspect, [str(path)]) == 0
    text = capsys.readouterr().out
    assert "3 cases, 0 faulty" in text
    assert "1 ball (3)" in text


def test_every_fault_is_reported_and_none_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_dataset(tmp_path, cases=7)
    (tmp_path / "case0_a.nii.gz").write_bytes(b"<html>")
    (tmp_path / "case0_b.nii.gz").unlink()
    nifti(tmp_path / "case1_seg.nii.gz", LABEL)
    os.mkfifo(tmp_path / "fifo.nii.gz")
    (tmp_path / "case2_a.nii.gz").unlink()
    (tmp_path / "case2_a.nii.gz").symlink_to("fifo.nii.gz")
    image = nib.load(tmp_path / "case3_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(3), image.affine), tmp_path / "case3_seg.nii.gz")
    shutil.copy(tmp_path / "case4_a.nii.gz", tmp_path / "case4_b.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((18, 15, 20), np.uint8), np.eye(4)), tmp_path / "case5_a.nii.gz")
    code, content = run(capsys, path)
    assert code == 2
    assert problems(content) == {
        "case0": ["E_FORMAT", "E_IO"], "case1": ["E_GRID"], "case2": ["E_IO"], "case3": ["E_LABEL"], "case4": [], "case5": [],
        "case6": [],
    }  # fmt: skip
    assert content["cases"][4]["flags"] == ["a and b are the same image"]
    assert content["cases"][5]["flags"] == ["a is constant (all zero)"]
    for case in content["cases"]:
        for problem in case["problems"]:
            assert all(problem[part] for part in ("code", "what", "where", "why", "fix"))
            assert case["name"] in problem["where"]
    assert run_command(inspect, [str(path)]) == 2
    text = capsys.readouterr().out
    assert "FAULTY case3" in text
    assert "3 -> 1" in text


def test_folders_without_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in ("BraTS-1", "BraTS-2"):
        for channel, factor in (("t1n", 1), ("t1c", 2), ("t2w", 3), ("t2f", 4)):
            nifti(tmp_path / case / f"{case}-{channel}.nii.gz", IMAGE * factor)
        nifti(tmp_path / case / f"{case}-seg.nii.gz", LABEL)
    nifti(tmp_path / "BraTS-2" / "BraTS-2-t1c.nii.gz", IMAGE[:-1])
    nifti(tmp_path / "imagesTr" / "x_0000.nii.gz")
    nifti(tmp_path / "imagesTr" / "x_0001.nii.gz", IMAGE * 2)
    nifti(tmp_path / "labelsTr" / "x.nii.gz", LABEL * np.uint8(9))
    series(tmp_path / "dicom" / "head")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.nii.gz").write_text("hello")
    code, content = run(capsys, tmp_path)
    assert code == 2
    assert problems(content) == {"BraTS-1": [], "BraTS-2": ["E_GRID"], "head": [], "x": []}
    by_name = {case["name"]: [file["role"] for file in case["files"]] for case in content["cases"]}
    assert set(by_name["BraTS-1"]) == {"t1", "t1ce", "t2", "flair", "label"}
    assert by_name["x"] == ["0000", "0001", "label"]
    assert content["summary"]["labels"]["9"]["cases"] == 1
    assert content["summary"]["other_files"] == {"a text file": 1}
    assert content["summary"]["formats"]["DICOM"] == 1


@pytest.mark.parametrize("name", ["i.nii.gz", "i.nii"])
def test_single_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = nifti(tmp_path / name, np.stack([IMAGE, IMAGE * 2], -1))
    code, content = run(capsys, path)
    assert code == 0
    file = content["cases"][0]["files"][0]
    assert file["shape"] == [5, 6, 7, 2]
    assert "modality" in file["notes"][0]
    code, content = run(capsys, series(tmp_path / "d"))
    assert code == 0
    assert content["cases"][0]["files"][0]["format"] == "DICOM"


def test_nothing_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    code, content = run(capsys, tmp_path / "f.nii.gz")
    assert code == 65
    assert problems(content) == {"f": ["E_FORMAT"]}
    assert run(capsys, tmp_path)[0] == 65
    (tmp_path / "empty").mkdir()
    code, error = run(capsys, tmp_path / "empty")
    assert code == 65
    assert "no volume here" in error
    assert run(capsys, tmp_path / "missing")[0] == 65
    (tmp_path / "bad.json").write_text('{"training": [{"image": "../../x.nii"}]}')
    code, error = run(capsys, tmp_path / "bad.json")
    assert code == 65
    assert "E_MANIFEST" in error


def test_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nifti(tmp_path / "good.nii")
    for name in (b"caf\xe9.nii", b"new\nline.nii", b"<script>.nii", b"[red]x.nii"):
        shutil.copy(tmp_path / "good.nii", Path(os.fsdecode(bytes(tmp_path) + b"/" + name)))
    code, content = run(capsys, tmp_path)
    assert code == 2
    assert sorted(problems(content).values()) == [[], [], [], [], ["E_IO"]]
    assert run_command(inspect, [str(tmp_path)]) == 2
    capsys.readouterr()


def test_fix_writes_copies_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    nifti(data / "p1" / "p1_t1.nii.gz", at_80=("fff", 1, 1, 1), codes=(0, 1))
    nifti(data / "p1" / "p1_seg.nii.gz", (LABEL * 0.9995).astype(np.float32))
    nifti(data / "p2" / "p2_t1.nii.gz", codes=(0, 0))
    nifti(data / "p3" / "p3_t1.nii.gz")
    before = {path: path.read_bytes() for path in data.rglob("*.gz")}
    code, content = run(capsys, data, "--fix", "--output", out)
    assert code == 2  # p2 needs a guess
    assert content["faulty_after"] == ["p2"]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.gz")} == {"p1/p1_t1.nii.gz", "p1/p1_seg.nii.gz"}
    assert {Path(item["file"]).name: item["done"][0].split()[0] for item in content["repaired"]} == {
        "p1_t1.nii.gz": "pixdim", "p1_seg.nii.gz": "labels",
    }  # fmt: skip
    assert {path: path.read_bytes() for path in data.rglob("*.gz")} == before
    shutil.rmtree(data / "p2")
    assert run(capsys, data, "--fix", "--output", out)[0] == 0  # all that was wrong is repaired
    (tmp_path / "taken/p1").mkdir(parents=True)
    (tmp_path / "taken/p1/p1_t1.nii.gz").write_text("my own file")
    code, error = run(capsys, data, "--fix", "--output", tmp_path / "taken")
    assert code == 73
    assert "p1_t1.nii.gz" in error
    assert (tmp_path / "taken/p1/p1_t1.nii.gz").read_text() == "my own file"
    assert run(capsys, out)[0] == 0
    assert run_command(inspect, [str(data), "--fix", "--output", str(data)]) == 64  # would replace the originals
    assert "never touched" in capsys.readouterr().err
    assert run_command(inspect, [str(data), "--fix"]) == 64
    capsys.readouterr()
    assert {path: path.read_bytes() for path in data.rglob("*.gz")} == {
        p: c for p, c in before.items() if "p2" not in str(p)
    }


def test_fix_of_a_list_writes_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_dataset(tmp_path / "data", cases=2)
    image = nib.load(tmp_path / "data" / "case0_seg.nii.gz")
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.9999), image.affine),
        tmp_path / "data/case0_seg.nii.gz",
    )
    code, content = run(capsys, path, "--fix", "--output", tmp_path / "out")
    assert code == 0
    manifest = load_manifest(Path(content["list"]))
    assert manifest.cases[0].label == (tmp_path / "out" / "case0_seg.nii.gz").resolve()
    assert manifest.cases[1].label == (tmp_path / "data" / "case1_seg.nii.gz").resolve()
    for case in manifest.cases:
        load_case(case, ("a", "b"), (0, 1), need_label=True)


def test_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_dataset(tmp_path / "data", cases=2)
    before = path.read_bytes()
    code, content = run(capsys, path, "--hash", "--output", tmp_path / "out")
    assert code == 0
    assert path.read_bytes() == before
    target = Path(content["sums"])
    assert target == tmp_path / "out" / "dataset.sha256.json"
    manifest = load_manifest(target)
    assert [len(case.sha256) for case in manifest.cases] == [3, 3]
    for case in manifest.cases:
        load_case(case, ("a", "b"), (0, 1))
    assert run(capsys, target)[0] == 0
    shutil.copy(tmp_path / "data/case1_a.nii.gz", tmp_path / "data/case0_a.nii.gz")
    with pytest.raises(DataError, match="E_HASH"):
        load_case(manifest.cases[0], ("a", "b"))
    code, content = run(capsys, target)
    assert code == 2
    assert problems(content) == {"case0": ["E_HASH"], "case1": []}
    assert run_command(inspect, [str(tmp_path / "data/case0_a.nii.gz"), "--hash", "--output", str(tmp_path)]) == 64
    capsys.readouterr()


def test_as_a_command(tmp_path: Path) -> None:
    """Both ways to call it; the module's name is also one of the standard library, which must not get in the way."""
    path = nifti(tmp_path / "i.nii.gz")
    root = Path(__file__).parents[1]
    for words in (["cmt_med.inspect"], ["cmt_med", "inspect"]):
        called = [sys.executable, "-m", *words, str(path)]
        done = subprocess.run(called, capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 0, done.stderr
        assert "NIfTI-1 float32 5×6×7" in done.stdout


def test_real_folders(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cases, code in (("spleen_ct", 1, 0), ("pyradiomics", 6, 0), ("dicom_glioma", 1, 0), ("brats_crops", 2, 0),
                              ("odd_files", None, 2)):  # fmt: skip
        found, content = run(capsys, real_data / name)
        assert found == code
        assert cases in (None, len(content["cases"]))
    assert all(p["fix"] for case in content["cases"] for p in case["problems"])


@pytest.mark.fault(7)
def test_memory_is_the_voxels_of_one_file_as_stored(tmp_path: Path) -> None:
    """Bounded to them and 150 MB, a large volume is read; bounded to less, it is refused, and the others are read."""
    large = np.zeros((500, 500, 320), np.uint8)  # 80 MB, in a file of 0.1 MB
    large[1] = 7
    for name, array in (("b_large", large), ("a", large[:9, :9, :9]), ("c", large[:8, :8, :8])):
        nifti(tmp_path / f"data/{name}.nii.gz", array, np.eye(4))
    for memory, code in ((230_000_000, 0), (50_000_000, 2)):
        with command("inspect", tmp_path / "data", "--json", log=tmp_path / f"{code}", memory=memory) as running:
            assert running.wait() == code, running.said()
        cases = {case["name"]: case for case in json.loads(running.said())["cases"]}
        assert len(cases) == 3
        for name, case in cases.items():
            assert [problem["code"] for problem in case["problems"]] == (
                ["E_MEMORY"] if code and "large" in name else []
            )
    assert next(iter(cases["a"]["files"]))["range"] == [0, 7]


@pytest.mark.fault(9)
@pytest.mark.parametrize("ending", [".img", ".nii", ".nii.gz", ".hdr", ".mha"])
@pytest.mark.parametrize("renamed", [2, 5])
def test_slices_that_are_named_like_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, renamed: int
) -> None:
    """They are one series by their content, for inspect as for infer, and no volumes of their own."""
    folder = series(tmp_path / "scans" / "head")
    for path in sorted(folder.iterdir())[:renamed]:
        path.rename(path.with_name(f"{path.stem}{ending}"))
    nifti(tmp_path / "scans/other.nii.gz")
    for given in (folder, tmp_path / "scans"):
        code, content = run(capsys, given)
        assert code == 0
        assert problems(content) == {"head": []} | ({} if given == folder else {"other": []})
        assert content["cases"][0]["files"][0]["shape"] == [7, 6, 5]


def test_cases_that_can_be_only_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label maps alone, and images without one, are no data to train on, and are said to be none."""
    nifti(tmp_path / "a_ct.nii.gz")
    nifti(tmp_path / "a_seg.nii.gz", LABEL)
    nifti(tmp_path / "b_ct.nii.gz", IMAGE * 2)
    nifti(tmp_path / "c_seg.nii.gz", LABEL[:-1])
    assert run_command(inspect, [str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "look at:       1 of 3 cases without label map: can be only predicted" in printed
    assert "look at:       1 of 3 cases without image: a label map alone" in printed
    assert run_command(inspect, [str(tmp_path / "a_ct.nii.gz")]) == 0
    assert "1 of 1 case without label map" in capsys.readouterr().out
