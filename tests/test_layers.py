"""The floors: a room imports only from floors below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cmt_med"
FLOORS = {
    "errors": 0, "files": 0, "blocks": 1, "config": 1, "experiment": 2, "networks": 2, "data": 3, "evaluation": 3, "inference": 4,
    "training": 5, "reports": 6, "interop": 6,
}  # fmt: skip
COMMANDS = 7
ONLY = {
    "blocks": {"errors"},
    "config": {"errors"},
    "experiment": {"config", "errors"},
    "networks": {"blocks", "errors"},
    "errors": set(),
    "files": {"errors"},
}
NEVER = {"data": {"networks", "blocks"}, "evaluation": {"networks", "blocks"}, "training": {"networks"},
         "inference": {"networks"}, "reports": {"networks", "training"}}  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: a relative import hides its room"
            names = [f"cmt_med.{alias.name}" for alias in node.names] if node.module == "cmt_med" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("cmt_med.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = _room(path)
    floor = FLOORS.get(room, COMMANDS)
    for imported in _imports(path) - {room}:
        below = FLOORS.get(imported, COMMANDS) < floor or floor == COMMANDS or imported == "errors"
        assert below, f"{room} imports {imported}"
        if room in ONLY:
            assert imported in ONLY[room]
        assert imported not in NEVER.get(room, set())


def test_config_does_not_import_torch() -> None:
    program = "import sys, cmt_med.experiment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False).returncode == 0


def test_no_pickle_or_eval() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), f"{path}:{node.lineno}"
                if name == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno}"
