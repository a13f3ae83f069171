"""report.html in a browser without a network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from cmt_med.data.conventions.names import canonical_label
from cmt_med.data.phantom import BANNER, make_phantom
from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.browser import accumulator, check_layers, chromium, console, wait_for_case
from tests.helpers import tiny_config, tiny_dataset
from tests.test_real_data import CONFIGS


@pytest.fixture(scope="module")
def offline() -> Iterator[Any]:
    with chromium(offline=True) as driver:
        yield driver


def damaged_predictions(manifest: Path, folder: Path, targets: dict[str, list[int]], *, notice: str = "") -> Path:
    """An inference folder that nobody inferred: each reference, moved by a voxel and partly eaten away."""
    folder.mkdir()
    content = json.loads(manifest.read_text())
    names = []
    for number, entry in enumerate(content["training"]):
        image = nib.load(manifest.parent / entry["label"])
        labels = np.roll(np.asarray(image.dataobj).astype(np.uint8), number % 3, axis=number % 3)
        labels[ndimage.gaussian_filter(np.random.default_rng(number).normal(size=labels.shape), 2) > 0.12] = 0
        names.append(entry.get("id", Path(entry["label"]).name.removesuffix(".nii.gz")))
        nib.save(nib.Nifti1Image(labels, image.affine), folder / f"{names[-1]}.nii.gz")
        channels = entry["image"] if isinstance(entry["image"], dict) else {"image": ""}
        (folder / f"{names[-1]}.json").write_text(json.dumps({"input_sha256": channels}))
    values = {canonical_label(name): int(value) for value, name in content["labels"].items()}
    run = {"model": "none", "targets": targets, "labels": values, "cases": names, "failed": [], "notice": notice}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def drive(driver: Any, report: Path) -> dict[str, int]:
    """What must work in every report: two layers, next case, opacity, keys, and nothing to complain about."""
    driver.get(report.as_uri())
    wait_for_case(driver, 0)
    found = check_layers(driver)
    first = accumulator(driver)
    driver.find_element(By.ID, "viewer-next").click()
    wait_for_case(driver, 1)
    second = accumulator(driver)
    found["changed by the next case"] = int((np.abs(second - first).max(axis=-1) > 20).sum())
    assert found["changed by the next case"] > 500, found
    keys = ActionChains(driver)
    keys.send_keys("p").perform()
    wait_for_case(driver, 0)
    assert np.abs(accumulator(driver) - first).max() <= 20  # the same case looks the same again
    keys.reset_actions()
    keys.send_keys("e").perform()
    keys.reset_actions()
    keys.send_keys("q").perform()  # prediction off
    assert driver.execute_script("return document.getElementById('viewer').dataset.opacity") == "0 0"
    assert console(driver) == []
    return found


def test_a_tiny_run(tmp_path: Path, offline: Any) -> None:
    manifest = tiny_dataset(tmp_path / "d")
    config = ["--config", str(tiny_config(tmp_path, manifest)), "--set", "train.epochs=12"]
    assert run_command(train, config) == 0
    report = tmp_path / "run/report/report.html"
    print(drive(offline, report))
    text = report.read_text()
    for heading in ("Model card", "Environment", "Provenance", "Settings", "Training", "Volumes", "Distributions"):
        assert f">{heading}<" in text, heading
    # nothing is asked for: no address outside the page, but in the viewer's script and in the settings
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text.split("<script>")[0])


def test_the_phantom(tmp_path: Path, offline: Any) -> None:
    manifest = tmp_path / "phantom.json"
    make_phantom(manifest, tmp_path / "phantom", heads=4, spacing=4.0, processes=1)
    predictions = damaged_predictions(
        manifest, tmp_path / "p", {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}, notice=BANNER
    )
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, arguments) == 0
    print(drive(offline, tmp_path / "r/report.html"))
    assert offline.find_element(By.CLASS_NAME, "banner").text == BANNER


def hippocampus(real_data: Path, folder: Path, count: int) -> Path:
    """A case list of the first real hippocampi."""
    source = json.loads((real_data / "hippocampus/dataset.json").read_text())
    for entry in source["training"]:
        for key in ("image", "label"):
            entry[key] = str((real_data / "hippocampus" / entry[key]).resolve())
    manifest = folder / "hippocampus.json"
    manifest.write_text(json.dumps(source | {"training": source["training"][:count], "test": []}))
    return manifest


@pytest.mark.data
def test_a_fold_of_the_hippocampus(tmp_path: Path, real_data: Path, offline: Any) -> None:
    """The report that a short training on real cases leaves, of what it has not seen."""
    network = ("network.options={stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, full_channels: 4,"
               " attention: [lightweight, lightweight], kv_strides: [4, 2]}")  # fmt: skip
    sets = [f"data.manifest={hippocampus(real_data, tmp_path, 10)}", "data.split={by: fold, fold: 0, folds: 5}", network,
            "data.workers=0", "train.epochs=36", "optimizer.lr=1e-2", "augmentation.affine=0.0",
            "train.patch_size=[32, 40, 32]", "inference.window=[32, 40, 32]"]  # fmt: skip
    arguments = ["--config", str(CONFIGS / "hippocampus.yaml"), "--output", str(tmp_path / "run")]
    assert run_command(train, [*arguments, *[part for one in sets for part in ("--set", one)]]) == 0
    metrics = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert len(metrics["cases"]) == 2
    assert metrics["summary"]["mean"]["mean"] > 0.5
    print(drive(offline, tmp_path / "run/report/report.html"))
    assert offline.find_element(By.CSS_SELECTOR, "#training + figure img").get_attribute("naturalWidth") != "0"


@pytest.mark.data
def test_of_many_cases_the_worst_and_the_best_are_drawn(tmp_path: Path, real_data: Path, offline: Any) -> None:
    manifest = hippocampus(real_data, tmp_path, 30)
    predictions = damaged_predictions(manifest, tmp_path / "p", {"anterior": [1], "posterior": [2]})
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, arguments) == 0
    print(drive(offline, tmp_path / "r/report.html"))
    page = (tmp_path / "r/report.html").read_text()
    assert page.count("<figcaption><strong>") == 24  # of 30 cases, as the page says
    assert "Of 30 cases, the 24 worst and best are drawn" in page


def test_without_the_viewer_the_pictures_stand_alone(
    tmp_path: Path, offline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt_med.reports.html.viewer_script", lambda: None)
    manifest = tiny_dataset(tmp_path / "d", cases=2)
    predictions = damaged_predictions(manifest, tmp_path / "p", {"ball": [1]})
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, arguments) == 0
    text = (tmp_path / "r/report.html").read_text()
    assert "<script" not in text
    assert "make viewer" in text
    offline.get((tmp_path / "r/report.html").as_uri())
    sizes = offline.execute_script("return [...document.images].map((i) => (i.loading = 'eager', i.naturalWidth))")
    assert len(sizes) == 4
    assert console(offline) == []


def test_dark_light_and_print(tmp_path: Path, offline: Any) -> None:
    manifest = tiny_dataset(tmp_path / "d", cases=2)
    predictions = damaged_predictions(manifest, tmp_path / "p", {"ball": [1]})
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, arguments) == 0
    grounds = {}
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        offline.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        offline.get((tmp_path / "r/report.html").as_uri())
        wait_for_case(offline, 0)
        grounds[scheme] = offline.execute_script("return getComputedStyle(document.body).backgroundColor")
        for selector in ("body", "a", ".note", ".hint", ".location", "caption", "button"):
            assert contrast(offline, selector) >= 4.5, (scheme, selector)
        assert offline.execute_script("return getComputedStyle(document.querySelector('.plot')).filter") == (
            "invert(1) hue-rotate(180deg)" if scheme == "dark" else "none"
        )
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}
    offline.execute_script("for (const e of document.querySelectorAll('details')) e.open = false")
    assert not offline.execute_script(CLOSED_IS_SHOWN)
    dark_print = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    offline.execute_cdp_cmd("Emulation.setEmulatedMedia", dark_print)
    shown = offline.execute_script("return getComputedStyle(document.getElementById('viewer')).display")
    closed = offline.execute_script(CLOSED_IS_SHOWN)
    inverted = offline.execute_script("return getComputedStyle(document.querySelector('.plot')).filter")
    on_white = contrast(offline, ".note", ground="rgb(255, 255, 255)")
    printed = offline.execute_cdp_cmd("Page.printToPDF", {})["data"]
    offline.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert shown == "none"
    assert closed
    assert inverted == "none"
    assert on_white >= 4.5
    assert len(printed) > 50_000


# Whether what closed details contain takes room on the page.
CLOSED_IS_SHOWN = """return [...document.querySelectorAll('details')].every((d) => {
    const inside = d.lastElementChild;
    return inside.checkVisibility({contentVisibilityAuto: true}) && inside.getBoundingClientRect().height > 20;
})"""


def contrast(driver: Any, selector: str, ground: str | None = None) -> float:
    """WCAG's contrast of the text of an element with the page."""
    colours = driver.execute_script(
        "return [document.querySelector(arguments[0]), document.body].map((e, i) =>"
        " getComputedStyle(e)[i ? 'backgroundColor' : 'color'])",
        selector,
    )
    light, dark = sorted((luminance(colours[0]), luminance(ground or colours[1])), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_policy_lets_no_other_script_run(tmp_path: Path, offline: Any) -> None:
    manifest = tiny_dataset(tmp_path / "d", cases=2)
    predictions = damaged_predictions(manifest, tmp_path / "p", {"ball": [1]})
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(tmp_path / "r")]
    assert run_command(evaluate, arguments) == 0
    text = (tmp_path / "r/report.html").read_text()
    policy = html.unescape(re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)[0])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["style-src"])
    assert text.index("Content-Security-Policy") < text.index("<style") < text.index("<script")
    injected = (
        "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'><a id=bad href='javascript:window.hit = 3'>x</a>"
        "<iframe srcdoc='<script>parent.hit = 4</script>'></iframe><style>main { display: none }</style>"
    )
    (tmp_path / "r/attacked.html").write_text(text.replace("<main>", f"<main>{injected}", 1))
    (tmp_path / "r/bare.html").write_text(
        re.sub("<meta http-equiv[^>]*>", "", text).replace("<main>", f"<main>{injected}", 1)
    )
    offline.get((tmp_path / "r/bare.html").as_uri())
    assert offline.execute_script("return window.hit") is not None  # it would run, but for the policy
    console(offline)
    offline.get((tmp_path / "r/attacked.html").as_uri())
    wait_for_case(offline, 0)  # and the page's own does
    offline.execute_script("document.getElementById('bad').click()")
    assert offline.execute_script("return window.hit ?? null") is None
    assert offline.execute_script("return getComputedStyle(document.querySelector('main')).display") == "block"
    refused = [line for line in console(offline) if "Content Security Policy" in line]
    assert len(refused) >= 4
