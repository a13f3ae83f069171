"""The commands of the five-minute page, each of them run as it stands there (for two epochs)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cmt_med.convert import convert
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.runs.test_every_format import TINY, ball, nifti

DOCS = Path(__file__).parents[1] / "docs"
VERBS = {"convert": convert, "evaluate": evaluate, "infer": infer, "init": init, "inspect": inspect, "train": train}


def commands(page: Path) -> list[str]:
    """The lines of the page's blocks that are commands."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("cmt-med ")]


def test_your_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        image, label = ball(i)
        nifti(tmp_path / f"my_data/images/p{i}.nii.gz", image.astype("int16"))
        nifti(tmp_path / f"my_data/labels/p{i}.nii.gz", label)
    for i in range(2):
        image, label = ball(10 + i)
        nifti(tmp_path / f"new_images/n{i}.nii.gz", image.astype("int16"))
        nifti(tmp_path / f"new_labels/n{i}.nii.gz", label)
    found = commands(DOCS / "your_data.md")
    assert len(found) >= 8
    assert {shlex.split(line)[1] for line in found} == set(VERBS)
    for line in found:
        _, verb, *words = shlex.split(line)
        if verb == "train":
            for item in ("train.epochs=2", "train.patch_size=[16, 16, 8]", f"network.options={TINY}", "data.workers=0"):
                words += ["--set", item]
        assert run_command(VERBS[verb], words) == 0, f"{line}\n{capfd.readouterr()}"
    for file in (
        "runs/my/report/report.html",
        "scores/report.html",
        "Dataset007_Mine/dataset.json",
        "runs/again/model",
    ):
        assert (tmp_path / file).exists()


def test_links_lead_somewhere() -> None:
    """Every relative link of the guides, with its heading."""
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "data_manifests/README.md"):
        for link in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text()):
            target = (page.parent / link[0]).resolve() if link[0] else page
            assert target.exists(), f"{page}: {link[0]}"
            if link[1] and target.suffix == ".md":
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                names = {"#" + re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert link[1] in names, f"{page}: {link}"
