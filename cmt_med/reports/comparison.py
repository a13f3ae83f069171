"""Paired differences between reports on the same cases: what ``cmt-med compare`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from cmt_med.base.errors import EXIT_DONE, ConfigError
from cmt_med.base.files import require_writable_folder, write_json
from cmt_med.base.text import counted, visible
from cmt_med.evaluation.metrics import (
    CLASS_METRICS,
    DETECTION_METRICS,
    INSTANCE_METRICS,
    METRICS,
    Metric,
    metric_of,
    of_pixels,
    surface_dice_name,
)
from cmt_med.evaluation.statistics import METHOD_TEXT, SIGNIFICANT, PairedTest, Standing, compare_pairs, standings
from cmt_med.evaluation.summary import case_mean
from cmt_med.reports.saved import (
    SavedReport,
    common_cases,
    load_report,
    pool,
    require_defined_alike,
    require_same_references,
    require_same_rules,
    score_table,
    usual_metric,
)

OVER_TARGETS = "mean over targets"


def compare_reports(
    reports: list[str], *, metric: str | None = None, common: bool = False, output: Path | None = None
) -> int:
    """Compare reports, print the tables, and return the exit code; arguments as of ``cmt-med compare``.

    Raises:
        ConfigError: for less than two reports or a score that cannot be compared; DataError: for reports that do not match.
    """
    legend = None if metric is None else _comparable(metric)  # a slip of the pen is found before anything is read
    if len(reports) < 2:
        raise ConfigError(
            "one report compares with nothing",
            where="the command line",
            why="differences need a second one",
            fix="name two or more reports",
        )
    if output is not None:
        require_writable_folder(output)
    pooled = _named([_read(text) for text in reports])
    metric = metric or usual_metric(pooled[0])
    legend = legend or _comparable(metric)
    require_same_rules(pooled)
    require_same_references(pooled)
    cases = common_cases(pooled, intersect=common)
    tables = {report.name: score_table(report, cases, metric) for report in pooled}
    require_defined_alike(pooled, cases, metric)
    targets = pooled[0].targets
    scores = {target: {name: table[target] for name, table in tables.items()} for target in targets}
    higher = legend.better == "higher"
    tests = compare_pairs(scores, higher_is_better=higher)
    if len(targets) > 1:
        scores[OVER_TARGETS] = {report.name: _over_targets(report, cases, metric) for report in pooled}
    ranked = [row for target in scores for row in standings(target, scores[target], higher_is_better=higher)]
    content = {
        "schema_version": 1,
        "metric": {"name": metric} | vars(of_pixels(legend) if all(report.pixels for report in pooled) else legend),
        "empty_rule": pooled[0].rule,
        "empty_rule_text": pooled[0].rule_text,
        "method": METHOD_TEXT,
        "scipy": scipy.__version__,
        "cases": cases,
        "only_common_cases": common,
        "reports": [_report_content(report, cases, metric) for report in pooled],
        "tests": [vars(test) for test in tests],
        "standings": [vars(row) for row in ranked],
        "notices": list(dict.fromkeys(notice for report in pooled for notice in report.notices)),
    }
    _print(content, tests, ranked)
    if output is not None:
        write_json(output / "compare.json", content)
        print(f"written: {output / 'compare.json'}")
    return EXIT_DONE


# ---- reports by name


def _read(text: str) -> SavedReport:
    """A report from ``DIR``, ``NAME=DIR`` or ``NAME=DIR,DIR``; a folder that exists is taken by its whole name."""
    name, folders = "", [Path(text)]
    if not folders[0].is_dir():
        name, _, rest = text.partition("=") if "=" in text else ("", "", text)
        folders = [Path(part) for part in rest.split(",")]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(
            "a report is pooled with itself",
            where=repr(text),
            why="it would count as two runs",
            fix="name each folder once",
        )
    members = [load_report(folder) for folder in folders]
    return pool(name or "+".join(_short(folder) for folder in folders), members)


def _short(folder: Path) -> str:
    """The last part of a path that says something: run folders keep their report in ``report/``."""
    path = folder.resolve()
    return path.parent.name if path.name == "report" else path.name


def _named(reports: Sequence[SavedReport]) -> list[SavedReport]:
    """The reports with names that differ: a name that is not free gets a number."""
    taken: dict[str, int] = {}
    result = []
    for report in reports:
        count = taken[report.name] = taken.get(report.name, 0) + 1
        result.append(report if count == 1 else replace(report, name=f"{report.name} ({count})"))
    return result


def _comparable(name: str) -> Metric:
    metric = metric_of(name)
    if metric is None or not metric.better:
        known = [
            key
            for key, value in (METRICS | CLASS_METRICS | INSTANCE_METRICS | DETECTION_METRICS).items()
            if value.better
        ] + [surface_dice_name(1.0)]
        raise ConfigError(
            f"{name!r} cannot be compared", where="--metric",
            why="no such score" if metric is None else "it has no better side",
            fix=f"use one of {', '.join(known)}",
        )  # fmt: skip
    return metric


def _over_targets(report: SavedReport, cases: Sequence[str], metric: str) -> NDArray[np.float64]:
    return np.array([case_mean(report.cases[case], report.targets, metric) for case in cases])


# ---- what comes out


def _report_content(report: SavedReport, cases: Sequence[str], metric: str) -> dict[str, Any]:
    return {
        "name": report.name,
        "folders": list(report.folders),
        "pooled": report.pooled,
        "cases": len(report.cases),
        "left_out": len(report.cases) - len(cases),
        "failed": dict(report.failed),
        "seeds": _seeds(report, cases, metric),
    }


def _seeds(report: SavedReport, cases: Sequence[str], metric: str) -> dict[str, dict[str, Any]]:
    """target -> the mean of each seed over the cases compared, and their standard deviation.

    Where folds of several seeds were pooled, nothing says which of them are of one seed: there is no mean to give.
    """
    if report.pooled != "seeds":
        return {}
    means: dict[str, list[float]] = {target: [] for target in report.targets}
    for member in report.members:
        for target, scores in score_table(member, cases, metric).items():
            means[target].append(float(np.mean(scores[~np.isnan(scores)])) if not np.isnan(scores).all() else np.nan)
    return {target: {"means": found, "std": float(np.std(found, ddof=1))} for target, found in means.items()}


def _print(content: dict[str, Any], tests: Sequence[PairedTest], ranked: Sequence[Standing]) -> None:
    """The tables on standard output."""
    for notice in content["notices"]:
        print(visible(notice))
    legend = content["metric"]
    title = f"{legend['title']} {legend['unit']}".strip()
    print(f"{visible(title)} ({legend['better']} is better) over {counted(len(content['cases']), 'case')}, "
          f"rule {visible(content['empty_rule'])}")  # fmt: skip
    for report in content["reports"]:
        _print_report(report)
    print(f"\n{'target':18s} {'report':24s} {'n':>4s} {'undefined':>9s} {'mean':>9s}  {'95% interval':19s} {'rank':>5s} "
          f"{'rank in case':>13s} {'first':>6s}")  # fmt: skip
    for row in ranked:
        interval = f"{row.low:.4f} – {row.high:.4f}"
        print(
            f"{visible(row.target, 18):18s} {visible(row.report, 24):24s} {row.n:4d} {row.n_undefined:9d} "
            f"{row.mean:9.4f}  {interval:19s} {row.rank:5.1f} {row.case_rank:13.2f} {100 * row.first:5.0f}%"
        )
    print(f"\n{'target':18s} {'first − second':33s} {'n':>4s} {'undefined':>9s} {'difference':>10s}  {'95% interval':19s} "
          f"{'win/tie/loss':>12s} {'p':>8s} {'Holm':>8s}  better")  # fmt: skip
    for test in tests:
        names = f"{visible(test.first, 15)} − {visible(test.second, 15)}"
        counts = f"{test.wins}/{test.ties}/{test.losses}"
        interval = f"{test.low:+.4f} – {test.high:+.4f}"
        print(
            f"{visible(test.target, 18):18s} {names:33s} {test.n:4d} {test.n_undefined:9d} {test.mean:+10.4f}  "
            f"{interval:19s} {counts:>12s} {test.p:8.2g} {test.p_holm:8.2g}  {_verdict(test)}"
        )
    print(f"\n{content['method']}")


def _print_report(report: dict[str, Any]) -> None:
    """Print what a report's numbers stand on: its cases, what was left out or not scored, and how its seeds differ."""
    how = f", {len(report['folders'])} reports pooled as {report['pooled']}" if report["pooled"] else ""
    left = f", {report['left_out']} others left out (--common)" if report["left_out"] else ""
    failed = [f"{visible(case, 60)} {visible(code, 20)}" for case, code in report["failed"].items()]
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    unscored = f", {len(failed)} not scored ({', '.join(failed[:5])}{more})" if failed else ""
    print(f"  {visible(report['name'], 80)}: {counted(report['cases'], 'case')}{how}{left}{unscored}")
    for target, row in report["seeds"].items():
        means = ", ".join(f"{mean:.4f}" for mean in row["means"])
        print(f"    {visible(target, 18)}: means of the seeds {means}, standard deviation {row['std']:.4f}")


def _verdict(test: PairedTest) -> str:
    """Put the test into words: a test that could not have found anything says that."""
    if test.winner:
        return visible(test.first if test.winner == "first" else test.second, 40)
    differing = test.wins + test.losses
    if differing == 0:
        return "no case differs (p = 1 by convention)"
    if 2.0 ** (1 - differing) >= SIGNIFICANT:
        return f"not shown; {differing} differing cases are too few for p < {SIGNIFICANT}"
    return "not shown"
