"""The pictures of docs/: ``python -m tests.screenshots REPORT_FOLDER docs`` (docs/results.md says of what)."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from cmt_med.reports.viewer import viewer_script
from tests.browser import chromium, wait_for, wait_for_case
from tests.test_view import TOKEN, served

WIDTH = 1000  # pixels
PARTS = {  # name -> the first element of the picture, and the first after it
    "report_phantom": (".banner", "details tbody:nth-of-type(2)"),
    "report_phantom_figures": ("#distributions", "#cases"),
    "report_phantom_volumes": ("#volumes", "#provenance"),
    "report_phantom_case": ("#cases", ".pictures figure:nth-child(3)"),
}


def main() -> None:
    """Draw a report, part by part, and the local page of ``cmt-med view``."""
    report, folder = (Path(argument) for argument in sys.argv[1:3])
    with chromium(offline=True) as driver:
        driver.get((report / "report.html").as_uri())
        wait_for_case(driver, 0)
        driver.execute_script("for (const i of document.images) i.loading = 'eager'")
        wait_for(driver, lambda: driver.execute_script("return [...document.images].every((i) => i.complete)"))
        for name, (first, after) in PARTS.items():
            top, bottom = (
                driver.execute_script(
                    "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY", selector
                )
                for selector in (first, after)
            )
            _save(folder / f"{name}.png", _part(driver, max(0, top - 12), bottom - 2))
    with served(report, viewer_script() or "") as port, chromium(offline=False) as driver:
        driver.get(f"http://127.0.0.1:{port}/{TOKEN}/")
        wait_for_case(driver, 0)
        height = driver.execute_script("return document.documentElement.scrollHeight")
        _save(folder / "view_phantom.png", _part(driver, 0, min(height, 1400)))


def _part(driver: Any, top: float, bottom: float) -> Image.Image:
    width = driver.execute_script("return document.documentElement.clientWidth")
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def _save(path: Path, picture: Image.Image) -> None:
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    # an octree keeps the colours of small areas, such as of labels
    picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width}×{picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
