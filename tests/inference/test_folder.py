"""A folder with bad cases: the others are those of a clean run, byte for byte; killed, it goes on; no case takes everything."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from cmt_med.base.errors import DataError, OutputError
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import load_labels
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.sums import volume_sum
from cmt_med.data.volumes.written import LONGEST_AXIS, write_volume
from cmt_med.inference.folder import AHEAD_BYTES, infer_cases
from cmt_med.inference.model import save_model
from cmt_med.inference.results import predictions_in
from tests.data.made import IMAGE, LABEL, nifti
from tests.data.volumes.test_dicom import series
from tests.helpers import save, tiny_dataset
from tests.inference.models import LABELS, random_ensemble, random_model, save_random_model
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
        manifest = tiny_dataset(folder, count, (11, 9, 10), LABELS)
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
        running.wait_for(lambda: (out / "run.json").exists() and len(list(out.glob("case*.json"))) > count // 3)
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
    manifest = tiny_dataset(tmp_path, 3, (11, 9, 10), LABELS)
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


def _case(folder: Path, name: str, **others: Path) -> Case:
    images = {c: (nifti(folder / f"{name}_{c}.nii.gz", IMAGE * factor), None) for factor, c in enumerate("ab", 1)}
    return Case(name, images, **others)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
def test_reference_labels_are_never_replaced(tmp_path: Path, broken: bool) -> None:
    model, manifest = save_random_model(tmp_path / "model"), tiny_dataset(tmp_path / "data", 1, (11, 9, 10), LABELS)
    content = json.loads(manifest.read_text())
    (tmp_path / "data/labels").mkdir()
    label = (tmp_path / "data/case0_seg.nii.gz").rename(tmp_path / "data/labels/case0.nii.gz")
    content["training"][0]["label"] = "labels/case0.nii.gz"
    manifest.write_text(json.dumps(content))
    if broken:
        _cut(tmp_path / "data/case0_a.nii.gz")
    before = _contents(tmp_path / "data")
    arguments = ["--model", model, "--input", manifest, "--output", label.parent]
    with command("infer", *arguments, log=tmp_path / "log") as running:
        assert running.wait() == 73, running.said()
        assert "overwrite an input" in running.said()
        assert str(label) in running.said()
    assert _contents(tmp_path / "data") == before


def test_no_file_that_belongs_to_a_case_is_a_target(tmp_path: Path) -> None:
    """Images, channels that the model does not use, masks, and links to any of them; also where runs were before."""
    good, out = _case(tmp_path / "in", "good"), tmp_path / "out"
    assert infer_cases(random_ensemble(), [good, _case(tmp_path / "in", "p")], out) == []
    ours = (out / "p.nii.gz").read_bytes()
    elsewhere = nifti(tmp_path / "store/x.nii.gz", LABEL)
    for kind in ("label", "mask", "unused", "channel", "link"):
        (out / "p.nii.gz").unlink()
        if kind == "link":
            (out / "p.nii.gz").symlink_to(elsewhere)
        else:
            (out / "p.nii.gz").write_bytes(ours)
        target = elsewhere if kind == "link" else out / "p.nii.gz"
        case = _case(tmp_path / "in", "p", **({kind: target} if kind in ("label", "mask") else {"label": target}))
        if kind in ("unused", "channel"):
            case = Case("p", case.images | {"c" if kind == "unused" else "a": (target, None)})
        before = _contents(tmp_path)
        with pytest.raises(OutputError, match="overwrite an input"):
            infer_cases(random_ensemble(), [good, case], out)
        assert _contents(tmp_path) == before, kind


@pytest.mark.parametrize("name", ["p.nii.gz", "p.json", "p_prob.nii.gz", "run.json", "failures.json"])
def test_files_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"case": "mine", "cases": ["p"]}')
    before = _contents(out)
    with pytest.raises(OutputError, match="overwrite a file that is not one"):
        infer_cases(random_ensemble(), [_case(tmp_path / "in", "p")], out)
    assert _contents(out) == before


def test_results_that_a_kill_left_without_a_record_are_replaced(tmp_path: Path) -> None:
    case, out = _case(tmp_path / "in", "p"), tmp_path / "out"
    assert infer_cases(random_ensemble(), [case], out) == []
    finished = _contents(out)
    (out / "p.json").unlink()
    (out / "p.nii.gz").write_bytes(b"of an older model")
    assert infer_cases(random_ensemble(), [case], out) == []
    assert _contents(out) == finished


def test_a_result_stays_until_its_case_is_read_again(tmp_path: Path) -> None:
    """It does not count meanwhile."""
    case, out = _case(tmp_path / "in", "p"), tmp_path / "out"
    assert infer_cases(random_ensemble(), [case], out) == []
    finished = (out / "p.nii.gz").read_bytes()
    image = case.images["a"][0]
    image.rename(tmp_path / "unmounted")
    assert [failure["code"] for failure in infer_cases(random_ensemble(), [case], out)] == ["E_IO"]
    assert (out / "p.nii.gz").read_bytes() == finished
    assert predictions_in(out) == {}
    (tmp_path / "unmounted").rename(image)
    assert infer_cases(random_ensemble(), [case], out) == []
    assert predictions_in(out) == {"p": out / "p.nii.gz"}


@pytest.mark.parametrize(
    "names", [["p_prob", "p"], ["run"], ["Failures"], ["X", "x"], ["q", "q"]], ids=lambda names: "-".join(names)
)
def test_names_whose_results_would_overwrite_others(tmp_path: Path, names: list[str]) -> None:
    cases = [_case(tmp_path / str(i), name) for i, name in enumerate(names)]
    with pytest.raises(DataError) as caught:
        infer_cases(random_ensemble(), cases, tmp_path / "out")
    assert caught.value.code == "E_MANIFEST"
    assert not (tmp_path / "out").exists()
    listed = [{"id": c.name, "image": {k: str(p) for k, (p, _) in c.images.items()}} for c in cases]
    manifest = tmp_path / "list.json"
    manifest.write_text(json.dumps({"training": listed}))  # training ends with the segmentation of its cases, too
    with pytest.raises(DataError) as caught:
        load_manifest(manifest)
    assert caught.value.code == "E_MANIFEST"


def _out_of_reach(folder: Path) -> None:
    """Folders below it whose path is longer than the system takes; made step by step, it cannot be listed by its path."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(5):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_what_can_be_no_case_does_not_stop_a_folder(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["x" * 200] * 15)
    for name in ("good1", "good2", "patient 3", os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff/p4"), "twice"):
        _case(folder, name)
    nifti(folder / "twice_a.nii")
    (folder / "loop").symlink_to("loop")
    (folder / "loop_a.nii.gz").symlink_to("loop_b.nii.gz")
    (folder / "loop_b.nii.gz").symlink_to("loop_a.nii.gz")
    _out_of_reach(folder)
    arguments = ["--model", save_random_model(tmp_path / "model"), "--input", folder, "--output", tmp_path / "out"]
    with command("infer", *arguments, log=tmp_path / "log") as running:
        assert running.wait() == 2, running.said()
        assert "Traceback" not in running.said()
        assert "2 of 8 cases segmented" in running.said()
    assert set(predictions_in(tmp_path / "out")) == {"good1", "good2"}
    failures = json.loads((tmp_path / "out/failures.json").read_text())
    found = {(Path(f["case"]).name.split("_")[0][:9], f["code"]) for f in failures}
    assert found == {
        ("patient 3", "E_MANIFEST"), ("caf\\xe9", "E_MANIFEST"), ("twice", "E_CHANNEL"), ("d" * 9, "E_IO"), ("loop", "E_IO"),
        ("p4", "E_IO"),
    }  # fmt: skip


def test_a_mask_whose_voxels_alone_have_changed_is_noticed(tmp_path: Path) -> None:
    """They lie beside its header, which stays the same."""
    mask = tmp_path / "in/p_mask.hdr"
    case, out = _case(tmp_path / "in", "p", mask=mask), tmp_path / "out"
    seen = []
    for size in (1, 2):
        inside = np.zeros(IMAGE.shape, np.uint8)
        inside[size:] = 1
        nib.save(nib.Nifti1Pair(inside, nib.load(case.images["a"][0]).affine), mask)
        assert infer_cases(random_ensemble(), [case], out) == []
        seen.append(json.loads((out / "p.json").read_text())["mask_sha256"])
    assert seen[0] != seen[1]


def test_sums_hold_also_where_there_is_a_result(tmp_path: Path) -> None:
    """Results of what stands there now are none of what the list names."""
    case, out = _case(tmp_path / "in", "p"), tmp_path / "out"
    path = case.images["a"][0]
    listed = replace(case, sha256={path: volume_sum(path)})
    nifti(path, IMAGE * 2)
    assert infer_cases(random_ensemble(), [case], out) == []  # by a list without sums
    (failure,) = infer_cases(random_ensemble(), [listed], out)
    assert (failure["case"], failure["code"]) == ("p", "E_HASH")


@pytest.mark.fault(1)
@pytest.mark.parametrize("probabilities", [False, True])
def test_outputs_that_are_not_finite_fail_the_case(tmp_path: Path, probabilities: bool) -> None:
    """Finite weights whose products overflow: the mask would be background everywhere, without a word."""
    cases = load_manifest(tiny_dataset(tmp_path, cases=2)).cases
    ensemble = random_ensemble()
    with torch.no_grad():
        for parameter in ensemble.predictors[0].network.parameters():
            parameter.mul_(1e18)
    failures = infer_cases(ensemble, cases, tmp_path / "out", probabilities="float32" if probabilities else "none")
    assert [(f["case"], f["code"]) for f in failures] == [("case0", "E_NAN"), ("case1", "E_NAN")]
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.fault(20)
@pytest.mark.parametrize("edge", [1, 7])
def test_windows_without_end_are_refused_before_the_first(tmp_path: Path, edge: int) -> None:
    card, weights = random_model()
    card = card.model_copy(update={"window": [edge] * 3, "patch": [edge] * 3})
    save_model(tmp_path / "model", card, weights)
    size = 60 if edge == 1 else 210
    for channel in "ab":
        save(tmp_path / f"in/x_{channel}.nii.gz", np.random.default_rng(0).normal(size=(size,) * 3).astype(np.float32))
    arguments = ["--model", tmp_path / "model", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    with command("infer", *arguments, log=tmp_path / "log") as running:
        assert running.wait(60) == 2
    (failure,) = json.loads((tmp_path / "out/failures.json").read_text())
    assert failure["code"] == "E_SIZE"
    assert "windows" in failure["what"]


@pytest.mark.fault(24)
@pytest.mark.parametrize("values", [(0.0, 0.0), (500.0, 1234.567)])
def test_nothing_is_found_where_every_channel_is_constant(tmp_path: Path, values: tuple[float, float]) -> None:
    for channel, value in zip("ab", values, strict=True):
        save(tmp_path / f"in/x_{channel}.nii.gz", np.full((18, 15, 20), value, np.float32))
    case = Case("x", {channel: (tmp_path / f"in/x_{channel}.nii.gz", None) for channel in "ab"})
    for kept in ("none", "float32"):
        assert infer_cases(random_ensemble(), [case], tmp_path / kept, probabilities=kept) == []
        assert not np.asarray(nib.load(tmp_path / kept / "x.nii.gz").dataobj).any()
        assert "a is constant" in json.loads((tmp_path / kept / "x.json").read_text())["flags"][0]
    chances = np.asarray(nib.load(tmp_path / "float32/x_prob.nii.gz").dataobj)
    assert (chances == [1, 0, 0]).all()


@pytest.mark.fault(15)
def test_a_folder_that_was_left_in_the_output(tmp_path: Path) -> None:
    (tmp_path / "out/.partial-new-x/y").mkdir(parents=True)
    manifest = tiny_dataset(tmp_path / "data", cases=1, labels=LABELS)
    model = save_random_model(tmp_path / "model")
    arguments = ["--model", model, "--input", manifest, "--output", tmp_path / "out"]
    with command("infer", *arguments, log=tmp_path / "log") as running:
        assert running.wait() == 0, running.said()
    assert not list((tmp_path / "out").glob(".partial*"))


@pytest.mark.fault(21)
@pytest.mark.parametrize("name", ["s.nii.gz", "s.hdr"])
def test_a_dicom_folder_with_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    images = {channel: (series(tmp_path / channel / name), None) for channel in "ab"}
    assert infer_cases(random_ensemble(), [Case("case", images)], tmp_path / "out") == []
    assert nib.load(tmp_path / "out/case.nii.gz").shape == (7, 6, 5)


@pytest.mark.fault(21)
@pytest.mark.parametrize(("length", "kind"), [(LONGEST_AXIS, nib.Nifti1Image), (33_000, nib.Nifti2Image)])
@pytest.mark.parametrize("axis", [0, 2])
def test_an_axis_that_nifti_1_cannot_count(tmp_path: Path, length: int, kind: type, axis: int) -> None:
    shape = [2, 3, 2]
    shape[axis] = length
    labels = np.zeros(shape, np.uint8)
    labels[-1, -1, -1] = 2
    source = tmp_path / "image.nii.gz"
    image = nib.Nifti2Image(labels.astype(np.float32), np.eye(4))
    image.header.set_xyzt_units("mm")
    image.set_sform(np.eye(4), 1)
    nib.save(image, source)
    grid = Grid(tuple(shape), np.eye(4))
    write_volume(tmp_path / "case.nii.gz", labels, grid, source)
    assert type(nib.load(tmp_path / "case.nii.gz")) is kind
    found, there = load_labels(tmp_path / "case.nii.gz", "case")
    assert np.array_equal(found, labels)
    assert there.equals(grid)
    assert nib.load(tmp_path / "case.nii.gz").header["sform_code"] == 1
    chances = np.zeros((*shape, 2), np.float32)
    write_volume(tmp_path / "case_prob.nii.gz", chances, grid, source, stored=np.dtype("uint8"))
    assert nib.load(tmp_path / "case_prob.nii.gz").shape == chances.shape


@pytest.mark.fault(7)
def test_a_large_case_is_refused_by_its_header_and_not_read_while_another_is_computed(tmp_path: Path) -> None:
    """Its voxels are asked for only in its turn, and only where there is room for them."""
    shape = (512, 512, 256)
    large = np.zeros(shape, np.uint8)
    large[9:20, 9:20, 9:20] = 5
    cases = []
    for name, array in (("a_small", large[:20, :20, :20]), ("b_large", large), ("c_small", large[:20, :20, :20])):
        nifti(tmp_path / f"{name}_a.nii.gz", array)
        nifti(tmp_path / f"{name}_b.nii.gz", array)
        cases.append(Case(name, {c: (tmp_path / f"{name}_{c}.nii.gz", None) for c in "ab"}))
    assert 4 * 2 * large.size > AHEAD_BYTES
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2 * large.size, limits[1]))
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        (failure,) = infer_cases(random_ensemble(), cases, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (failure["case"], failure["code"]) == ("b_large", "E_MEMORY")
    assert "at least 0.60 GB" in failure["why"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) * 1024 < large.nbytes
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a_small.nii.gz", "c_small.nii.gz"]
