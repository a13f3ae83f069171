"""Repaired copies and copies of lists: never in the place of something else, and every case keeps its name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmt_med.base.errors import ConfigError, OutputError
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.copies import with_copies, write_list, write_repaired
from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.gate import grid_of
from cmt_med.data.volumes.sums import volume_sum
from tests.data.made import AFFINE, IMAGE, LABEL, case_of, nifti

IN_METRES = {"affine": AFFINE * [[1e-3], [1e-3], [1e-3], [1]], "at_123": ("B", 1)}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_same_place_and_nothing_else(tmp_path: Path, ending: str) -> None:
    path = nifti(tmp_path / f"data/p/i{ending}", **IN_METRES)
    sound = nifti(tmp_path / f"data/p/sound{ending}")
    case = Case("p", {"a": (path, None), "b": (sound, None)})
    for _ in range(2):  # what an earlier call has written may stand there
        copies, done = write_repaired([case], tmp_path / "data", tmp_path / "out")
        assert copies == {path: tmp_path / f"out/p/i{ending}"}
        assert done == {path: ["lengths converted from metres to millimetres"]}
        assert set(files_in(tmp_path / "out")) == {f"p/i{ending}"}
        volume = decode(copies[path])
        assert np.array_equal(volume.array, IMAGE)
        np.testing.assert_allclose(grid_of(volume).affine, AFFINE, atol=1e-4)
    assert with_copies(case, copies).images == {"a": (copies[path], None), "b": (sound, None)}


def _folder(target: Path) -> None:
    target.mkdir(parents=True)


def _text(target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_text("my own file")


def _link(target: Path) -> None:
    target.parent.mkdir(parents=True)
    (target.parent / "elsewhere").write_text("my own file")
    target.symlink_to("elsewhere")


def _of_another_input(target: Path) -> None:
    other = nifti(target.parents[1] / "other/i.nii", IMAGE * 2, **IN_METRES)
    write_repaired([case_of(other)], other.parent, target.parent)


@pytest.mark.parametrize("put", [_folder, _text, _link, _of_another_input])
def test_what_stands_there_is_never_replaced(tmp_path: Path, put: object) -> None:
    path, target = nifti(tmp_path / "data/i.nii", **IN_METRES), tmp_path / "out/i.nii"
    assert callable(put)
    put(target)
    before = files_in(tmp_path / "out")
    with pytest.raises(OutputError) as raised:
        write_repaired([case_of(path)], path.parent, target.parent)
    assert raised.value.exit_code == 73
    assert str(target) in raised.value.where
    assert "--output" in raised.value.fix
    assert files_in(tmp_path / "out") == before


def test_a_repair_that_cannot_be_read_is_not_left(tmp_path: Path) -> None:
    """More is wrong with it than its unit."""
    path = nifti(tmp_path / "data/i.nii", **IN_METRES, at_112=("ff", 0.0, 5.0))
    _text(tmp_path / "out/i.nii")
    assert write_repaired([case_of(path)], path.parent, tmp_path / "out") == ({}, {})
    assert files_in(tmp_path / "out") == {"i.nii": b"my own file"}


def test_originals_are_never_touched(tmp_path: Path) -> None:
    path = nifti(tmp_path / "i.nii", **IN_METRES)
    (tmp_path / "out").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "out"):
        with pytest.raises(ConfigError, match="never touched"):
            write_repaired([case_of(path)], tmp_path, output)
    clash = [case_of(path), case_of(nifti(tmp_path / "other/i.nii", **IN_METRES))]
    with pytest.raises(ConfigError, match="another file"):  # two of one name, from outside the base
        write_repaired(clash, tmp_path / "elsewhere", tmp_path / "new")


def linked_list(folder: Path) -> Path:
    """A case list without ids of files as git-annex has them: links to objects that are named by their content."""
    for name, array in (("p1", IMAGE), ("p1_seg", LABEL), ("p2", IMAGE * 2)):
        target = nifti(folder / f"objects/MD5E-s840--0{len(name)}{name[1]}.nii.gz", array)
        (folder / f"{name}.nii.gz").symlink_to(target.relative_to(folder))
    entries = [{"image": "p1.nii.gz", "label": "p1_seg.nii.gz"}, {"image": "p2.nii.gz", "group": "g"}, "p1_seg.nii.gz"]
    path = folder / "list.json"
    path.write_text(json.dumps({"modality": ["a"], "labels": {"0": "background", "1": "x"}, "training": entries}))
    return path


@pytest.mark.parametrize("sums", [True, False])
def test_cases_keep_their_names(tmp_path: Path, sums: bool) -> None:
    path, copy = linked_list(tmp_path / "data"), tmp_path / "out/list.json"
    write_list(path, copy, {}, sums=sums)
    ours, theirs = load_manifest(path).cases, load_manifest(copy).cases
    assert [case.name for case in theirs] == ["p1", "p2", "p1_seg"]
    assert [(case.name, case.group, case.images, case.label) for case in theirs] == [
        (case.name, case.group, case.images, case.label) for case in ours
    ]
    image, label = tmp_path / "data/p1.nii.gz", tmp_path / "data/p1_seg.nii.gz"
    assert theirs[0].sha256 == ({image: volume_sum(image), label: volume_sum(label)} if sums else {})


def test_sums_stay_with_the_files_that_are_not_replaced(tmp_path: Path) -> None:
    path, listed, fixed = linked_list(tmp_path / "data"), tmp_path / "sums/l.json", tmp_path / "out/l.json"
    write_list(path, listed, {}, sums=True)
    image, label = tmp_path / "data/p1.nii.gz", tmp_path / "data/p1_seg.nii.gz"
    write_list(listed, fixed, {label: tmp_path / "out/p1_seg.nii.gz"}, sums=False)
    first = load_manifest(fixed).cases[0]
    assert first.label == tmp_path / "out/p1_seg.nii.gz"
    assert first.sha256 == {image: volume_sum(image)}


def test_another_list_is_never_replaced(tmp_path: Path) -> None:
    path, copy = linked_list(tmp_path / "data"), tmp_path / "out/list.json"
    for _ in range(2):
        write_list(path, copy, {}, sums=False)
    for content in ('{"training": []}', "my own file"):
        copy.write_text(content)
        with pytest.raises(OutputError) as raised:
            write_list(path, copy, {}, sums=False)
        assert str(copy) in raised.value.where
        assert copy.read_text() == content
    write_list(path, copy, {}, sums=True)  # sums are made again where a change was meant
    with pytest.raises(ConfigError, match="replace the list"):
        write_list(path, path, {}, sums=True)
