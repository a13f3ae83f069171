"""Reports on numbered objects: label images against references, and pictures with the outlines of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.instances import load_instances
from cmt_med.evaluation.instances import overlaps
from cmt_med.reports.answers import RecordEvaluation
from cmt_med.reports.listing import CaseFiles
from cmt_med.reports.planes import PALETTE, three_planes
from cmt_med.reports.volumes import largest_error, load_shown, turned
from cmt_med.tasks.task import ObjectTask

COLOURS = len(PALETTE)
"""Colours of outlines, so that neighbours differ."""


@dataclass(frozen=True)
class ObjectEvaluation(RecordEvaluation):
    """Label images of objects, and the cases with their references.

    Attributes:
        predictions: case name -> label image; what is known of each object lies beside it, or nothing.
    """

    task: ObjectTask
    predictions: Mapping[str, Path] = field(default_factory=dict)

    def record(self, name: str) -> dict[str, Any]:
        """The overlaps of a case's objects with the reference's, and the probabilities of the former."""
        predicted, reference, _ = self._both(self.cases[name])
        compared = overlaps(predicted, reference)
        said = self.said(name) if name in self.folders else {}
        listed = {int(row["object"]): float(row["probability"]) for row in said.get("objects", [])}
        numbers = np.unique(predicted[predicted > 0])
        return {"overlaps": compared, "probabilities": [listed.get(int(n), 1.0) for n in numbers]}

    def picture(self, case: Case) -> bytes:
        """A PNG through the largest error, with the outlines of objects."""
        shown = load_shown(CaseFiles(case.name, images=case.images, sha256=case.sha256), {}, {})
        predicted, reference, grid = self._both(case)
        arrays, _ = turned({"predicted": coloured(predicted), "reference": coloured(reference)}, grid)
        found, wanted = arrays["predicted"], arrays["reference"]
        plain = replace(shown, predicted=(found > 0).astype(np.uint8), reference=(wanted > 0).astype(np.uint8))
        place = (shown.affine @ np.array([*largest_error(plain), 1.0]))[:3]
        return three_planes(replace(shown, predicted=found, reference=wanted), place)

    def _both(self, case: Case) -> tuple[NDArray[np.int32], NDArray[np.int32], Grid]:
        """Objects of a case's prediction and of its reference, and the grid of both."""
        if case.name not in self.predictions:
            raise DataError(
                "there is no prediction", where=f"case {case.name}", fix="run infer on it", code="E_MISSING"
            )
        reference, grid = load_instances(case)
        predicted, _ = load_instances(Case(case.name, {}, instances=self.predictions[case.name]), grid, any_number=True)
        return predicted, reference, grid


def coloured(numbers: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours 1, 2, ... of objects, so that those that touch differ, unless one has more neighbours than there are colours."""
    result = np.zeros(numbers.shape, np.uint8)
    whole = np.pad(numbers, 1)
    touching = np.ones((3,) * numbers.ndim, bool)
    colour_of: dict[int, int] = {0: 0}
    for number, box in enumerate(ndimage.find_objects(numbers.astype(np.int64)), 1):
        if box is None:
            continue
        around = whole[tuple(slice(part.start, part.stop + 2) for part in box)]
        near = np.unique(around[ndimage.binary_dilation(around == number, touching)])
        taken = {colour_of.get(int(other), 0) for other in near}
        colour_of[number] = next((c for c in range(1, COLOURS + 1) if c not in taken), 1 + number % COLOURS)
        part = result[box]
        part[numbers[box] == number] = colour_of[number]
    return result
