"""``report.html``: one file that opens from disk without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from cmt_med.data.gate import load_case, load_labels
from cmt_med.data.manifest import Case
from cmt_med.errors import CmtError
from cmt_med.files import write_text
from cmt_med.reports import figures


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    title: str,
    cases: Mapping[str, Case],
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    log_rows: Sequence[Mapping[str, Any]] = (),
    settings: str = "",
    banner: str = "",
) -> Path:
    """Write the report of saved scores.

    Args:
        folder: where ``report.html`` goes.
        metrics: content of ``metrics.json``.
        title: heading.
        cases: images by case name, for the pictures behind the outlines; may lack cases.
        predictions, references: label volumes by case name.
        log_rows: rows of ``log.jsonl``.
        settings: the resolved config, as text.
        banner: printed on top, for phantom data.
    """
    targets = list(metrics["targets"])
    means = {case: _mean_dice(targets_of) for case, targets_of in metrics["cases"].items()}
    scored = sorted((case for case in means if not math.isnan(means[case])), key=lambda case: means[case])
    ranked = scored + [case for case in means if math.isnan(means[case])]
    picked: dict[str, str] = {}
    if scored:
        picked = {"worst": scored[0], "median": scored[len(scored) // 2], "best": scored[-1]}
    pictures = []
    for which, case in picked.items():
        picture = _picture(case, cases, predictions, references)
        pictures.append(
            {"which": which, "case": case, "dice": _mean_dice(metrics["cases"][case]), "picture": _embed(picture)}
        )
    environment = Environment(
        loader=PackageLoader("cmt_med.reports"), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        banner=banner,
        metrics=metrics,
        targets=targets,
        ranked=ranked,
        mean_dice={case: _mean_dice(metrics["cases"][case]) for case in ranked},
        curves=_embed(figures.training_curves(log_rows)),
        points=_embed(figures.score_points(metrics["cases"], targets) if ranked else None),
        pictures=pictures,
        settings=settings,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _mean_dice(overlaps: Mapping[str, Mapping[str, Any]]) -> float:
    values = [o["dice"] for o in overlaps.values() if o["dice"] is not None and not np.isnan(o["dice"])]
    return float(np.mean(values)) if values else float("nan")


def _picture(
    name: str, cases: Mapping[str, Case], predictions: Mapping[str, Path], references: Mapping[str, Path]
) -> bytes | None:
    try:
        predicted, grid = load_labels(predictions[name], name)
        reference, _ = load_labels(references[name], name)
        image = np.zeros(grid.shape, dtype=np.float32)
        if name in cases:
            channels = list(cases[name].images)
            image = load_case(cases[name], channels[-1:]).image[0]
    except CmtError:
        return None
    order = nib.orientations.io_orientation(grid.affine)
    image, predicted, reference = (nib.orientations.apply_orientation(a, order) for a in (image, predicted, reference))
    spacing = [grid.spacing[int(np.where(order[:, 0] == axis)[0][0])] for axis in range(3)]
    values = [int(v) for v in np.union1d(np.unique(predicted), np.unique(reference)) if v]
    return figures.overlay(image, predicted, reference, spacing, values)


def _embed(picture: bytes | None) -> str:
    return "" if picture is None else "data:image/png;base64," + base64.b64encode(picture).decode()
