"""A report and ``cmt-med view`` by keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.reports.viewer import viewer_script
from tests.browser import PURE, accumulator, chromium, console, count, require_browser, set_opacity, wait_for_case
from tests.helpers import known_errors
from tests.test_view import TOKEN, served

Voxel = tuple[int, int, int]


@pytest.fixture(scope="module", params=["report", "view"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[Voxel]]]:
    """A browser at a report, or at the local page, and the largest errors of its two cases."""
    require_browser()
    folder = tmp_path_factory.mktemp("keys")
    manifest, errors = known_errors(folder)
    arguments = ["--predictions", str(folder / "p"), "--references", str(manifest), "--output", str(folder / "r")]
    assert run_command(evaluate, arguments) == 0
    if request.param == "report":
        with chromium(offline=True) as driver:
            driver.get((folder / "r/report.html").as_uri())
            wait_for_case(driver, 0)
            yield driver, errors
        return
    with served(folder / "r", viewer_script() or "") as port, chromium(offline=False) as driver:
        driver.get(f"http://127.0.0.1:{port}/{TOKEN}/")
        wait_for_case(driver, 0)
        yield driver, errors


def press(driver: Any, *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def place(driver: Any) -> Voxel:
    """Where the cross is, in mm, as the page says it."""
    x, y, z = driver.find_element(By.CSS_SELECTOR, "#viewer .location").text.split("×")[:3]
    return int(x), int(y), int(z)


def focus(driver: Any, selector: str) -> None:
    driver.execute_script("document.querySelector(arguments[0]).focus()", selector)


def opacity(driver: Any) -> list[float]:
    """Of reference and prediction."""
    text = driver.execute_script("return document.getElementById('viewer').dataset.opacity")
    return [float(part) for part in text.split()]


def test_the_largest_error_is_found_again(page: tuple[Any, list[Voxel]]) -> None:
    driver, errors = page
    assert place(driver) == errors[0]  # a case opens there
    focus(driver, "#viewer canvas")
    press(driver, *"hhhkkkuuuu")
    x, y, z = errors[0]
    assert place(driver) == (x - 3, y + 3, z + 4)
    press(driver, *"ljd")
    assert place(driver) == (x - 2, y + 2, z + 3)
    press(driver, "e")
    assert place(driver) == errors[0]


def test_next_and_previous_case(page: tuple[Any, list[Voxel]]) -> None:
    driver, errors = page
    for key, case in (("n", 1), ("n", 0), ("p", 1), ("p", 0)):  # both ways, around the end
        press(driver, key)
        wait_for_case(driver, case)
        assert place(driver) == errors[case]
    focus(driver, "#viewer select")
    press(driver, "e")
    assert driver.execute_script("return document.getElementById('viewer').dataset.case") == "0"  # letters choose there


def test_each_label_has_a_key(page: tuple[Any, list[Voxel]]) -> None:
    driver, _ = page
    focus(driver, "#viewer canvas")

    def shown() -> list[bool]:
        boxes = driver.find_elements(By.CSS_SELECTOR, "[id^=viewer-label-]")
        return [box.is_selected() for box in boxes]

    set_opacity(driver, "reference", 0)
    set_opacity(driver, "prediction", 1)
    assert count(accumulator(driver), PURE) > 200
    for key in range(1, 10):
        press(driver, str(key))
        assert shown() == [i >= key for i in range(9)]
    assert count(accumulator(driver), PURE) == 0
    press(driver, *"123456789")
    assert all(shown())
    assert count(accumulator(driver), PURE) > 200
    set_opacity(driver, "reference", 0.45)
    set_opacity(driver, "prediction", 0.55)


def test_sliders_and_layers(page: tuple[Any, list[Voxel]]) -> None:
    driver, _ = page
    before = opacity(driver)
    focus(driver, "#viewer-prediction-opacity")
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert opacity(driver) == pytest.approx([before[0], before[1] + 0.1])
    press(driver, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    press(driver, "w")
    assert opacity(driver) == pytest.approx([0, before[1]])
    press(driver, "w", "q")
    assert opacity(driver) == pytest.approx([before[0], 0])
    press(driver, "q", "o")
    assert driver.find_element(By.ID, "viewer-outlines").is_selected()
    press(driver, "o")
    assert opacity(driver) == pytest.approx(before)


def test_tab_order_and_skip_link(page: tuple[Any, list[Voxel]]) -> None:
    driver, _ = page
    driver.refresh()
    wait_for_case(driver, 0)
    reached: list[tuple[str, str, bool]] = []
    for _ in range(60):
        press(driver, Keys.TAB)
        reached.append(
            tuple(
                driver.execute_script(
                    "const e = document.activeElement; const r = e.getBoundingClientRect();"
                    "return [e.id || e.getAttribute('aria-label') || e.textContent.trim(), getComputedStyle(e).outlineStyle,"
                    " r.right > 0 && r.width > 0]"
                )
            )
        )
        if reached[-1][0] == "Image with prediction and reference":
            break
    names = [name for name, _, _ in reached]
    is_report = not driver.current_url.startswith("http")
    assert all(outline == "solid" and seen for _, outline, seen in reached), reached  # what has the focus shows it
    assert names[0] == ("to the scores" if is_report else "viewer-previous")
    inside = names[names.index("viewer-previous") :]
    wanted = ["viewer-previous", "viewer-next", "viewer-error", "viewer-reference", "viewer-reference-opacity",
              "viewer-prediction", "viewer-prediction-opacity", "viewer-outlines",
              *(f"viewer-label-{i}" for i in range(9)), "Image with prediction and reference"]  # fmt: skip
    assert [name for name in inside if name in wanted] == wanted
    if is_report:
        focus(driver, ".skip")
        press(driver, Keys.ENTER, Keys.TAB)
        label = driver.execute_script("return document.activeElement.getAttribute('aria-label')")
        assert label == "Means with intervals"
    assert console(driver) == []
