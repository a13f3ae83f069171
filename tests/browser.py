"""A headless browser for tests, and what they need of the machine."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from cmt_med.reports.planes import PALETTE, colour_of, tinted
from cmt_med.reports.viewer import viewer_script

PURE = (230, 97, 1)  # the first label in the prediction


def require_browser() -> None:
    """Skip without Chromium, its driver or the built viewer; fail where no such test may skip."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if viewer_script() is None:
        missing.append("the built viewer (make viewer)")
    if not missing:
        return
    if os.environ.get("CMT_REQUIRE_DATA"):
        pytest.fail(f"{', '.join(missing)} missing, and here no such test may skip")
    pytest.skip(f"needs {', '.join(missing)} (Debian: chromium, chromium-driver, nodejs, npm)")


@contextmanager
def chromium(*, offline: bool) -> Iterator[Any]:
    """A browser that draws WebGL2 in software."""
    require_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
                     "--disable-dev-shm-usage", "--window-size=1300,1000"):  # fmt: skip
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's own does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        if offline:
            driver.execute_cdp_cmd("Network.enable", {})
            driver.execute_cdp_cmd(
                "Network.emulateNetworkConditions",
                {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
            )
        yield driver
    finally:
        driver.quit()


def wait_for(driver: Any, reached: Callable[[], object], seconds: float = 60) -> None:
    """Until ``reached`` is true."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"not reached; the page is {driver.current_url}"
        time.sleep(0.1)


def wait_for_case(driver: Any, number: int, seconds: float = 60) -> None:
    """Until the viewer shows the case of that number."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state, case = driver.execute_script(
            "const v = document.getElementById('viewer').dataset; return [v.state, v.case]"
        )
        if state == "failed":
            break
        if state == "ready" and case == str(number):
            return
        time.sleep(0.1)
    pytest.fail(f"case {number} is not shown: {driver.find_element(By.CSS_SELECTOR, '#viewer .status').text}")


def set_opacity(driver: Any, layer: str, value: float) -> None:
    """Move a layer's slider, as a hand would."""
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        f"viewer-{layer}-opacity",
        value,
    )


def accumulator(driver: Any) -> NDArray[np.int16]:
    """What the viewer's canvas shows, (H, W, 3)."""
    # two frames, so that what was asked for is drawn
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    picture = driver.find_element(By.CSS_SELECTOR, "#viewer canvas").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.int16)


def count(pixels: NDArray[np.int16], *colours: tuple[int, int, int], tolerance: int = 12) -> int:
    """Pixels of about one of these colours."""
    near = [np.abs(pixels - np.array(colour)).max(axis=-1) <= tolerance for colour in colours]
    return int(np.logical_or.reduce(near).sum())


def check_layers(driver: Any) -> dict[str, int]:
    """Both layers are drawn, each follows its opacity, and labels can be hidden; counts of pixels of any label."""
    found = {}
    labels = driver.find_elements(By.CSS_SELECTOR, "[id^=viewer-label-]")
    pure = [colour_of(i) for i in range(min(len(labels), len(PALETTE)))]
    for layer, other, colours in (
        ("prediction", "reference", pure), ("reference", "prediction", [tinted(colour) for colour in pure]),
    ):  # fmt: skip
        set_opacity(driver, other, 0)
        set_opacity(driver, layer, 1)
        found[layer] = count(accumulator(driver), *colours)
        set_opacity(driver, layer, 0.4)
        found[f"{layer} at 0.4"] = count(accumulator(driver), *colours)
        set_opacity(driver, layer, 0)
        found[f"{layer} at 0"] = count(accumulator(driver), *colours)
        assert found[layer] > 200, found
        assert found[f"{layer} at 0.4"] < found[layer] / 10, found
        assert found[f"{layer} at 0"] == 0, found
    set_opacity(driver, "prediction", 1)
    for label in labels:
        label.click()
    found["labels hidden"] = count(accumulator(driver), *pure)
    assert found["labels hidden"] == 0, found
    for label in labels:
        label.click()
    return found


def console(driver: Any) -> list[str]:
    """What the page wrote to the console, but for the driver's own notes on software drawing."""
    lines = [str(entry["message"]) for entry in driver.get_log("browser")]
    return [line for line in lines if "GL Driver Message" not in line]
