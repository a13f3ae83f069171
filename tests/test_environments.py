"""Machines as they are: a user without a name or a home, a cache that cannot be written, and a signal in the first second."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cmt_med
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.helpers import tiny_config, tiny_dataset

NOBODY = 54321  # a user id that no system file knows, as `docker run --user` gives one
SETS = ["--set", "train.epochs=1", "--set", "train.patch_size=[8, 8, 8]"]


def _as_nobody(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without a name, in a namespace of its own: the files are still ours."""
    unshare = ["unshare", "--user", f"--map-user={NOBODY}"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs unshare and user namespaces")
    return subprocess.run(
        [*unshare, *command], check=False, capture_output=True, text=True, cwd=Path(cmt_med.__file__).parents[1],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.mark.fault(5)
def test_a_user_without_a_name(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3, (12, 11, 13)))
    train = [sys.executable, "-m", "cmt_med.train", "--config", str(config), *SETS]
    done = _as_nobody(*train, CMT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report/report.html").exists()


@pytest.mark.fault(5)
def test_a_user_without_a_home(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3, (12, 11, 13)))
    done = _as_nobody(sys.executable, "-m", "cmt_med.train", "--config", str(config), *SETS, USER="somebody")
    assert done.returncode == 73, done.stderr
    assert "Traceback" not in done.stderr
    assert "set CMT_CACHE to a folder" in done.stderr


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "where",
    [{"CMT_CACHE": "/proc/nowhere"}, {"CMT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/proc"}],
    ids=["cache", "home"],
)
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, where: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3, (12, 11, 13)))
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    assert run_command(train, ["--config", str(config), *SETS]) == 73
    said = capsys.readouterr().err
    assert "cannot be kept as it was preprocessed" in said
    assert "set CMT_CACHE to a folder" in said
    assert "--output" not in said


@pytest.mark.fault(29)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["cmt_med", "cmt_med.train"])
def test_a_signal_while_libraries_are_imported(tmp_path: Path, module: str, number: signal.Signals) -> None:
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3, (12, 11, 13)))
    verb = ["train"] if module == "cmt_med" else []
    process = subprocess.Popen(
        [sys.executable, "-m", module, *verb, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=Path(cmt_med.__file__).parents[1],
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc to see what a process has loaded")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said == "[E_INTERRUPTED] interrupted\n  fix: the same command resumes it\n"


def test_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    """LC_ALL=C, as in a container: a sign that it lacks must not end a command, least of all after its work is done."""
    tiny_dataset(tmp_path / "d", 2, (12, 11, 13))
    done = subprocess.run(
        [sys.executable, "-m", "cmt_med.inspect", str(tmp_path / "d")], check=False, capture_output=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=Path(cmt_med.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"12?11?13" in done.stdout.replace(b" ", b"")


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    tiny_dataset(tmp_path / "d", 2, (12, 11, 13))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cmt_med.inspect", str(tmp_path / "d")], check=False, stdout=full, stderr=subprocess.PIPE,
            cwd=Path(cmt_med.__file__).parents[1], text=True,
        )  # fmt: skip
    assert done.returncode == 73, done.stderr
    assert "[E_OUTPUT] there is no room left" in done.stderr
