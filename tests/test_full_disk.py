"""A full disk, at 32 places of every file that is written: what was there stays, and the error names the file.

A limit on the size of files stands for the full disk where nothing can be mounted; the system's answer comes at the same byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_med.base.errors import EXIT_OUTPUT, OutputError
from cmt_med.base.files import TEMPORARY_PREFIX, append_line, locked, write_file, write_json, write_text
from cmt_med.config.reading import load_config
from cmt_med.data.case import Case
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.phantom_years import write_as_downloaded
from cmt_med.data.preprocessing.cache import prepare
from cmt_med.data.preprocessing.pipeline import preprocessing_settings
from cmt_med.data.volumes.copies import write_list, write_repaired
from cmt_med.data.volumes.gate import Grid
from cmt_med.data.volumes.written import write_volume
from cmt_med.inference.model import ModelCard, load_model, save_model
from cmt_med.reports.scores import score_folder, write_metrics
from cmt_med.runs.folds import collect_models
from cmt_med.training.board import Board
from cmt_med.training.checkpoint import load_newest, save_checkpoint
from tests.helpers import save, tiny_config, tiny_dataset
from tests.inference.models import NETWORK
from tests.processes import Running, command

OFFSETS = 32
Content = dict[str, str]


def _noise(version: int, count: int = 4000) -> np.ndarray:
    return np.random.default_rng(version).normal(size=count).astype(np.float32)


def _once(path: Path, array: np.ndarray) -> Path:
    """What a writer reads, made before the disk is full."""
    return path if path.exists() else save(path, array)


def _model(folder: Path, version: int) -> None:
    plain = {"spacing": None, "crop_foreground": False, "normalise": "image", "clip": None, "foreground_channel": False}
    card = ModelCard(
        name=f"v{version}", network=NETWORK | {"in_channels": 1, "num_classes": 2}, channels=["a"],
        labels={"background": 0, "ball": 1}, regions=None, preprocessing=plain,
        slice_axes=[], mirrored_axes=[], window=[8, 8, 8], patch=[8, 8, 8],
        inference=load_config(folder.parent / "tiny.yaml").inference,
        provenance={"note": "x" * 500 * version}, validation=None,
    )  # fmt: skip
    save_model(folder, card, {"w": torch.from_numpy(_noise(version))})


def _ensemble(folder: Path, version: int) -> None:
    folds = [folder.parent / f"trained{version}_{i}" for i in range(2)]
    for fold in folds:
        if not fold.exists():
            _model(fold, version)
    collect_models(folds, folder / "model", {"v": version}, load_config(folder.parent / "tiny.yaml").inference)


def _volume(folder: Path, version: int) -> None:
    array = (_noise(version, 20**3).reshape(20, 20, 20) > 0).astype(np.uint8)
    write_volume(folder / "case.nii.gz", array, Grid(array.shape, np.eye(4)), folder.parent / "d/case0_a.nii.gz")


def _checkpoint(folder: Path, version: int) -> None:
    save_checkpoint(folder, version, {"step": version, "w": torch.from_numpy(_noise(version))})


def _board(folder: Path, version: int) -> None:
    board = Board(folder, step=0, notice="PHANTOM DATA")
    board.path = folder / "events.out.tfevents.1"  # that of the run before, to be appended to
    for step in range(100):
        board.scalar("train/loss", float(version), step)
    board.flush()


def _report(folder: Path, version: int) -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:4, 2 : 3 + version] = 1
    files = {name: _once(folder.parent / f"masks{version}/{name}.nii.gz", mask) for name in ("x", "y")}
    scored, failures = score_folder(files, files, {"ball": [1]}, rule="challenge")
    write_metrics(folder, scored, {"ball": [1]}, rule="challenge", failures=failures, extra={"notice": f"v{version}"})


def _cache(folder: Path, version: int) -> None:
    settings = preprocessing_settings(load_config(folder.parent / "tiny.yaml").data)
    case = load_manifest(folder.parent / "d/dataset.json").cases[version]
    prepare(case, channels=["a", "b"], labels={"background": 0, "ball": 1}, settings=settings, folder=folder)


def _case_list(folder: Path, version: int) -> None:
    manifest = load_manifest(folder.parent / "d/dataset.json")
    write_json(folder / "held_out.json", manifest_content(manifest, manifest.cases[: 2 + version]))
    first, second = (case.images["a"][0] for case in manifest.cases[:2])
    write_list(manifest.path, folder / "dataset.json", {} if version == 1 else {first: second}, sums=True)


def _repaired(folder: Path, version: int) -> None:
    label = _once(folder.parent / f"label{version}.nii.gz", 0.9999 * (_noise(version, 10**3).reshape(10, 10, 10) > 0))
    case = Case("x", {"a": (folder.parent / "d/case0_a.nii.gz", None)}, label=label)
    copies, _ = write_repaired([case], folder.parent, folder)
    assert list(copies) == [label]


def _lock(folder: Path, version: int) -> None:
    with locked(folder):
        write_text(folder / "inside.txt", f"{version}" * 500)


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "bytes in pieces": lambda f, v: write_file(f / "x", lambda s: [s.write(bytes([v]) * 999) for _ in range(9)]),
    "text": lambda f, v: write_text(f / "config.yaml", f"{v}" * 5000),
    "json": lambda f, v: write_json(f / "plan.json", {"v": list(range(900 * v))}),
    "log of lines": lambda f, v: append_line(f / "log.jsonl", {"v": v, "text": "x" * 3000}),
    "curves": _board,
    "checkpoint": _checkpoint,
    "model": _model,
    "ensemble": _ensemble,
    "volume": _volume,
    "scores": _report,
    "cache": _cache,
    "case lists": _case_list,
    "repaired copies": _repaired,
    "phantom": lambda f, v: write_as_downloaded(f, "brats2021", heads=1, seed=v, spacing=8.0),
    "lock": _lock,
}


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill_up(writer: str, base: Path) -> int:
    """Runs in a process of its own."""
    write, old, new = WRITERS[writer], base / "old", base / "new"
    write(old, 1)
    shutil.copytree(old, new)
    write(new, 2)
    before, after = _contents(old), _contents(new)
    largest = max(len(content) for name, content in after.items() if before.get(name) != content)
    limits = sorted({k * (largest - 1) // (OFFSETS - 1) for k in range(OFFSETS)})
    assert len(limits) == OFFSETS
    for limit in limits:
        folder = base / "now"
        shutil.copytree(old, folder)
        with pytest.raises(OutputError) as raised, _largest_file(limit):
            write(folder, 2)
        assert raised.value.exit_code == EXIT_OUTPUT
        assert raised.value.why
        named = Path(raised.value.where)
        assert named.is_relative_to(folder), raised.value.where
        found = _contents(folder)
        assert not [name for name in found if TEMPORARY_PREFIX in name]
        assert found.get(str(named.relative_to(folder))) == before.get(str(named.relative_to(folder)))
        assert before.keys() <= found.keys() | {".lock"}
        assert writer != "ensemble" or found == before
        for name, content in found.items():  # each file is what it was, or complete
            complete = content in (before.get(name), after.get(name))
            assert complete or (writer == "curves" and content.startswith(before.get(name, b""))), (limit, name)
        shutil.rmtree(folder)
    return 0


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_at_32_offsets(tmp_path: Path, writer: str) -> None:
    tiny_config(tmp_path, tiny_dataset(tmp_path / "d", 3, (24, 20, 22)))
    with Running(fill_up, writer, tmp_path, log=tmp_path / "log") as running:
        assert running.wait() == 0, running.said()


def _sums(folder: Path) -> Content:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a finished ``run/``, and what ``infer`` and ``evaluate`` have made of it."""
    folder = tmp_path_factory.mktemp("disk")
    tiny_config(folder, tiny_dataset(folder / "d", 4, (12, 11, 13)))
    for verb, arguments in _commands(folder, folder / "first", epochs=2).items():
        with command(verb, *arguments, log=folder / f"{verb}.log") as running:
            assert running.wait() == 0, running.said()
    return folder


def _commands(folder: Path, output: Path, *, epochs: int) -> dict[str, list[object]]:
    settings = [f"train.epochs={epochs}", "train.patch_size=[8, 8, 8]", "train.select=best",
                "data.split={by: last, count: 1}"]  # fmt: skip
    cases = folder / "d/dataset.json"
    return {
        "train": ["--config", folder / "tiny.yaml", *[part for s in settings for part in ("--set", s)],
                  "--output", output / "run"],
        "infer": ["--model", folder / "first/run", "--input", cases, "--output", output / "out", "--probabilities",
                  "--overlap", "0.5" if epochs == 2 else "0.25"],
        "evaluate": ["--predictions", folder / "first/out", "--references", cases, "--output", output / "report"],
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "infer", "evaluate"])
def test_commands_on_a_full_disk(finished: Path, tmp_path: Path, verb: str, soak: bool) -> None:
    sizes = sorted(p.stat().st_size for p in (finished / "first").rglob("*") if p.is_file())
    limits = np.unique(np.geomspace(40, sizes[-1] - 1, OFFSETS).astype(int)).tolist()
    for limit in limits if soak else [limits[len(limits) // 2]]:
        output = tmp_path / str(limit)
        shutil.copytree(finished / "first", output)
        before = _sums(output)
        arguments = _commands(finished, output, epochs=3)[verb]
        with command(verb, *arguments, log=tmp_path / f"{limit}.log", file_size=int(limit)) as running:
            code, said = running.wait(), running.said()
        if (
            code == 0
        ):  # nothing that this command writes is so large; the report of more epochs may be smaller than the first
            written = [name for name, digest in _sums(output).items() if before.get(name) != digest]
            assert all((output / name).stat().st_size <= limit for name in written)
            assert written or verb != "train"
            continue
        assert code == EXIT_OUTPUT, said
        assert str(output) in said or os.environ["CMT_CACHE"] in said, said
        assert "Traceback" not in said
        assert before.keys() - _sums(output).keys() <= {"out/case0.nii.gz", "out/case0.json", "out/case0_prob.nii.gz"}
        assert not list(output.rglob(f"{TEMPORARY_PREFIX}*"))
        if verb == "train":
            assert load_newest(output / "run/checkpoints") is not None
            with contextlib.suppress(OSError), command(verb, *arguments, log=tmp_path / f"{limit}.again") as again:
                again.wait_for((output / "run/report/report.html").exists)
                assert again.wait() == 0, again.said()
            assert load_model(output / "run")[0].provenance["epochs"] == 3.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip("mounting is not allowed here; the limit on file sizes stands for it")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=False)


def test_a_run_on_a_small_disk(finished: Path, small_disk: Callable[[int], Path], tmp_path: Path, soak: bool) -> None:
    whole = sum(-(-p.stat().st_size // 4096) * 4096 for p in (finished / "first/run").rglob("*") if p.is_file())
    for k in range(OFFSETS) if soak else [OFFSETS // 2]:
        disk = small_disk(4096 * (4 + (whole // 4096 - 8) * k // (OFFSETS - 1)))
        arguments = _commands(finished, disk, epochs=2)["train"]
        with command("train", *arguments, log=tmp_path / f"{disk.name}.log") as running:
            code, said = running.wait(), running.said()
        assert code == EXIT_OUTPUT, said
        assert str(disk) in said
        assert "Traceback" not in said
        assert not (disk / "run/report/report.html").exists()
        if list((disk / "run").glob("checkpoints/*.pt")):
            assert load_newest(disk / "run/checkpoints") is not None
        if (disk / "run/model/model.json").exists():
            load_model(disk / "run")
        for path in (disk / "run").rglob("*.json"):
            json.loads(path.read_text())
