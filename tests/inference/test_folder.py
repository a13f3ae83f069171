"""A folder with bad cases: the others are those of a clean run, byte for byte; killed, it goes on; no case takes everything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.helpers import save, tiny_dataset
from tests.inference.models import save_random_model
from tests.processes import command


def _pointer(a: Path) -> None:
    a.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _cut(a: Path) -> None:
    a.write_bytes(a.read_bytes()[:-200])


def _flipped(a: Path) -> None:
    content = bytearray(a.read_bytes())
    content[len(content) // 2] ^= 4
    a.write_bytes(content)


def _not_a_number(a: Path) -> None:
    array = np.asarray(nib.load(a).dataobj).copy()
    array[3, 3, 3] = np.nan
    save(a, array)


def _other_shape(a: Path) -> None:
    save(a, np.asarray(nib.load(a).dataobj)[:-1])


def _shifted(a: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 10
    save(a, np.asarray(nib.load(a).dataobj), affine)


def _empty(a: Path) -> None:
    a.write_bytes(b"")


def _four_axes(a: Path) -> None:
    save(a, np.zeros((*nib.load(a).shape, 3), np.float32))


def _pipe(a: Path) -> None:
    a.unlink()
    os.mkfifo(a)


def _gone(a: Path) -> None:
    a.unlink()


FAULTS: dict[str, Callable[[Path], None]] = {
    "E_FORMAT": _pointer, "E_TRUNCATED": _cut, "E_GZIP": _flipped, "E_NONFINITE": _not_a_number, "E_GRID": _other_shape,
    "E_GRID ": _shifted, "E_FORMAT ": _empty, "E_NDIM": _four_axes, "E_IO": _pipe, "E_IO ": _gone,
}  # fmt: skip


def _results(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("case*")}


def test_bad_cases_among_good_ones(tmp_path: Path, soak: bool) -> None:
    count = 100 if soak else 25
    model, good, mixed = save_random_model(tmp_path / "model"), tmp_path / "good", tmp_path / "mixed"
    for folder in (good, mixed):
        manifest = tiny_dataset(folder, count, (11, 9, 10))
        content = json.loads(manifest.read_text())
        bad = {f"case{i}": code for i, code in zip(range(2, count, 5), list(FAULTS) * 9, strict=False)}
        assert len(bad) == count // 5
        if folder == good:
            content["training"] = [case for case in content["training"] if case["id"] not in bad]
        else:
            for name, code in bad.items():
                FAULTS[code](folder / f"{name}_a.nii.gz")
        manifest.write_text(json.dumps(content))

    def infer(folder: Path, output: Path) -> list[object]:
        return ["--model", model, "--input", folder / "dataset.json", "--output", output]

    with command("infer", *infer(good, tmp_path / "clean"), log=tmp_path / "clean.log") as running:
        assert running.wait() == 0, running.said()
    out = tmp_path / "out"
    with command("infer", *infer(mixed, out), log=tmp_path / "killed.log") as running:
        running.wait_for(lambda: len(list(out.glob("case*.json"))) > count // 3)
    killed = {p.name: p.stat().st_mtime_ns for p in out.glob("case*.json")}
    assert count // 3 < len(killed) < count - len(bad)
    assert not json.loads((out / "run.json").read_text())["complete"]
    with command("infer", *infer(mixed, out), log=tmp_path / "again.log") as running:
        assert running.wait() == 2, running.said()
        said = running.said()
    assert said.count("kept from an earlier run") == len(killed)
    assert all((out / name).stat().st_mtime_ns == time for name, time in killed.items())
    assert _results(out) == _results(tmp_path / "clean")
    assert len(_results(out)) == 2 * (count - len(bad))
    failures = json.loads((out / "failures.json").read_text())
    assert {f["case"]: f["code"] for f in failures} == {name: code.strip() for name, code in bad.items()}
    assert all(f["what"] and f["why"] and f["fix"] for f in failures)
    assert "Traceback" not in said
    assert json.loads((out / "run.json").read_text())["complete"]
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("option", "value", "code"), [("--max-memory", "0.4", "E_MEMORY"), ("--max-minutes", "0.015", "E_TIMEOUT")]
)
def test_a_case_that_takes_too_much(tmp_path: Path, option: str, value: str, code: str) -> None:
    manifest = tiny_dataset(tmp_path, 3, (11, 9, 10))
    for channel in "ab":
        save(
            tmp_path / f"case1_{channel}.nii.gz",
            np.random.default_rng(0).normal(size=(260, 256, 250)).astype(np.float32),
        )
    arguments = ["--model", save_random_model(tmp_path / "model"), "--input", manifest, "--output", tmp_path / "out"]
    with command("infer", *arguments, option, value, log=tmp_path / "log") as running:
        assert running.wait() == 2, running.said()
        assert "Traceback" not in running.said()
    failures = json.loads((tmp_path / "out/failures.json").read_text())
    assert [(f["case"], f["code"]) for f in failures] == [("case1", code)]
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"case0.nii.gz", "case2.nii.gz"}
