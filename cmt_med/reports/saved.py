"""Reports read back: the scores of ``metrics.json``, pooled over folds and seeds, and checked to be comparable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.evaluation.metrics import FACTS, metric_of
from cmt_med.evaluation.summary import is_scored
from cmt_med.reports.scores import SCHEMA_VERSION

_SAME_VOLUME = 1e-4  # relative: spacings of copies in other formats differ by the rounding of float32


@dataclass(frozen=True)
class SavedReport:
    """The scores of one or several report folders under one name.

    Attributes:
        name: what the comparison calls it.
        folders: where the scores come from.
        targets: names of what was scored.
        rule, rule_text: the empty-case rule, and what it does.
        lesion_rule: of the lesion-wise scores; None where there are none.
        cases: case -> target -> score -> value, NaN where it is not defined.
        pooled: how several folders became one: ``""``, ``folds``, ``seeds`` or ``folds of seeds``.
        notices: what the reports say about themselves, such as that the data are phantoms.
        failed: case -> error code of what could not be scored.
        members: the reports that were pooled; none where there was one.
        pixels: whether distances are in pixels, which have no size.
    """

    name: str
    folders: tuple[str, ...]
    targets: tuple[str, ...]
    rule: str
    rule_text: str
    lesion_rule: Mapping[str, Any] | None
    cases: Mapping[str, Mapping[str, Mapping[str, float]]]
    pooled: str = ""
    notices: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    members: tuple[SavedReport, ...] = ()
    pixels: bool = False


def load_report(folder: Path) -> SavedReport:
    """Read a report folder, or a run folder that has one in ``report/``.

    Raises:
        DataError: E_REPORT, if there is none, or it is damaged.
    """
    path = next((p for p in (folder / "metrics.json", folder / "report" / "metrics.json") if p.is_file()), None)
    if path is None:
        raise _fault("there is no report here", folder, "no metrics.json", "give the --output folder of evaluate")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        # the first version's "nan" left false positives out
        if version not in (1, SCHEMA_VERSION) or (version == 1 and content["empty_rule"] == "nan"):
            raise _fault("the report is of another version of cmt_med", path, f"schema {version}", "evaluate again")
        cases = {
            str(case): {str(target): _row(row) for target, row in rows.items()}
            for case, rows in content["cases"].items()
        }
        failed = {str(row["case"]): str(row["code"]) for row in content.get("failures", [])}
        targets, rule, rule_text = tuple(content["targets"]), content["empty_rule"], content["empty_rule_text"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _fault("metrics.json is damaged", path, f"{type(error).__name__}: {error}", "evaluate again") from error
    strange = [case for case, rows in cases.items() if set(rows) != set(targets)]
    if strange or not cases:
        why = f"case {strange[0]} lacks a target" if strange else "no case is scored"
        raise _fault("the report cannot be compared", path, why, "evaluate again")
    notices = (str(content["notice"]),) if content.get("notice") else ()
    return SavedReport(
        str(folder),
        (str(folder),),
        targets,
        rule,
        rule_text,
        content.get("lesion_rule"),
        cases,
        "",
        notices,
        failed,
        pixels=content.get("pixels") is True,
    )


def pool(name: str, members: Sequence[SavedReport]) -> SavedReport:
    """Several reports as one: folds (no case in common) are put together, seeds (the same cases) averaged per case.

    A score that is not defined in every seed is not defined in their average; see :func:`require_defined_alike`.

    Raises:
        DataError: E_CASES, if some cases were scored more often than others; see also :func:`require_same_rules` and
            :func:`require_same_references`.
    """
    require_same_rules(members)
    require_same_references(members)
    times = {case: sum(case in member.cases for member in members) for member in members for case in member.cases}
    fewest, most = min(times.values()), max(times.values())
    if fewest != most:
        few, many = (next(case for case, count in times.items() if count == wanted) for wanted in (fewest, most))
        raise DataError(
            f"the reports of {name!r} are neither folds nor seeds of one another",
            where=", ".join(folder for member in members for folder in member.folders),
            why=f"case {few} is in {fewest} of them, case {many} in {most}",
            fix="give whole folds, and the same seeds of each",
            code="E_CASES",
        )
    how = "" if len(members) == 1 else "folds" if most == 1 else "seeds" if most == len(members) else "folds of seeds"
    cases = {
        case: _averaged([member.cases[case] for member in members if case in member.cases]) for case in sorted(times)
    }
    first = members[0]
    return SavedReport(
        name,
        tuple(folder for member in members for folder in member.folders),
        first.targets,
        first.rule,
        first.rule_text,
        first.lesion_rule,
        cases,
        how,
        tuple(dict.fromkeys(notice for member in members for notice in member.notices)),
        {case: code for member in members for case, code in member.failed.items() if case not in cases},
        tuple(members) if how else (),
        all(member.pixels for member in members),
    )


def require_same_rules(reports: Sequence[SavedReport]) -> None:
    """Refuse reports with other targets, another empty-case rule or other lesions than the first.

    Raises:
        DataError: E_TARGETS or E_RULE, naming both reports.
    """
    first = reports[0]
    for other in reports[1:]:
        where = f"{_place(first)} and {_place(other)}"
        if set(first.targets) != set(other.targets):
            missing = sorted(set(first.targets) ^ set(other.targets))
            raise DataError(
                f"the reports score different targets: {', '.join(missing)} only in one", where=where,
                fix="evaluate both with the same --labels", code="E_TARGETS",
            )  # fmt: skip
        if first.rule != other.rule:
            raise DataError(
                f"the empty-case rules differ: {first.rule} and {other.rule}", where=where,
                why="the same case would count in one mean and not in the other",
                fix="evaluate both with the same --empty", code="E_RULE",
            )  # fmt: skip
        if first.lesion_rule and other.lesion_rule and first.lesion_rule != other.lesion_rule:
            raise DataError(
                f"the lesion rules differ: {first.lesion_rule['name']} and {other.lesion_rule['name']}", where=where,
                fix="evaluate both with the same --lesion-wise", code="E_RULE",
            )  # fmt: skip


def require_same_references(reports: Sequence[SavedReport]) -> None:
    """Refuse reports whose references of one case differ in voxels or in mL: they are not the same case, or grid.

    Raises:
        DataError: E_REFERENCE, naming the case; E_TARGETS for models of other classes.
    """
    seen: dict[tuple[str, str], tuple[Mapping[str, float], SavedReport]] = {}
    for report in reports:
        for case, rows in report.cases.items():
            for target, row in rows.items():
                known, earlier = seen.setdefault((case, target), (row, report))
                if _classes(known) != _classes(row):
                    raise DataError(
                        "the models have different classes",
                        where=f"{_place(earlier)}: {', '.join(_classes(known))}; {_place(report)}: {', '.join(_classes(row))}",
                        why="their errors are not of one kind", fix="compare models of the same classes", code="E_TARGETS",
                    )  # fmt: skip
                if known.get("reference_class") != row.get("reference_class"):
                    raise DataError(
                        "the references differ: another class", where=f"case {case} in {_place(earlier)} and {_place(report)}",
                        why="a difference of scores would not be one of predictions",
                        fix="evaluate both against the same references", code="E_REFERENCE",
                    )  # fmt: skip
                if "reference_voxels" not in row or not (is_scored(known) or is_scored(row)):
                    continue
                if known["reference_voxels"] != row["reference_voxels"] or not math.isclose(
                    known["reference_ml"], row["reference_ml"], rel_tol=_SAME_VOLUME
                ):
                    sizes = (f"{r['reference_voxels']:g} voxels of {r['reference_ml']:g} mL" for r in (known, row))
                    raise DataError(
                        f"the references differ: {target} has {' and '.join(sizes)}",
                        where=f"case {case} in {_place(earlier)} and {_place(report)}",
                        why="a difference of scores would not be one of predictions",
                        fix="evaluate both against the same references",
                        code="E_REFERENCE",
                    )


def _classes(row: Mapping[str, float]) -> list[str]:
    """The classes that a row has probabilities of; none of label maps."""
    return [key.removeprefix("p_") for key in row if key.startswith("p_")]


def require_defined_alike(reports: Sequence[SavedReport], cases: Sequence[str], metric: str) -> None:
    """Refuse a score that one report, or one of the seeds pooled in it, defines in a case and another does not.

    By the rule ``nan``, a case without a reference is left out of the mean of who rightly finds nothing, and counts 0
    for who invents something: there is no difference to take, and without the case inventions would cost nothing.

    Args:
        reports: with the score in all ``cases``, as :func:`score_table` wants it.

    Raises:
        DataError: E_UNDEFINED, naming the case and both reports.
    """
    members = [member for report in reports for member in report.members or (report,)]
    for case in cases:
        for target in reports[0].targets:
            scored = [(np.isnan(m.cases[case][target][metric]), m) for m in members if case in m.cases]
            undefined, defined = (next((m for nan, m in scored if nan == wanted), None) for wanted in (True, False))
            if undefined is not None and defined is not None:
                raise DataError(
                    f"{metric} of {target} is defined in one report and not in the other",
                    where=f"case {case}: {_place(defined)} has it, {_place(undefined)} does not",
                    why=f"the rule {reports[0].rule} leaves out who finds nothing where nothing is, and counts who "
                    "invents something",
                    fix="evaluate all of them with --empty challenge, where agreement counts, too",
                    code="E_UNDEFINED",
                )


def common_cases(reports: Sequence[SavedReport], *, intersect: bool) -> list[str]:
    """The cases that all reports have, sorted.

    Args:
        reports: at least one.
        intersect: whether reports may have cases that others lack.

    Raises:
        DataError: E_CASES, naming cases, if the sets differ and ``intersect`` is false, or no case is left.
    """
    shared = set.intersection(*(set(report.cases) for report in reports))
    if not intersect:
        for report in reports:
            for other in reports:
                lacking = sorted(set(other.cases) - set(report.cases))
                if lacking:
                    listed = [f"{c} (not scored: {report.failed[c]})" if c in report.failed else c for c in lacking[:5]]
                    named = ", ".join(listed) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
                    raise DataError(
                        f"the cases differ: {named}",
                        where=f"in {_place(other)}, not in {_place(report)}",
                        why="means over different cases cannot be compared",
                        fix="evaluate the missing cases, or compare the common ones alone with --common",
                        code="E_CASES",
                    )
    if not shared:
        raise DataError(
            "the reports have no case in common", where=", ".join(_place(report) for report in reports),
            fix="compare reports on the same data", code="E_CASES",
        )  # fmt: skip
    return sorted(shared)


def score_table(report: SavedReport, cases: Sequence[str], metric: str) -> dict[str, NDArray[np.float64]]:
    """target -> one score per case, in the order of ``cases``.

    Raises:
        ConfigError: if the report has no such score.
    """
    known = report.cases[cases[0]][report.targets[0]]
    lacking = next((c for c in cases for t in report.targets if metric not in report.cases[c][t]), None)
    if lacking is not None:
        raise ConfigError(
            f"{_place(report)} has no {metric} of case {lacking}", where="--metric",
            why=f"it has {', '.join(name for name in known if metric_of(name))}",
            fix="name one of these, or evaluate again" if metric_of(metric) else "name one of these",
        )  # fmt: skip
    return {
        target: np.array([report.cases[case][target][metric] for case in cases], dtype=float)
        for target in report.targets
    }


def usual_metric(report: SavedReport) -> str:
    """The usual score of a comparison: Dice, of objects PQ, of boxes the largest F1, of classes the share of right ones."""
    row = next(iter(next(iter(report.cases.values())).values()))
    return next((name for name in ("dice", "pq", "best_f1") if name in row), "correct")


def _averaged(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """One case of several seeds: the mean of each score, NaN where a seed does not define it."""
    averaged: dict[str, dict[str, float]] = {}
    for target, row in runs[0].items():
        names = [name for name in row if all(name in run[target] for run in runs)]
        averaged[target] = {name: float(np.mean([run[target][name] for run in runs])) for name in names}
    return averaged


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    if not set(FACTS) <= set(row) and not {"reference_class", "reference_objects", "reference_boxes"} & set(row):
        raise KeyError(", ".join(FACTS))
    return {str(name): float("nan") if value is None else float(value) for name, value in row.items()}


def _place(report: SavedReport) -> str:
    return report.name if len(report.folders) > 1 else report.folders[0]


def _fault(what: str, path: Path, why: str, fix: str) -> DataError:
    return DataError(what, where=str(path), why=why, fix=fix, code="E_REPORT")
