"""``report.html``: one file that opens from disk without a network, and runs no script but the viewer's."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from cmt_med.base.files import write_text
from cmt_med.base.text import visible
from cmt_med.data.case import Case
from cmt_med.evaluation.metrics import LESION_COUNTS, THOUSAND_PIXELS, metric_of
from cmt_med.evaluation.summary import case_mean
from cmt_med.reports import figures
from cmt_med.reports.calibration import (
    MARGIN_MM,
    MAX_CASES,
    SavedChances,
    measure_reliability,
    probabilities_beside,
)
from cmt_med.reports.gallery import PICTURES, make_gallery
from cmt_med.reports.listing import CaseFiles, Listing, write_listing
from cmt_med.reports.planes import colour_of, tinted
from cmt_med.reports.text import json_for_page, policy_hash
from cmt_med.reports.viewer import HOW_TO_BUILD, label_list, style_sheet, viewer_script

_PLOTTED = ("dice", "hd95", "lesion_dice")  # and the first surface Dice

log = logging.getLogger(__name__)


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    title: str,
    cases: Mapping[str, Case],
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    reference_targets: Mapping[str, Sequence[int]] | None = None,
    unscored: Mapping[str, Sequence[str]] | None = None,
    log_rows: Sequence[Mapping[str, Any]] = (),
    settings: str = "",
    details: Mapping[str, Mapping[str, Any]] | None = None,
    banner: str = "",
) -> Path:
    """Write the report of saved scores, and ``volumes.json``, by which ``cmt-med view`` finds the volumes.

    Args:
        folder: where ``report.html`` goes.
        metrics: content of ``metrics.json``.
        title: heading.
        cases: images and sums by case name, for the pictures behind the outlines; may lack cases.
        predictions, references: label volumes by case name.
        reference_targets: label values of the targets in the references, where they are numbered differently.
        unscored: case name -> targets that its reference does not annotate.
        log_rows: rows of ``log.jsonl``; of several trainings each with its number under ``"fold"``.
        settings: the resolved config, as text.
        details: more sections of names and values: the model card, the environment.
        banner: printed on top, for phantom data.
    """
    targets = list(metrics["targets"])
    own = {name: list(values) for name, values in metrics["targets"].items()}
    theirs = own if reference_targets is None else {name: list(values) for name, values in reference_targets.items()}
    scored, undefined = rank_cases(metrics["cases"], targets)
    ranked = scored + undefined
    listing = Listing(
        tuple(
            CaseFiles(
                name,
                predictions.get(name),
                references.get(name),
                case.images,
                case.sha256,
                case.colours,
                case.ignore,
                lacking,
            )
            for name in ranked
            for case in (cases.get(name, Case(name, {})),)
            for lacking in (tuple((unscored or {}).get(name, ())),)
        ),
        own,
        theirs,
    )
    write_listing(folder, listing)
    script = viewer_script()
    headlines = {name: _headline(metrics["cases"][name], targets) for name in ranked}
    gallery = make_gallery(listing, headlines, scored=len(scored), embed=script is not None)
    style = style_sheet()
    page = page_environment().get_template("report.html.j2").render(
        title=title,
        banner=banner,
        metrics=metrics,
        targets=targets,
        ranked=ranked,
        scored=scored,
        mean_dice={name: case_mean(_floats(metrics["cases"][name]), targets, "dice") for name in ranked},
        plotted=_plotted(metrics),
        figures=_figures(metrics, targets, log_rows),
        calibration=_calibration(listing),
        gallery=gallery,
        pictures_stated=PICTURES,
        lesion_counts=LESION_COUNTS,
        settings=settings,
        details=run_details(metrics, details),
        style=style,
        script=script if gallery.embedded else None,
        viewer_cases=json_for_page({"labels": label_list(targets), "cases": gallery.embedded}),
        viewer_missing=HOW_TO_BUILD if script is None else "",
        policy=page_policy(style, script if gallery.embedded else None),
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return folder / "report.html"


def rank_cases(
    cases: Mapping[str, Mapping[str, Mapping[str, Any]]], targets: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Case names from the worst mean Dice to the best, and those without one, those with most false positives first."""
    means = {name: case_mean(_floats(rows), targets, "dice") for name, rows in cases.items()}
    invented = {
        name: sum(rows[t]["predicted_voxels"] for t in targets if rows[t]["reference_voxels"] == 0)
        for name, rows in cases.items()
    }
    scored = sorted((name for name in means if not math.isnan(means[name])), key=lambda name: means[name])
    undefined = sorted((name for name in means if math.isnan(means[name])), key=lambda name: -invented[name])
    return scored, undefined


def page_environment() -> Environment:
    """The templates of pages, with their filters; everything is escaped."""
    environment = Environment(
        loader=PackageLoader("cmt_med.reports"), autoescape=select_autoescape(default=True), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"visible": visible, "number": _number, "png": _embed}
    environment.globals |= {"colour_of": colour_of, "tinted": tinted}
    return environment


def page_policy(style: str, script: str | None) -> str:
    """The content-security-policy: this style, this script, pictures inside the page, and nothing from anywhere."""
    scripts = "'none'" if script is None else policy_hash(script)
    return (
        f"default-src 'none'; script-src {scripts}; style-src {policy_hash(style)}; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


# ---- parts of the page


def _figures(metrics: Mapping[str, Any], targets: list[str], log_rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    titles = {
        n: " ".join(filter(None, (metrics["metrics"][n]["title"], metrics["metrics"][n]["unit"])))
        for n in _plotted(metrics)
    }
    return {
        "curves": figures.training_curves(log_rows),
        "distributions": figures.distributions(metrics["cases"], targets, titles),
        "bland_altman": figures.bland_altman(
            metrics["cases"], targets, THOUSAND_PIXELS if metrics.get("pixels") else "mL"
        ),
        "most": figures.MAX_TARGETS,
    }


def _plotted(metrics: Mapping[str, Any]) -> list[str]:
    """The scores that are shown first, of those that there are."""
    known = metrics["metrics"]
    return [name for name in _PLOTTED if name in known] + [name for name in known if name.startswith("nsd_")][:1]


def _calibration(listing: Listing) -> dict[str, Any] | None:
    saved = {}
    for case in listing.cases:
        chances = probabilities_beside(case.prediction) if case.prediction is not None else None
        if chances is not None and case.reference is not None:
            saved[case.name] = SavedChances(*chances, case.reference, case.ignore, case.unscored)
    if not saved:
        return None
    sums = {path: digest for case in listing.cases for path, digest in case.sha256.items()}
    used = dict(sorted(saved.items())[:MAX_CASES])  # by name: a choice of the best or worst would show another model
    colours = {code: value for case in listing.cases for code, value in case.colours.items()}
    found = measure_reliability(used, listing.targets, listing.reference_targets, sums, colours)
    return {
        "picture": figures.reliability(found.curves),
        "curves": found.curves,
        "margin": f"{MARGIN_MM:g}",
        "read": found.read,
        "saved": len(saved),
        "left_out": found.left_out,
    }


def _headline(rows: Mapping[str, Mapping[str, Any]], targets: Sequence[str]) -> str:
    return ", ".join(f"{visible(t, 40)} {_number(rows[t]['dice'])}" for t in targets[:6])


def _run_details(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Entries of ``metrics.json`` on where scores and predictions come from."""
    run = dict(metrics.get("run") or {})
    trained = run.pop("provenance", None)
    for shown_elsewhere in ("cases", "targets", "complete", "failed", "notice"):
        run.pop(shown_elsewhere, None)
    found = {
        "Evaluation": metrics.get("evaluation"),
        "Model card": run,
        "Provenance": metrics.get("provenance") or (trained if isinstance(trained, dict) else None),
    }
    return {name: content for name, content in found.items() if content}


def run_details(metrics: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, str]]:
    """Describe where scores and predictions come from, by ``metrics.json`` and ``more`` sections."""
    return {name: _flat(content) for name, content in (_run_details(metrics) | dict(more or {})).items()}


def _flat(content: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(key): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in content.items()
    }


def _floats(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Scores read back from JSON, where NaN is null."""
    return {
        target: {name: math.nan if value is None else value for name, value in row.items()}
        for target, row in rows.items()
    }


def _number(value: float | None, name: str = "dice") -> str:
    """A score as text: ratios with four decimals, millimetres and millilitres with two."""
    if value is None or not math.isfinite(value):
        return "–"
    metric = metric_of(name)
    return f"{value:.2f}" if metric is not None and metric.unit else f"{value:.4f}"


def _embed(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
