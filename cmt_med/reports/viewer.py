"""The interactive viewer in a report: its script, built by ``make viewer``, and small volumes for it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.text import visible
from cmt_med.reports.planes import colour_of
from cmt_med.reports.volumes import Shown, display_window, nifti_bytes, reduced

LONGEST = 96  # voxels per axis of a volume inside a report
MARGIN_MM = 20.0
MAX_TITLE = 120  # letters
HOW_TO_BUILD = "run `make viewer` in the repository (it needs node and npm), then the command again"


def viewer_script() -> str | None:
    """The bundled script; None where it was not built.

    Raises:
        ValueError: if it could not stand inside a page.
    """
    path = files("cmt_med.reports") / "assets" / "viewer.js"
    if not path.is_file():
        return None
    script = path.read_text(encoding="utf-8")
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the viewer's script would end the element that it stands in")
    return script


def style_sheet() -> str:
    """The style of reports and of the local page."""
    return (files("cmt_med.reports") / "templates" / "page.css").read_text(encoding="utf-8")


def label_list(targets: Sequence[str]) -> list[dict[str, Any]]:
    """Names, painted values and colours of the labels, as the script wants them."""
    return [
        {"name": visible(name, MAX_TITLE), "value": i + 1, "colour": colour_of(i)}
        for i, name in enumerate(targets[:255])
    ]


def embedded_case(title: str, channel: str, shown: Shown, error_mm: NDArray[np.float64]) -> dict[str, Any]:
    """One case with its volumes inside, cut to the labels and 20 mm around them, at most 96 voxels per axis."""
    part = reduced(shown, LONGEST, MARGIN_MM)
    low, high = display_window(part.image)
    grey = np.clip((part.image - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    coarse = [f"{new / old:.0f}" for new, old in zip(part.spacing, shown.spacing, strict=True)]
    notes = [f"every {'/'.join(coarse)}th voxel along the axes"] if set(coarse) != {"1"} else []
    layers = {
        kind: None if array is None else {"data": _packed(array, part.affine, labels=True)}
        for kind, array in (("prediction", part.predicted), ("reference", part.reference))
    }
    image = {"name": visible(channel, MAX_TITLE), "data": _packed(grey, part.affine, window=(0, 255))}
    details = {"images": [image], "error": [float(x) for x in error_mm], "notes": notes} | layers
    return {"title": visible(title, MAX_TITLE), "details": details}


def _packed(
    array: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    labels: bool = False,
    window: tuple[float, float] | None = None,
) -> str:
    content = nifti_bytes(array, affine, labels=labels, window=window)
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
