"""Arguments that no command can work with, the same for all verbs: paths that are too long or empty, and far too many threads."""

from __future__ import annotations

import inspect as introspection
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cmt_med.base.errors import EXIT_DATA, EXIT_OUTPUT, EXIT_SOME_FAILED, EXIT_USAGE
from cmt_med.compare import compare
from cmt_med.compute.device import THREADS_PER_PROCESSOR
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from cmt_med.view import view
from tests.helpers import known_errors, tiny_config, tiny_dataset
from tests.inference.models import save_random_model

Refused = Callable[[str, list[str]], tuple[int, str]]

VERBS: dict[str, Callable[..., int]] = {
    "inspect": inspect, "init": init, "train": train, "infer": infer, "evaluate": evaluate, "compare": compare, "view": view,
}  # fmt: skip
INFER = ["--model", "{model}", "--output", "{out}"]
EVALUATE = ["--predictions", "{p}", "--references", "{list}", "--output", "{out}"]
# Every option that takes a path, as VERB OPTION, and a command with "{path}" in its place.
PATHS: dict[str, list[str]] = {
    "inspect path": ["{path}"],
    "inspect output": ["{list}", "--fix", "--output", "{path}"],
    "init path": ["{path}", "--output", "{out}.yaml"],
    "init output": ["{list}", "--output", "{path}.yaml"],
    "train config": ["--config", "{path}"],
    "train output": ["--config", "{config}", "--output", "{path}", "--dry-run"],
    "train set output": ["--config", "{config}", "--set", "output={path}", "--dry-run"],
    "train set data.manifest": ["--config", "{config}", "--set", "data.manifest={path}", "--dry-run"],
    "infer model": ["--model", "{path}", "--output", "{out}", "--input", "{list}"],
    "infer cases": [*INFER, "--input", "{path}"],
    "infer channel": [*INFER, "--channel", "a={path}", "--channel", "b={data}/case0_b.nii.gz"],
    "infer output": ["--model", "{model}", "--output", "{path}", "--channel", "a={data}/case0_a.nii.gz"],
    "evaluate predictions": ["--predictions", "{path}", *EVALUATE[2:]],
    "evaluate references": [*EVALUATE[:3], "{path}", *EVALUATE[4:]],
    "evaluate output": [*EVALUATE[:5], "{path}"],
    "compare reports": ["{path}", "{report}"],
    "compare reports NAME": ["{report}", "x={path},{report}"],
    "compare output": ["{report}", "b={report}", "--output", "{path}"],
    "view folder": ["{path}", "--no-browser"],
    "view images": ["{p}", "--images", "{path}", "--no-browser"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands need beside the path in question, by its name in ``PATHS``."""
    folder = tmp_path_factory.mktemp("command_line")
    data = tiny_dataset(folder / "data", cases=4)
    listed, _ = known_errors(folder)
    arguments = ["--predictions", str(folder / "p"), "--references", str(listed), "--output", str(folder / "report")]
    assert run_command(evaluate, arguments) == 0
    return {
        "data": data.parent, "list": listed, "config": tiny_config(folder, data), "p": folder / "p", "out": folder / "out",
        "model": save_random_model(folder / "model"), "report": folder / "report",
    }  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Refused:
    """Exit code and message of a command, which must be an error with its four parts; a failed case is logged."""
    return partial(_refused, capsys, caplog)


def _refused(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, verb: str, arguments: list[str]
) -> tuple[int, str]:
    code = run_command(VERBS[verb], arguments)
    said = capsys.readouterr().err + caplog.text
    assert "Traceback" not in said
    assert "E_BUG" not in said
    assert "[E_" in said
    assert all(f"\n  {part}: " in said for part in ("where", "why", "fix"))
    return code, said


def _takes_paths(hint: Any) -> bool:
    return "Path" in str(hint)


def test_the_table_has_every_path() -> None:
    options = {
        f"{verb} {name}"
        for verb, function in VERBS.items()
        for name, hint in get_type_hints(function).items()
        if name in introspection.signature(function).parameters and _takes_paths(hint)
    }
    assert options <= PATHS.keys()


@pytest.mark.fault(16)
@pytest.mark.parametrize("path", ["x" * 10_000, "/".join(["x" * 99] * 100)], ids=["a long name", "many folders"])
@pytest.mark.parametrize("option", PATHS)
def test_paths_that_the_system_does_not_take(option: str, path: str, places: dict[str, Path], refused: Refused) -> None:
    arguments = [part.format(path=path, **places) for part in PATHS[option]]
    code, _ = refused(option.split()[0], arguments)
    assert code in (EXIT_USAGE, EXIT_DATA, EXIT_OUTPUT, EXIT_SOME_FAILED)


@pytest.mark.fault(18)
@pytest.mark.parametrize("option", PATHS)
def test_empty_paths_are_not_the_current_folder(
    option: str, places: dict[str, Path], refused: Refused, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [part.format(path="", **places) for part in PATHS[option]]
    if ".yaml" in arguments or "a=" in arguments or any(part.startswith("x=") for part in arguments):
        arguments = [
            part for part in arguments if part != ".yaml"
        ]  # an empty path within an argument: the verb refuses it
        assert run_command(VERBS[option.split()[0]], arguments) in (EXIT_USAGE, EXIT_DATA)
    else:
        assert refused(option.split()[0], arguments)[0] == EXIT_USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(18)
def test_an_empty_value_after_an_equals_sign(
    places: dict[str, Path], refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = refused("evaluate", [*EVALUATE[:4], "--output="])
    assert code == EXIT_USAGE
    assert "--output" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(18)
@pytest.mark.parametrize("verb", ["infer", "train"])
def test_more_threads_than_processors_can_serve(verb: str, places: dict[str, Path], refused: Refused) -> None:
    most = THREADS_PER_PROCESSOR * (os.cpu_count() or 1)
    command = {"infer": [*INFER, "--input", "{list}"], "train": ["--config", "{config}"]}[verb]
    for threads in (9999, most + 1):
        arguments = [part.format(**places) for part in (*command, "--threads", str(threads))]
        code, said = refused(verb, arguments)
        assert code == EXIT_USAGE
        assert f"at most {most}" in said
