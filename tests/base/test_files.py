"""The one writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import pytest

from cmt_med.base.errors import OutputError
from cmt_med.base.files import (
    append_line,
    read_lines,
    remove_leftovers,
    require_writable_folder,
    sha256,
    write_file,
    write_folder,
    write_json,
    write_text,
)


def test_failure_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left") as raised:
        write_file(path, fail)
    assert str(path) in str(raised.value)
    assert raised.value.exit_code == 73
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], 3: "x"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None], "3": "x"}


def test_a_cut_line_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, {"a": 1})
    append_line(log, {"a": 2})
    log.write_text(log.read_text()[:-4])
    assert read_lines(log) == [{"a": 1}]


def test_a_log_cut_anywhere(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"dice/\u0153d\u00e8me": 1}, {"dice/a\u2028b\u0085c": 2}]
    for row in rows:
        append_line(log, row)
    assert read_lines(log) == rows
    content = log.read_bytes()
    second = content.index(b"\n") + 1
    for end in range(len(content) - 1):  # a line that lacks only its end is whole
        log.write_bytes(content[:end])
        assert read_lines(log) == rows[: end >= second - 1]
    log.write_bytes(b"12\n[]\n" + content)
    assert read_lines(log) == rows


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    def new(folder: Path) -> None:
        write_text(folder / "b/2.txt", "new")

    def cut(folder: Path) -> None:
        new(folder)
        raise KeyboardInterrupt

    folder = tmp_path / "model"
    write_folder(folder, lambda to: write_text(to / "a/1.txt", "old"))
    (tmp_path / ".partial-new-model").mkdir()  # of a killed process, as is the next
    for left in (folder, tmp_path / ".partial-old-model"):
        folder.rename(left)
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder, cut)
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == ["model/a/1.txt"]
    write_folder(folder, new)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/b", "model/b/2.txt"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        require_writable_folder(tmp_path / "f" / "sub")


def test_sha256_of_known_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.fault(15)
def test_leftovers_of_killed_processes_are_removed_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine/kept").mkdir(parents=True)
    (tmp_path / "mine/kept/a.txt").write_text("kept")
    out = tmp_path / "out"
    (out / ".partial-new-model/weights").mkdir(parents=True)
    (out / ".partial-new-model/weights/a.txt").write_text("")
    (out / ".partial-probe").mkdir()  # the name of the file that a folder was tried with once
    (out / ".partial-a1b2.nii.gz").write_text("")
    (out / ".partial-link").symlink_to(tmp_path / "mine")
    (out / "result.json").write_text("{}")
    require_writable_folder(out)
    remove_leftovers(out)
    assert [path.name for path in out.iterdir()] == ["result.json"]
    assert (tmp_path / "mine/kept/a.txt").read_text() == "kept"
