"""Score, metrics, report: the one way from predictions and references to a report folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmt_med.base.text import counted
from cmt_med.data.case import Case
from cmt_med.data.manifest import colours_of, sums_of
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.evaluation.metrics import DEFAULT_TOLERANCES, Scores
from cmt_med.evaluation.overlap import EmptyRule
from cmt_med.reports.html import write_report
from cmt_med.reports.scores import score_folder, with_failures_of_inference, write_metrics
from cmt_med.reports.terminal import print_summary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Predictions, what they are held against, and by which rules.

    Attributes:
        predictions, references: case name -> label volume.
        targets: name -> label values in the predictions.
        cases: images and sums by case name; may lack cases.
        rule: what an empty reference means.
        lesions: a name in ``LESION_RULES``, for lesion-wise scores; None for none.
        tolerances: of surface Dice, in mm.
        reference_targets: label values in the references, where they are numbered differently.
        reference_values, predicted_values: label values that the files may have; None for any.
        banner: for phantom data.
    """

    predictions: Mapping[str, Path]
    references: Mapping[str, Path]
    targets: Mapping[str, Sequence[int]]
    cases: Mapping[str, Case]
    rule: EmptyRule
    lesions: str | None
    tolerances: Sequence[float] = DEFAULT_TOLERANCES
    reference_targets: Mapping[str, Sequence[int]] | None = None
    reference_values: Sequence[int] | None = None
    predicted_values: Sequence[int] | None = None
    banner: str = ""

    @property
    def unscored(self) -> dict[str, list[str]]:
        """For each case that does not annotate all labels, the targets that it says nothing of."""
        theirs = self.targets if self.reference_targets is None else self.reference_targets
        of = {name: [t for t, v in theirs.items() if not case.annotates(v)] for name, case in self.cases.items()}
        return {name: targets for name, targets in of.items() if targets}

    def score(self) -> Scored:
        """Score every reference; one that cannot be scored is a failure, never left out silently."""
        scores, failures = score_folder(
            self.predictions, self.references, self.targets, reference_targets=self.reference_targets,
            reference_values=self.reference_values, predicted_values=self.predicted_values, rule=self.rule,
            tolerances=self.tolerances, lesions=self.lesions, sums=sums_of(self.cases.values()),
            colours=colours_of(self.cases.values()),
            ignored={name: case.ignore for name, case in self.cases.items() if case.ignore is not None},
            unscored=self.unscored,
        )  # fmt: skip
        return Scored(self, scores, failures)


@dataclass
class Scored:
    """The scores of an evaluation, on their way into a report.

    Attributes:
        scores: case -> target -> scores.
        failures: rows of ``failures.json``.
        metrics: content of ``metrics.json``, once written.
    """

    evaluation: Evaluation
    scores: dict[str, dict[str, Scores]]
    failures: list[dict[str, str]]
    metrics: dict[str, Any] = field(default_factory=dict)

    def add_failures(self, failures: Sequence[dict[str, str]]) -> None:
        """Put failures of inference before those of scoring."""
        self.failures = with_failures_of_inference(self.failures, failures)

    def write_metrics(self, folder: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``metrics.json`` and ``metrics.csv`` with ``extra`` entries; returns the former's content."""
        of = self.evaluation
        notes = self._notes()
        for note in notes:
            log.info("%s", note)
        notes += extra.get("notes", [])
        self.metrics = write_metrics(
            folder, self.scores, of.targets, rule=of.rule, tolerances=of.tolerances, lesions=of.lesions,
            failures=self.failures, extra={"notice": of.banner, **extra, **({"notes": notes} if notes else {})},
            pixels=bool(self.scores) and all(looks_like_picture(of.references[name]) for name in self.scores),
        )  # fmt: skip
        return self.metrics

    def _notes(self) -> list[str]:
        """Sentences on what is not scored."""
        values = sorted(
            {c.ignore for n, c in self.evaluation.cases.items() if n in self.scores and c.ignore is not None}
        )
        partial = len(self.evaluation.unscored.keys() & self.scores.keys())
        notes = (
            [f"{counted(partial, 'case')} scored on those targets alone that the reference annotates."]
            if partial
            else []
        )
        return notes + [
            f"Voxels with the value {value} in a reference (ignore) are left out of prediction and reference: nobody has "
            "annotated them."
            for value in values
        ]

    def write_page(
        self, folder: Path, title: str, *, settings: str = "", log_rows: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:  # fmt: skip
        """Write ``report.html``, print the summary, and return the page's path; arguments as of :func:`write_report`."""
        of = self.evaluation
        page = write_report(
            folder, self.metrics, title=title, cases=of.cases, predictions=of.predictions, references=of.references,
            reference_targets=of.reference_targets, unscored=of.unscored, log_rows=log_rows, settings=settings,
            details=details, banner=of.banner,
        )  # fmt: skip
        print_summary(self.metrics)
        return page
