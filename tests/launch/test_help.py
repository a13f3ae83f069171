"""A help text comes at once: it imports nothing that computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = ("compare", "convert", "evaluate", "infer", "init", "inspect", "train", "view")
HEAVY = ("torch", "monai", "ignite", "numpy", "scipy", "nibabel", "pydicom")
PROGRAM = """
import sys
from cmt_med.__main__ import main
sys.argv = ["cmt-med", *sys.argv[1:]]
code = main()
print(*(name for name in {heavy} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_nothing_that_computes(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *arguments], check=False, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.split() == []


def test_shell_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cmt_med"], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"_CMT_MED_COMPLETE": "complete_bash", "COMP_WORDS": "cmt-med in", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert {"inspect", "init", "infer"} <= set(done.stdout.split()), done.stderr
