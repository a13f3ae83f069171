"""The local page of ``cmt-med view``: a list of cases, and their volumes by number. It needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.requests import Request

from cmt_med.base.errors import CmtError
from cmt_med.base.text import visible
from cmt_med.evaluation.summary import case_mean
from cmt_med.reports.guard import Guard
from cmt_med.reports.listing import CaseFiles
from cmt_med.reports.sources import Source
from cmt_med.reports.viewer import MAX_TITLE, label_list, style_sheet
from cmt_med.reports.volumes import (
    Shown,
    coarsened,
    display_window,
    largest_error,
    load_shown,
    nifti_bytes,
)

MAX_VOXELS = 48_000_000  # of a volume sent to the browser, which needs several times 4 bytes for each
NIFTI = "application/octet-stream"


def make_app(source: Source, script: str, *, token: str, port: int) -> Guard:
    """The application, behind its guard; what it serves is fixed here, no request names a file."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    volumes = _Volumes(source)
    page = _page(source)
    style = style_sheet()

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/viewer.js")
    async def viewer() -> Response:
        return Response(script, media_type="text/javascript; charset=utf-8")

    @app.get("/page.css")
    async def css() -> Response:
        return Response(style, media_type="text/css; charset=utf-8")

    @app.get("/cases.json")
    async def cases() -> JSONResponse:
        return JSONResponse(_cases(source))

    @app.get("/case/{index}")
    async def case(index: int) -> JSONResponse:
        return JSONResponse(await volumes.details(index))

    @app.get("/case/{index}/image/{channel}")
    async def image(index: int, channel: int) -> Response:
        return Response(await volumes.image(index, channel), media_type=NIFTI)

    @app.get("/case/{index}/{layer}")
    async def labels(index: int, layer: str) -> Response:
        return Response(await volumes.labels(index, layer), media_type=NIFTI)

    @app.exception_handler(CmtError)
    async def fault(request: Request, error: CmtError) -> PlainTextResponse:
        return PlainTextResponse(visible(f"{error.what}; {error.why}", 400), status_code=422)

    return Guard(app, token, port)


class _Volumes:
    """Reads volumes one at a time: the gate keeps a process for each thread that reads."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.reader = ThreadPoolExecutor(max_workers=1)
        self.shown = lru_cache(maxsize=2)(self._load)

    async def details(self, index: int) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._details, self._case(index))

    async def image(self, index: int, channel: int) -> bytes:
        case = self._case(index)
        if channel >= max(1, len(case.images)):
            raise HTTPException(404)
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._image, case.name, channel)

    async def labels(self, index: int, layer: str) -> bytes:
        case = self._case(index)
        if (case.prediction if layer == "prediction" else case.reference) is None:
            raise HTTPException(404)
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._labels, case, layer)

    def _case(self, index: int) -> CaseFiles:
        if index >= len(self.source.listing.cases):
            raise HTTPException(404)
        return self.source.listing.cases[index]

    def _load(self, name: str, channel: int) -> tuple[Shown, tuple[float, float, float], int]:
        """A case as sent, where to look first (mm), and how many voxels were taken for one."""
        listing = self.source.listing
        case = next(case for case in listing.cases if case.name == name)
        wanted = list(case.images)[channel] if case.images else None
        full = load_shown(case, listing.targets, listing.reference_targets, wanted)
        x, y, z = (full.affine @ np.array([*largest_error(full), 1.0]))[:3]
        shown = coarsened(full, MAX_VOXELS)
        return shown, (float(x), float(y), float(z)), full.image.size // shown.image.size

    def _details(self, case: CaseFiles) -> dict[str, Any]:
        at = next(i for i, one in enumerate(self.source.listing.cases) if one is case)
        shown, error, merged = self.shown(case.name, self._first_channel(case))
        notes = [f"one voxel of {merged} is shown"] if merged > 1 else []
        if shown.predicted is None or shown.reference is None:
            notes.append("no reference" if shown.reference is None else "no prediction")
        channels = list(case.images) or ["no image"]
        return {
            "images": [
                {"name": visible(name, MAX_TITLE), "url": f"case/{at}/image/{i}"} for i, name in enumerate(channels)
            ],
            "prediction": None if shown.predicted is None else {"url": f"case/{at}/prediction"},
            "reference": None if shown.reference is None else {"url": f"case/{at}/reference"},
            "error": error,
            "notes": notes,
        }

    def _image(self, name: str, channel: int) -> bytes:
        shown, _, _ = self.shown(name, channel)
        return nifti_bytes(shown.image, shown.affine, window=display_window(shown.image))

    def _labels(self, case: CaseFiles, layer: str) -> bytes:
        shown, _, _ = self.shown(case.name, self._first_channel(case))
        array = shown.predicted if layer == "prediction" else shown.reference
        assert array is not None  # by the caller
        return nifti_bytes(array, shown.affine, labels=True)

    def _first_channel(self, case: CaseFiles) -> int:
        return max(0, len(case.images) - 1)


def _scores(source: Source, name: str) -> dict[str, float]:
    """Dice by target, and their mean; empty without a report."""
    if source.report is None or name not in source.report.cases:
        return {}
    rows = source.report.cases[name]
    found = {target: rows[target]["dice"] for target in source.report.targets}
    return found | {"mean": case_mean(rows, source.report.targets, "dice")}


def _cases(source: Source) -> dict[str, Any]:
    entries = []
    for i, case in enumerate(source.listing.cases):
        mean = _scores(source, case.name).get("mean", math.nan)
        score = "" if math.isnan(mean) else f" (mean Dice {mean:.4f})"
        entries.append({"title": visible(case.name, MAX_TITLE) + score, "url": f"case/{i}"})
    return {"labels": label_list(list(source.listing.targets)), "cases": entries}


def _page(source: Source) -> str:
    environment = Environment(
        loader=PackageLoader("cmt_med.reports"), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["visible"] = visible
    targets = list(source.report.targets) if source.report else []
    rows = [
        (case.name, ["–" if math.isnan(s) else f"{s:.4f}" for s in _scores(source, case.name).values()])
        for case in source.listing.cases
    ]
    return environment.get_template("view.html.j2").render(
        title=source.title, notice=source.notice, targets=targets, rows=rows
    )
