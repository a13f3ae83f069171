"""Networks that find objects: a label image with a number for each, and a table of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cmt_med.base.errors import DataError
from cmt_med.base.files import sha256, write_text
from cmt_med.base.text import as_text
from cmt_med.data.case import Case
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.gate import Loaded
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.written import write_volume
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.inference.results import Probabilities, Results, read_record
from cmt_med.tasks.instances.decode import Objects
from cmt_med.tasks.task import object_task

TABLE = "objects.csv"
COLUMNS = ("case", "object", "x", "y", "z", "size_voxels", "size_mm3", "probability")
MOST_IN_16_BITS = 65_535


class ObjectEnsemble(Ensemble):
    """Models whose maps are averaged before objects are found in them.

    Raises:
        ConfigError: if they predict different things, or for settings that mean nothing for them.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        super().__init__(predictors)
        self.task = object_task(self.card.outputs)
        assert self.card.instances is not None  # by the card
        self.task.check_objects(self.card.instances, str(self.card.network["name"]))

    def find(self, loaded: Loaded) -> tuple[Objects, Tensor | None]:
        """The objects of a case on its own grid, and the maps that they were found in, if there are some."""
        assert self.card.instances is not None  # by the card
        maps = self.probabilities(loaded)
        return self.task.find(maps.numpy(), self.card.instances, loaded.grid.spacing), maps

    def write(
        self, loaded: Loaded, results: Results, source: Path, probabilities: Probabilities
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Write the label image of a case; returns what its record says, and the volume of all objects in mL."""
        grid = loaded.grid
        found, maps = self.find(loaded)
        target = results.of_slices(grid.shape[2])
        count = len(found.voxels)
        if count > MOST_IN_16_BITS and target.suffix == ".png":
            raise DataError(
                f"there are {count} objects", where=str(target), why=f"a PNG of 16 bits numbers {MOST_IN_16_BITS} at the most",
                fix="set instances.min_object_mm3, or give parts of the image", code="E_SIZE",
            )  # fmt: skip
        write_volume(target, found.numbers.astype(np.uint16 if count <= MOST_IN_16_BITS else np.uint32), grid, source)
        kept = maps is not None and probabilities != "none"
        if maps is not None and kept:
            write_volume(results.chances, maps.movedim(0, -1).numpy(), grid, source, stored=np.dtype(probabilities))
        voxel_mm3 = math.prod(grid.spacing)
        return {
            "probabilities": probabilities,
            "probability_channels": self.card.probability_channels if kept else None,
            "output_sha256": sha256(target),
            "probabilities_sha256": sha256(results.chances) if kept else None,
            "objects": _rows(found, grid, in_pixels=looks_like_picture(source)),
            "removed": {"objects": found.removed} if found.removed else {},
            "flags": [] if count else ["no object was found"],
        }, {name: float(found.voxels.sum()) * voxel_mm3 / 1000.0 for name in self.card.targets}

    def finish(self, folder: Path, cases: Sequence[Case]) -> None:
        """Write ``objects.csv``: a row for each object of the cases that have a record."""
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for case in cases:
            record = read_record(folder / f"{case.name}.json")
            if record.get("case") == case.name:
                writer.writerows(
                    [as_text(case.name), *(row[name] for name in COLUMNS[1:])] for row in record.get("objects", [])
                )
        write_text(folder / TABLE, table.getvalue())


def _rows(found: Objects, grid: Grid, *, in_pixels: bool) -> list[dict[str, Any]]:
    """Number, centre, size and probability of each object; the centre in mm by the image's header, or as column, row, page."""
    centres = found.centres if in_pixels else found.centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    voxel_mm3 = math.prod(grid.spacing)
    return [
        dict(zip(COLUMNS[1:], values, strict=True))
        for values in zip(
            range(1, len(found.voxels) + 1), *centres.round(3).T.tolist(), found.voxels.tolist(),
            (found.voxels * voxel_mm3).round(3).tolist(), found.probabilities.round(4).tolist(), strict=True,
        )
    ]  # fmt: skip
