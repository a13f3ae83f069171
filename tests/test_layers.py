"""The floors: a room imports only from floors below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cmt_med"
FLOORS = {
    "text": -1, "errors": 0, "files": 0, "blocks": 1, "config": 1, "experiment": 2, "networks": 2, "data": 3, "evaluation": 3,
    "inference": 4,
    "training": 5, "reports": 6, "interop": 6,
}  # fmt: skip
COMMANDS = 7
ONLY = {
    "blocks": {"errors"},
    "config": {"errors"},
    "experiment": {"config", "errors"},
    "networks": {"blocks", "errors"},
    "text": set(),
    "errors": {"text"},
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


WRITING = {
    "write_text", "write_bytes", "savefig", "save", "save_file", "to_filename", "tofile", "savez", "savez_compressed", "savetxt",
    "mkstemp", "NamedTemporaryFile", "TemporaryFile", "SummaryWriter", "FileIO", "fdopen", "memmap", "to_csv", "to_json",
    "copy", "copy2", "copyfile", "copytree", "move", "rename", "renames", "touch", "symlink_to", "hardlink_to", "link",
    "truncate", "FileHandler", "WriteImage", "imsave", "imwrite", "unpack_archive", "ZipFile", "extractall",
}  # fmt: skip
INTO_MEMORY = {  # calls of those names that write no file
    "torch.save(state, buffer)", "np.save(stream, a, allow_pickle=False)", "os.fdopen(handle, 'rb', buffering=0)",
    "self.state.save(self.budget.seconds(), self.budget.plan, self.budget.pace)",  # a method of ours
}  # fmt: skip


def _writes(node: ast.Call) -> bool:
    """Whether a call looks like one that writes a file; ``write_text(path, ...)`` of cmt_med.files is a bare name."""
    if ast.unparse(node) in INTO_MEMORY:
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "open":
        words = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
        modes = [word for word in words if set(word) <= set("rwaxbt+")]
        return any(set(mode) & set("wax+") for mode in modes) or any(
            f"os.O_{k}" in ast.unparse(node) for k in ("WRONLY", "RDWR", "CREAT")
        )
    if name == "replace":  # of a path: one argument; of a text: two; of a dataclass: by keywords
        return isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords
    if name in ("save", "savefig") and node.args and ast.unparse(node.args[0]) == "stream":
        return False
    module = ast.unparse(node.func).rpartition(".")[0]
    if name in ("copy", "move", "link") and module not in ("shutil", "os"):
        return False
    return name in WRITING and isinstance(node.func, ast.Attribute)


def test_one_room_writes_files() -> None:
    """All others call it: a file is whole, read back, and replaces the one before at once, or an error names it."""
    pipelines = sorted((PACKAGE.parent / "pipelines").rglob("*.py"))
    found = {
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in [*FILES, *pipelines]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _writes(node) and path != PACKAGE / "files.py"
    }
    assert not found
    own = [node for node in ast.walk(ast.parse((PACKAGE / "files.py").read_text())) if isinstance(node, ast.Call)]
    assert sum(map(_writes, own)) >= 5  # the test sees what it looks for


def test_no_archive_is_unpacked() -> None:
    """What a zip or tar could place outside its folder cannot arise: the package opens none."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"zipfile", "tarfile", "zipimport"}, path
