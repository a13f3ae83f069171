"""The floors: a room imports only from floors below it. Every room, and every module at the root, stands in a table here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cmt_med"
VERBS = {"__main__", "compare", "convert", "evaluate", "infer", "init", "inspect", "train", "view"}
"""The only modules at the root, beside the package's own."""
FLOORS: dict[str, int] = {
    "base": 0, "config": 1, "compute": 1, "blocks": 1, "networks": 2, "evaluation": 2, "data": 3, "tasks": 4, "inference": 5,
    "training": 6, "reports": 7, "runs": 8, "launch": 8,
}  # fmt: skip
ONLY = {  # what a room may import where its floor allows more
    "config": {"base"}, "compute": {"base"}, "blocks": {"base"}, "networks": {"blocks", "base"}, "evaluation": {"base"},
    "data": {"base", "config", "compute"},
}  # fmt: skip
NEVER = {"training": {"networks"}, "inference": {"networks"}, "reports": {"networks", "training"}}
DATA = {  # rooms within data; modules beside them stand for themselves
    "conventions": 0, "case": 0, "datalist": 0,
    "volumes": 1, "phantom": 1, "entries": 2, "phantom_lesions": 2, "phantom_years": 2, "nnunet": 3, "meanings": 4,
    "manifest": 5, "splits": 6,
    "sources": 6, "preprocessing": 7, "patches": 8,
}  # fmt: skip
ROOMS_WITHIN = {
    "networks": {"encoders", "decoders", "heads", "weights"},
    "tasks": {"classification", "detection", "instances", "pretraining", "segmentation"},
}  # fmt: skip
"""Rooms within others, beside those of data."""


def _place(module: str) -> tuple[str, str]:
    """The room of a dotted name, and the room or module within it."""
    parts = [*module.split(".")[1:], "", ""]
    return parts[0], parts[1]


def _imports(path: Path) -> set[str]:
    """Dotted names of what a module of the package imports from it, within functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: a relative import hides its room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name.startswith("cmt_med.")}
    return found - {"cmt_med.__version__"}


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def test_every_room_stands_in_the_table() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules == VERBS
    assert rooms == set(FLOORS)
    within = {path.parents[1].name: set[str]() for path in PACKAGE.glob("*/*/__init__.py")}
    for path in PACKAGE.glob("*/*/__init__.py"):
        within[path.parents[1].name].add(path.parent.name)
    del within["data"]
    assert within == ROOMS_WITHIN
    assert {path.stem for path in (PACKAGE / "data").glob("*.py")} | {
        path.parent.name for path in (PACKAGE / "data").glob("*/__init__.py")
    } == {*DATA, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    if room in VERBS or room == "__init__":
        return
    for module in _imports(path):
        imported, within = _place(module)
        if imported == room:
            if room == "data" and len(parts) > 1 and parts[1] != "__init__" and parts[1] != within:
                assert DATA[within] < DATA[parts[1]], f"data/{parts[1]} imports data/{within}"
            continue
        assert FLOORS[imported] < FLOORS[room], f"{room} imports {imported}"
        assert imported in ONLY.get(room, FLOORS)
        assert imported not in NEVER.get(room, set())


def test_no_circle() -> None:
    """Not one module imports another that imports it in turn, at whatever distance, within functions included."""
    graph: dict[str, set[str]] = {}
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for p in FILES}
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {m if m in names else m.rpartition(".")[0] for m in _imports(path)} & names - {"cmt_med"}
    done: set[str] = set()
    for start in graph:
        _walk(start, graph, [], done)


def _walk(name: str, graph: dict[str, set[str]], above: list[str], done: set[str]) -> None:
    assert name not in above, f"a circle: {' imports '.join([*above[above.index(name) :], name])}"
    if name not in done:
        for imported in graph[name]:
            _walk(imported, graph, [*above, name], done)
        done.add(name)


def test_config_does_not_import_torch() -> None:
    program = "import sys, cmt_med.config.reading; sys.exit('torch' in sys.modules)"
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
    """Whether a call looks like one that writes a file; ``write_text(path, ...)`` of cmt_med.base.files is a bare name."""
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
        if isinstance(node, ast.Call) and _writes(node) and path != PACKAGE / "base" / "files.py"
    }
    assert not found
    own = [
        node for node in ast.walk(ast.parse((PACKAGE / "base" / "files.py").read_text())) if isinstance(node, ast.Call)
    ]
    assert sum(map(_writes, own)) >= 5  # the test sees what it looks for


def test_no_archive_is_unpacked() -> None:
    """What a zip or tar could place outside its folder cannot arise: the package opens none."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"zipfile", "tarfile", "zipimport"}, path
