"""What is found under a path: the same cases as other commands take, also behind links, and an end to every loop."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.base.errors import DataError
from cmt_med.data.sources import cases_for_network, find_dataset
from tests.data.made import nifti
from tests.data.volumes.test_dicom import series


def names(folder: Path) -> list[str]:
    found = find_dataset(folder)
    return sorted([*(case.name for case in found.cases), *(file.name for file in found.unmatched)])


def test_folders_behind_links_are_looked_into(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        nifti(tmp_path / "store" / name / f"{name}_t1.nii.gz")
    series(tmp_path / "store/head")
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/p1").symlink_to("../store/p1")
    (tmp_path / "data/sub/p2").symlink_to(tmp_path / "store/p2")
    (tmp_path / "data/head").symlink_to("../store/head")
    nifti(tmp_path / "data/p3/p3_t1.nii.gz")
    assert names(tmp_path / "data") == ["head", "p1", "p2", "p3"]
    (tmp_path / "data/head").unlink()  # infer takes it for a case of a network with one channel alone
    assert names(tmp_path / "data") == sorted(
        case.name for case in cases_for_network(tmp_path / "data", ("t1", "t2")).cases
    )


def test_loops_end_and_nothing_comes_twice(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a/z/p_t1.nii.gz")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/itself").symlink_to("itself")
    (tmp_path / "a/again").symlink_to("z")
    (tmp_path / "b").symlink_to("a")
    found = find_dataset(tmp_path)
    assert [case.images for case in found.cases] == [{"t1": (path, None)}]  # by its own place
    assert len(found.repeated) == 3


@given(links=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=12, unique=True))
@settings(max_examples=30, deadline=None)
def test_any_links_between_folders(links: list[tuple[int, int]]) -> None:
    """Whatever leads where, each volume is found once: all in the tree, and the one beside it if something leads there."""
    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "root"
        folders = [root / name for name in ("a", "a/b", "a/b/c", "d", "d/e", "f")]
        for i, folder in enumerate(folders):
            nifti(folder / f"p{i}_t1.nii.gz")
        nifti(Path(top) / "beside/q_t1.nii.gz")
        folders.append(Path(top) / "beside")
        for at, to in links:
            (folders[at] / f"link{to}").symlink_to(folders[to])
        expected = [f"p{i}" for i in range(6)] + ["q"] * any(to == 6 for _, to in links)
        assert names(root) == expected


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("elsewhere")
    with pytest.raises(DataError) as raised:
        find_dataset(tmp_path / "missing")
    assert raised.value.code == "E_IO"
    assert find_dataset(tmp_path).cases == []
