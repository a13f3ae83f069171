"""Reports on answers for whole images: from the records of cases to ``metrics.json``, ``metrics.csv`` and ``report.html``."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmt_med.base.errors import CmtError, DataError
from cmt_med.base.files import write_json, write_text
from cmt_med.base.text import visible
from cmt_med.data.case import Case
from cmt_med.evaluation.summary import score_names
from cmt_med.inference.results import read_record
from cmt_med.reports import figures
from cmt_med.reports.html import page_environment, page_policy, run_details
from cmt_med.reports.listing import CaseFiles
from cmt_med.reports.planes import whole_picture
from cmt_med.reports.scores import with_failures_of_inference, write_table
from cmt_med.reports.viewer import style_sheet
from cmt_med.reports.volumes import load_shown
from cmt_med.tasks.sections import Assessment, Section
from cmt_med.tasks.task import Assessing, WholeImageTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordEvaluation(ABC):
    """Records of predictions, and the cases that they are held against.

    Attributes:
        task: which knows what the answers mean.
        folders: case name -> the inference folder that has its record.
        cases: with their targets.
        banner: for phantom data.
    """

    task: Assessing
    folders: Mapping[str, Path]
    cases: Mapping[str, Case]
    banner: str = ""

    def score(self) -> ScoredAnswers:
        """Score every case that has a target; one without a record is a failure, never left out silently."""
        records, failures = {}, []
        cases = {name: case for name, case in sorted(self.cases.items()) if self.task.has_target(case)}
        for name in cases:
            try:
                records[name] = self.record(name)
            except CmtError as error:
                failures.append({"case": name} | error.as_dict())
                log.error("%s not scored\n%s", name, error.message())
        return ScoredAnswers(self, cases, records, failures)

    @abstractmethod
    def record(self, name: str) -> dict[str, Any]:
        """What is known of a case, for its task to score."""

    @abstractmethod
    def picture(self, case: Case) -> bytes:
        """A PNG of a case."""

    def said(self, name: str) -> dict[str, Any]:
        """The record that inference has left of a case.

        Raises:
            DataError: E_MISSING, if there is none.
        """
        path = self.folders.get(name, Path()) / f"{name}.json"
        record = read_record(path) if name in self.folders else {}
        failed = read_record(path.parent / "run.json").get("failed")
        if record.get("case") != name or (isinstance(failed, list) and name in failed):
            raise DataError("there is no prediction", where=f"case {name}", fix="run infer on it", code="E_MISSING")
        return record


@dataclass(frozen=True)
class AnswerEvaluation(RecordEvaluation):
    """Answers for whole images, and the cases with their classes."""

    task: WholeImageTask

    def record(self, name: str) -> dict[str, Any]:
        """The record of a case."""
        record = self.said(name)
        self.task.row(record)  # which finds what a record lacks
        return record

    def picture(self, case: Case) -> bytes:
        """A PNG of the image."""
        return whole_picture(load_shown(CaseFiles(case.name, images=case.images, sha256=case.sha256), {}, {}))


@dataclass
class ScoredAnswers:
    """The records of an evaluation, on their way into a report; as :class:`cmt_med.reports.publish.Scored` to its callers.

    Attributes:
        failures: rows of ``failures.json``.
        metrics: content of ``metrics.json``, once written.
    """

    evaluation: RecordEvaluation
    cases: Mapping[str, Case]
    scores: dict[str, dict[str, Any]]
    failures: list[dict[str, str]]
    metrics: dict[str, Any] = field(default_factory=dict)
    assessment: Assessment = field(init=False)

    def add_failures(self, failures: Sequence[dict[str, str]]) -> None:
        """Put failures of inference before those of scoring."""
        self.failures = with_failures_of_inference(self.failures, failures)

    def write_metrics(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``metrics.json`` and ``metrics.csv`` with ``extra`` entries; returns the former's content.

        Raises:
            DataError: E_MISSING, if not one case has an answer.
        """
        if not self.scores:
            raise DataError(
                "no case can be scored", where=str(folder), why="none of the cases with a target has a prediction",
                fix="check that predictions and cases have the same names", code="E_MISSING",
            )  # fmt: skip
        task = self.evaluation.task
        self.assessment = task.assess(self.scores, self.cases, self.failures)
        notice = {"notice": self.evaluation.banner}
        self.metrics = {**self.assessment.metrics, "failures": list(self.failures), **notice, **extra}
        write_json(folder / "metrics.json", self.metrics)
        write_table(folder, self.metrics["cases"], score_names(self.metrics["cases"]), self.evaluation.banner)
        return self.metrics

    def write_page(
        self, folder: Path, title: str, *, settings: str = "", log_rows: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:  # fmt: skip
        """Write ``report.html``, print the summary, and return the page's path.

        Args:
            folder: of the report; :meth:`write_metrics` comes first.
            title: heading.
            settings: the resolved config, as text.
            log_rows: rows of ``log.jsonl``.
            details: more sections of names and values: the model card, the environment.
        """
        monitor, style = self.evaluation.task.monitor, style_sheet()
        curves = figures.training_curves(log_rows, monitor.name, monitor.title)
        page = page_environment().get_template("sections.html.j2").render(
            title=title, banner=self.evaluation.banner, metrics=self.metrics, style=style, curves=curves, settings=settings,
            sections=[self._drawn(section) for section in self.assessment.sections], monitor=monitor.title,
            details=run_details(self.metrics, details), policy=page_policy(style, None),
        )  # fmt: skip
        write_text(folder / "report.html", page)
        if self.evaluation.banner:
            print(visible(self.evaluation.banner))
        for line in self.assessment.lines:
            print(visible(line))
        return folder / "report.html"

    def _drawn(self, section: Section) -> dict[str, Any]:
        return {
            "name": section.name,
            "text": section.text,
            "tables": section.tables,
            "charts": [(chart.title, figures.chart(chart)) for chart in section.charts],
            "matrices": section.matrices,
            "pictures": list(self._pictures(section.pictures)),
        }

    def _pictures(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, str, bytes | None, str]]:
        """Case, what is said about it, its picture, and why there is none."""
        for name, said in wanted.items():
            case = self.cases[name]
            try:
                yield name, said, self.evaluation.picture(case), ""
            except CmtError as error:
                log.warning("no picture of %s: %s", visible(name), error.what)
                yield name, said, None, error.what
