"""What the report's page says, read as text."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.base.files import sha256
from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.reports.html import rank_cases
from tests.helpers import save

SHAPE = (12, 12, 12)


def cube(edge: int) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2 : 2 + edge, 2 : 2 + edge, 2 : 2 + edge] = 1
    return labels


def cells(row: str) -> list[str]:
    """The texts of a table's row."""
    found = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
    return [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in found]


def table(page: str, label: str) -> tuple[str, list[list[str]]]:
    """The caption and the rows of the table that is called ``label``."""
    text = page[page.index(f'aria-label="{label}"') :].split("</table>")[0]
    caption = re.search(r"<caption>(.*?)</caption>", text, re.S)
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", caption[1])) if caption else ""
    return plain, [cells(row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.S)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Predictions in ``p`` and references in ``r``: two found, one missed, one invented, one empty, two failed."""
    cases = {"found": (4, 4), "part": (3, 4), "missed": (0, 4), "invented": (3, 0), "empty": (0, 0)}
    for name, (predicted, reference) in cases.items():
        save(tmp_path / f"p/{name}.nii.gz", cube(predicted))
        save(tmp_path / f"r/{name}.nii.gz", cube(reference))
    for name in ("absent", "lost"):
        save(tmp_path / f"r/{name}.nii.gz", cube(4))
    return tmp_path


def evaluated(folder: Path, rule: str) -> str:
    arguments = ["--predictions", str(folder / "p"), "--references", str(folder / "r"), "--output", str(folder / "o"),
                 "--labels", "ball=1", "--empty", rule]  # fmt: skip
    assert run_command(evaluate, arguments) == 2
    return (folder / "o/report.html").read_text()


def test_the_first_table_says_what_each_mean_is_of(folder: Path) -> None:
    caption, (head, ball, mean) = table(evaluated(folder, "skip"), "Means with intervals")
    assert head[0] == "target"
    assert head[-4:] == ["empty references", "missed", "false positives", "failed"]
    part = 2 * 27 / (27 + 64)
    assert re.fullmatch(rf"{(1 + part) / 3:.4f} \[0\.0000, 1\.0000\], n 3", ball[1])
    assert ball[-4:-1] == ["2", "1", "1"]
    assert mean[0] == "mean over targets"
    assert mean[1] == ball[1]
    assert "of 5 scored cases" in caption
    assert "Rule skip: empty reference: the case is left out of every mean" in caption
    assert "missed (prediction empty, reference not)" in caption
    _, (_, ball, _) = table(evaluated(folder, "challenge"), "Means with intervals")
    assert ball[1].endswith("n 5")


def test_cases_without_a_score_stand_apart(folder: Path) -> None:
    page = evaluated(folder, "skip")
    worst, apart = page[page.index('<h2 id="cases">') :].split("<h3>Cases without a score</h3>")
    assert re.findall(r"<strong><bdi>(\w+)", worst) == ["missed", "part", "found"]
    assert re.findall(r"<strong><bdi>(\w+)", apart.split("<h3>")[0]) == ["invented", "empty"]
    assert "2 cases have no Dice" in apart
    assert "Cases without a score" not in evaluated(folder, "challenge")


def test_ranking() -> None:
    def row(dice: float | None, reference: int = 9, predicted: int = 9) -> dict[str, dict[str, float | None]]:
        return {"a": {"dice": dice, "reference_voxels": reference, "predicted_voxels": predicted}}

    cases = {"best": row(0.9), "e1": row(None, 0, 0), "fp": row(None, 0, 5), "worst": row(0.1), "more": row(None, 0, 7)}
    assert rank_cases(cases, ["a"]) == (["worst", "best"], ["more", "fp", "e1"])


def test_the_page_says_how_it_came_about(folder: Path) -> None:
    run = {"model": "balls", "labels": {"ball": 1}, "targets": {"ball": [1]}, "network": {"name": "cmt_unetr"},
           "weights_sha256": "0123abcd", "provenance": {"data_set": "made up"}}  # fmt: skip
    (folder / "p/run.json").write_text(json.dumps(run))
    page = evaluated(folder, "nan")
    metrics = json.loads((folder / "o/metrics.json").read_text())
    assert metrics["evaluation"]["command"].startswith(f"cmt-med evaluate --predictions {folder / 'p'} ")
    assert "--labels ball=1 --empty nan" in metrics["evaluation"]["command"]
    assert len(metrics["evaluation"]["references_sha256"]) == 64
    said = page[page.index('<h2 id="provenance">') :].split("<script")[0]
    assert re.findall(r"<h3>(.*?)</h3>", said) == ["Evaluation", "Model card", "Provenance"]
    for text in (metrics["evaluation"]["references_sha256"], "cmt_unetr", "0123abcd", "made up"):
        assert text in said


def test_a_case_list_is_named_with_its_sum(folder: Path) -> None:
    listed = folder / "list.json"
    entries = [{"id": "found", "image": "r/found.nii.gz", "label": "r/found.nii.gz"}]
    listed.write_text(json.dumps({"labels": {"0": "background", "1": "ball"}, "training": entries}))
    arguments = ["--predictions", str(folder / "p"), "--references", str(listed), "--output", str(folder / "o"),
                 "--labels", "ball=1"]  # fmt: skip
    assert run_command(evaluate, arguments) == 0
    made = json.loads((folder / "o/metrics.json").read_text())["evaluation"]
    assert made["references"] == str(listed)
    assert made["references_sha256"] == sha256(listed)
