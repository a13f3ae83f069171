"""Every task in 2D and 3D, by one process and by two: trained, killed, resumed to the same weights, inferred, scored."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.launch.command import run_command
from cmt_med.tasks import TASKS
from tests.helpers import save
from tests.processes import Running, cmt_med_main

SMALL = "{stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, attention: [identity, identity], kv_strides: [2, 1]}"
NETWORKS = {"classification": "cmt_classifier", "detection": "cmt_detector"}
WRITTEN = {"classification": ".json", "detection": ".boxes.json"}
EPOCHS = 6
SOAK = bool(os.environ.get("CMT_SOAK"))


def data_set(folder: Path, dims: int) -> Path:
    """Six images of a bright block, whose place is the class; its label map, number and box follow from it."""
    rng = np.random.default_rng(0)
    shape = (24, 20, 12 if dims == 3 else 1)
    entries = []
    for i in range(6):
        label = np.zeros(shape, np.uint8)
        first = 2 + 10 * (i % 2)
        label[first : first + 8, 4:12, : 8 if dims == 3 else 1] = 1
        save(folder / f"i{i}.nii.gz", rng.normal(0, 1, shape).astype(np.float32) + 4 * label)
        save(folder / f"l{i}.nii.gz", label)
        save(folder / f"o{i}.nii.gz", label.astype(np.uint16) * (300 + i))
        entries.append({"id": f"c{i}", "image": f"i{i}.nii.gz", "label": f"l{i}.nii.gz", "class": f"k{i % 2}",
                        "instances": f"o{i}.nii.gz"})  # fmt: skip
    path = folder / "list.json"
    path.write_text(
        json.dumps({"modality": {"0": "a"}, "labels": {"0": "background", "1": "part"}, "training": entries})
    )
    return path


def config(folder: Path, task: str, dims: int, network: str | None = None) -> Path:
    path = folder / "x.yaml"
    size = [16, 16, 8][:dims]
    path.write_text("\n".join([
        "name: x", "output: unused", f"task: {task}",
        f"data: {{manifest: {data_set(folder / 'd', dims)}, channels: [a], split: {{by: last, count: 2}}, workers: 0}}",
        f"network: {{name: {network or NETWORKS.get(task, 'cmt_unetr')}, spatial_dims: {dims}, options: {SMALL}}}",
        f"train: {{epochs: {EPOCHS}, patch_size: {size}, batch_size: 2, validate_every: 3}}",
        *(["pretraining: {block: 4}"] if task == "pretraining" else []),
    ]))  # fmt: skip
    return path


def start(file: Path, output: Path, ranks: int) -> list[Running]:
    """The processes of one job."""
    arguments = ["--config", str(file), "--output", str(output), "--threads", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    jobs = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]
    return [
        Running(cmt_med_main, "train", arguments, log=output.with_suffix(f".{rank}.log"), environment=job)
        for rank, job in enumerate(jobs)
    ]


def finish(file: Path, output: Path, ranks: int) -> bytes:
    running = start(file, output, ranks)
    codes = [one.wait() for one in running]
    assert codes == [0] * ranks, "".join(one.said() for one in running)
    return (output / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(("dims", "ranks"), [(2, 1), (2, 2), (3, 1), *([(3, 2)] if SOAK else [])])
@pytest.mark.parametrize("task", TASKS)
def test_trained_killed_resumed_inferred_and_scored(tmp_path: Path, task: str, dims: int, ranks: int) -> None:
    file = config(tmp_path, task, dims)
    weights = finish(file, tmp_path / "whole", ranks)
    cut = start(file, tmp_path / "cut", ranks)
    try:
        cut[0].wait_for(lambda: bool(list((tmp_path / "cut").glob("checkpoints/step-*.pt"))))
    finally:
        for one in cut:
            one.kill()
    assert finish(file, tmp_path / "cut", ranks) == weights
    metrics = json.loads((tmp_path / "cut/report/metrics.json").read_text())
    assert set(metrics["cases"]) == {"c4", "c5"}
    out, scores = tmp_path / "out", tmp_path / "scores"
    asked = ["--model", str(tmp_path / "cut"), "--input", str(tmp_path / "d/list.json"), "--output", str(out)]
    if task == "pretraining":
        assert run_command(infer, asked) == 64
        return
    assert run_command(infer, asked) == 0
    assert all((out / f"c{i}{WRITTEN.get(task, '.nii.gz')}").is_file() for i in range(6))
    references = ["--predictions", str(out), "--references", str(tmp_path / "d/list.json"), "--output", str(scores)]
    assert run_command(evaluate, references) == 0
    scored = json.loads((scores / "metrics.json").read_text())
    assert set(scored["cases"]) == {f"c{i}" for i in range(6)}
    assert len(scored["trained_on"]) == 4
    assert (scores / "report.html").is_file()


@pytest.mark.parametrize(
    ("task", "network"),
    [("detection", "cmt_detr"), ("detection", "cmt_retinanet"), ("instances", "cmt_mask_queries")],
)
def test_other_heads_in_two_processes(tmp_path: Path, task: str, network: str) -> None:
    """Each parameter has its gradient in every step, or the processes would wait for one another."""
    file = config(tmp_path, task, 2, network)
    assert finish(file, tmp_path / "run", 2)
