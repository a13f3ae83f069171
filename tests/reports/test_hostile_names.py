"""Names of cases and labels are data: none runs, none reaches another file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt_med.base.text import visible
from cmt_med.data.case import Case
from cmt_med.reports.html import write_report
from cmt_med.reports.scores import score_folder, write_metrics
from cmt_med.reports.text import json_for_page
from tests.browser import chromium, console, wait_for_case
from tests.helpers import save
from tests.hostile import NAMES


def hostile_report(folder: Path) -> Path:
    """A report in ``folder/report`` where every case and every label has a hostile name."""
    rng = np.random.default_rng(0)
    reference = np.zeros((10, 11, 12), np.uint8)
    reference[3:7, 3:7, 3:7] = 1
    reference[4:6, 4:6, 7:9] = 2
    prediction = np.roll(reference, 1, axis=0)
    files = {
        "reference": save(folder / "data/reference.nii.gz", reference),
        "prediction": save(folder / "data/prediction.nii.gz", prediction),
        "image": save(
            folder / "data/image.nii.gz", (reference + rng.normal(0, 0.2, reference.shape)).astype(np.float32)
        ),
    }
    targets = {name: [i + 1] for i, name in enumerate(NAMES)}
    predictions, references = (dict.fromkeys(NAMES, files[kind]) for kind in ("prediction", "reference"))
    scored, failures = score_folder(predictions, references, targets, rule="challenge")
    assert failures == []
    faults = [{"case": n, "code": n, "what": n, "where": n, "why": n, "fix": n} for n in NAMES]
    metrics = write_metrics(
        folder / "report", scored, targets, rule="challenge", failures=faults,
        extra={"notice": NAMES[0], "selection": NAMES[1], "run": {n: n for n in NAMES},
               "threshold_baseline": {n: {"dice": 0.5, "channel": n, "rule": n} for n in NAMES}},
    )  # fmt: skip
    cases = {name: Case(name, {NAMES[i - 1]: (files["image"], None)}) for i, name in enumerate(NAMES)}
    write_report(
        folder / "report", metrics, title=NAMES[2], cases=cases, predictions=predictions, references=references,
        settings="\n".join(NAMES), details={n: {n: n} for n in NAMES}, banner=NAMES[3],
    )  # fmt: skip
    return folder / "report"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_report(tmp_path_factory.mktemp("hostile"))


def test_no_name_escapes_its_folder(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {"metrics.csv", "metrics.json", "report.html", "volumes.json"}
    assert {path.name for path in report.parent.iterdir()} == {"data", "report"}
    assert len(list((report.parent / "data").iterdir())) == 3


def test_the_page_has_no_markup_but_its_own(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    before_scripts = text.split('<script type="application/json"')[0]
    assert "<script" not in before_scripts
    assert set(re.findall(r"<(img|svg|iframe|object|form|input|base|link|meta|plaintext|textarea)\b", before_scripts)) == {
        "img", "svg", "meta"
    }  # fmt: skip
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\u200b\u200f\x00]", text)  # directions are spelled out


def test_nothing_runs_in_a_browser(report: Path) -> None:
    with chromium(offline=True) as driver:
        driver.get((report / "report.html").as_uri())
        wait_for_case(driver, 0)
        for number in (1, 2, 3, 4, 5):
            driver.find_element("id", "viewer-next").click()
            wait_for_case(driver, number)
        facts: dict[str, Any] = driver.execute_script(
            "return {hit: window.hit ?? null, scripts: document.scripts.length, title: document.title,"
            " address: location.href, frames: frames.length, polluted: ({}).hit ?? null,"
            " handlers: [...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) =>"
            "   a.name.startsWith('on') || a.name === 'style' && !e.closest('#viewer'))).length,"
            " cases: [...document.querySelectorAll('.pictures figcaption strong')].map((e) => e.textContent),"
            " rows: document.querySelectorAll('main table').length}"
        )
        assert console(driver) == []
    assert facts["hit"] is None
    assert facts["polluted"] is None
    assert facts["scripts"] == 2
    assert facts["frames"] == 0
    assert facts["handlers"] == 0
    assert facts["title"] == visible(NAMES[2])
    assert facts["address"].endswith("report/report.html")
    assert set(facts["cases"]) <= {visible(name) for name in NAMES}
    assert len(facts["cases"]) == 24


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert visible("a\u202eb\n\0") == "a‹U+202E›b‹U+000A›‹U+0000›"
    assert visible("x" * 300, 100) == "x" * 66 + "…" + "x" * 33
    assert "<" not in json_for_page({"</script>": "<!--"})
