"""Reports on boxes: those found against references, and pictures with both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmt_med.base.boxes import Boxes, iou
from cmt_med.base.errors import DataError
from cmt_med.config.detection import Detection
from cmt_med.data.case import Case
from cmt_med.data.volumes.box_files import listed_boxes
from cmt_med.data.volumes.boxes import load_boxes, on_grid
from cmt_med.data.volumes.gate import load_case
from cmt_med.data.volumes.grid import Grid
from cmt_med.evaluation.boxes import match
from cmt_med.reports.answers import RecordEvaluation
from cmt_med.reports.listing import CaseFiles
from cmt_med.reports.planes import three_planes
from cmt_med.reports.volumes import load_shown
from cmt_med.tasks.task import BoxTask


@dataclass(frozen=True)
class BoxEvaluation(RecordEvaluation):
    """Boxes found, and the cases with their references.

    Attributes:
        settings: by which boxes are derived from label maps.
    """

    task: BoxTask
    settings: Detection = field(default_factory=Detection)

    @property
    def labels(self) -> Mapping[str, int]:
        """Classes and their values."""
        return self.task.labels

    def record(self, name: str) -> dict[str, Any]:
        """The matches of a case, by class."""
        found, references, _ = self._both(self.cases[name])
        return {
            "matches": {
                label: match(found[found.classes == value], references[references.classes == value])
                for label, value in self.labels.items() if value
            }
        }  # fmt: skip

    def picture(self, case: Case) -> bytes:
        """A PNG with the boxes of the reference and as many of those found, through what is furthest from right."""
        found, references, grid = self._both(case)
        found = found[np.argsort(-found.scores, kind="stable")][: max(1, len(references))]
        shown = load_shown(CaseFiles(case.name, images=case.images, sha256=case.sha256), {}, {})
        layers = [
            (on_grid(boxes, grid.affine, shown.affine), is_reference)
            for boxes, is_reference in ((references, True), (found, False))
        ]
        place = _worst(found, references)
        middle = (grid.affine @ [*(place if place is not None else np.array(grid.shape) / 2) - 0.5, 1.0])[:3]
        return three_planes(shown, middle, layers)

    def _both(self, case: Case) -> tuple[Boxes, Boxes, Grid]:
        """The boxes found of a case, its references, and the grid of its image."""
        self.said(case.name)
        path = self.folders[case.name] / f"{case.name}.boxes.json"
        if not path.is_file():
            raise DataError(
                "there is no prediction", where=f"case {case.name}", fix="run infer on it", code="E_MISSING"
            )
        first = next(iter(case.images))
        grid = load_case(case, list(case.images) if case.images[first][1] is not None else [first]).grid
        references = load_boxes(case, self.labels, grid, min_component_mm3=self.settings.min_component_mm3)
        listed = listed_boxes(path, path)
        found = Boxes.of(
            [[*box.low, 0.0][:3] for box in listed], [[*box.high, 1.0][:3] for box in listed],
            [self.labels.get(box.class_name, 0) for box in listed], [box.score for box in listed],
        )  # fmt: skip
        return found, references, grid


def _worst(found: Boxes, references: Boxes) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The middle of the reference that fits worst, else of the best box found; None where there is neither."""
    if not len(references):
        return (found.low[0] + found.high[0]) / 2 if len(found) else None
    same = references.classes[:, None] == found.classes[None]
    best = (iou(references, found) * same).max(axis=1, initial=0.0)
    worst = int(np.argmin(best))
    return (references.low[worst] + references.high[worst]) / 2
