"""What a file's name could do to a terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.base.text import visible, visible_lines
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from tests.hostile import NAMES


def unseen(text: str) -> list[str]:
    """Characters that a terminal or a reader would take for something else."""
    return [letter for letter in text if letter != "\n" and visible(letter) != letter]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_messages_show_what_is_there(name: str) -> None:
    message = DataError(f"{name} is wrong", where=name, why=name, fix=name, code="E_IO").message()
    assert not unseen(message)
    assert message.count("\n") == 3  # no name makes a line of its own
    assert DataError("x", where=name).as_dict()["where"] == name  # files keep the name


def test_lines_stay_lines() -> None:
    assert visible_lines("a\x1b[2J\nb\u202e") == "a‹U+001B›[2J\nb‹U+202E›"


def test_what_commands_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "\x1b]0;x\x07y_t1.nii.gz").write_bytes(b"no volume")
    (folder / "z\u202e_t1.nii.gz").write_bytes(b"no volume")
    for command, arguments in ((inspect, [str(folder)]), (init, [str(folder), "--output", str(tmp_path / "my.yaml")])):
        assert run_command(command, arguments) == 65
        told = capsys.readouterr()
        assert not unseen(told.out + told.err)


def test_log_lines() -> None:
    from cmt_med.launch.command import _Readable

    record = logging.LogRecord("x", logging.INFO, "", 0, "case %s", ("a\x1b[1Ab",), None)
    assert _Readable("%(message)s").format(record) == "case a‹U+001B›[1Ab"
