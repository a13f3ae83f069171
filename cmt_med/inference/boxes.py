"""Networks that find boxes around objects: in windows and mirrored images, together, and on the case's own grid."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmt_med.base.boxes import Boxes
from cmt_med.base.files import sha256, write_json, write_text
from cmt_med.base.text import as_text
from cmt_med.config.detection import Detection
from cmt_med.data.case import Case
from cmt_med.data.preprocessing.pipeline import as_dictionary
from cmt_med.data.volumes.boxes import on_grid
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.gate import Loaded
from cmt_med.data.volumes.grid import Grid
from cmt_med.inference.cards import joint_card
from cmt_med.inference.predict import Predictor, Windows, is_blank
from cmt_med.inference.results import Results, read_record
from cmt_med.inference.window_outputs import flat_axis, window_outputs
from cmt_med.tasks.detection.fusion import View, fused
from cmt_med.tasks.task import BoxTask, box_task

TABLE = "boxes.csv"
FACES = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
COLUMNS = ("case", "class", "score", *FACES, *(f"{name}_mm" for name in FACES))


@torch.no_grad()
def views_of(network: nn.Module, image: Tensor, windows: Windows, task: BoxTask, settings: Detection) -> list[View]:
    """What a network finds in each window of a preprocessed image, and in those of its mirrorings.

    Args:
        network: in eval mode.
        image: (C, D1, D2, D3), on the network's device.
        windows: what it is shown; slices of 2D networks lie across the one axis of ``slice_axes``, and there is one of them.
        task: what the output means.
        settings: which boxes are kept.

    Raises:
        DataError: E_NAN if an output of the network is NaN or infinite; E_SIZE for more than 200,000 windows.
    """
    axes = windows.mirrored_axes
    found: list[View] = []
    for mirrored in (chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)):
        turned = image.flip([1 + axis for axis in mirrored]) if mirrored else image
        for view in _in_windows(network, turned, windows, task, settings):
            found.append(_unturned(view, image.shape[1:], mirrored))
    return found


def _in_windows(
    network: nn.Module, image: Tensor, windows: Windows, task: BoxTask, settings: Detection
) -> Iterator[View]:
    flat = flat_axis(windows)
    plane = image if flat is None else image.squeeze(1 + flat)
    for batch in window_outputs(network, plane, windows):
        for start, boxes in zip(batch.starts, task.find(batch.output, batch.size, settings), strict=True):
            yield _in_volume(View(boxes.moved(start), start, np.array(batch.size, float)), flat)


def _in_volume(view: View, flat: int | None) -> View:
    """A view of a slice as one of the volume of that one slice."""
    if flat is None:
        return view
    boxes = view.boxes
    low, high = np.insert(boxes.low, flat, 0.0, axis=1), np.insert(boxes.high, flat, 1.0, axis=1)
    return View(replace(boxes, low=low, high=high), np.insert(view.start, flat, 0.0), np.insert(view.size, flat, 1.0))


def _unturned(view: View, shape: Sequence[int], mirrored: Sequence[int]) -> View:
    """The view of a mirrored image, in voxels of the image."""
    low, high, start = view.boxes.low.copy(), view.boxes.high.copy(), view.start.copy()
    for axis in mirrored:
        low[:, axis], high[:, axis] = shape[axis] - high[:, axis], shape[axis] - low[:, axis]
        start[axis] = shape[axis] - start[axis] - view.size[axis]
    boxes = replace(view.boxes, low=low, high=high)
    return View(boxes, start, view.size)


def together(views: Sequence[View], shape: Sequence[int], settings: Detection) -> Boxes:
    """The objects of an image of a shape, from all views of it; the best first."""
    found = fused(views, settings.overlap, dims=3).within(shape)
    return found[found.scores >= settings.min_score][: settings.most]


class BoxEnsemble:
    """Models that find boxes, which are averaged.

    Raises:
        ConfigError: if they find different classes.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = list(predictors)
        self.card = joint_card([predictor.card for predictor in predictors])
        self.task = box_task(self.card.outputs)

    def boxes(self, loaded: Loaded) -> Boxes:
        """The objects of a case, in voxels of its own grid."""
        assert self.card.detection is not None  # by the card
        if is_blank(loaded):
            return Boxes.of([], [], [])
        views = [view for predictor in self.predictors for view in self._of_member(loaded, predictor)]
        return together(views, loaded.grid.shape, self.card.detection)

    def _of_member(self, loaded: Loaded, predictor: Predictor) -> Iterator[View]:
        card, grid = predictor.card, loaded.grid
        order = [self.card.channels.index(name) for name in card.channels]
        data = predictor.transform(as_dictionary(replace(loaded, image=loaded.image[order])))
        assert self.card.detection is not None  # by the card
        image = data["image"].as_tensor().to(predictor.device)
        # As low a score as any member's may count in the average.
        settings = self.card.detection.model_copy(update={"min_score": self.card.detection.min_score / 2})
        affine = np.asarray(data["image"].affine, np.float64)
        for view in views_of(predictor.network, image, predictor.windows, box_task(card.outputs), settings):
            whole = on_grid(Boxes.of(view.start[None], view.start[None] + view.size, [1]), affine, grid.affine)
            yield View(on_grid(view.boxes, affine, grid.affine), whole.low[0], whole.sizes[0])

    def write(self, loaded: Loaded, results: Results, source: Path) -> dict[str, Any]:
        """Write the boxes of a case; returns what its record says."""
        found = self.boxes(loaded)
        rows = rows_of(found, self.card.labels, loaded.grid, in_pixels=looks_like_picture(source))
        write_json(results.boxes, {"schema_version": 1, "shape": list(loaded.grid.shape), "boxes": rows})
        counts = {name: int((found.classes == value).sum()) for name, value in self.card.labels.items() if value}
        return {
            "output_sha256": sha256(results.boxes),
            "boxes": counts,
            "flags": [] if len(found) else ["no object was found"],
        }

    def finish(self, folder: Path, cases: Sequence[Case]) -> None:
        """Write ``boxes.csv``: a row for each box of the cases that have a record."""
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for case in cases:
            if read_record(folder / f"{case.name}.json").get("case") == case.name:
                for row in read_record(folder / f"{case.name}.boxes.json").get("boxes", []):
                    writer.writerow([as_text(case.name), as_text(row["class"]), row["score"], *_cells(row)])
        write_text(folder / TABLE, table.getvalue())


def rows_of(boxes: Boxes, labels: dict[str, int], grid: Grid, *, in_pixels: bool) -> list[dict[str, Any]]:
    """Boxes for people and programs: class, score, faces in voxels, and in mm (RAS+) where the image has such.

    Of pictures, faces have two axes.
    """
    names = {value: name for name, value in labels.items()}
    dims = 2 if in_pixels and grid.shape[2] == 1 else 3
    rows = []
    for low, high, value, score in zip(
        boxes.low, boxes.high, boxes.classes.tolist(), boxes.scores.tolist(), strict=True
    ):
        row: dict[str, Any] = {
            "class": names[value], "score": round(score, 6),
            "low": _rounded(low[:dims]), "high": _rounded(high[:dims]),
        }  # fmt: skip
        if not in_pixels:
            corners = np.array(list(itertools.product(*zip(low - 0.5, high - 0.5, strict=True))))
            world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
            row |= {"low_mm": _rounded(world.min(axis=0)), "high_mm": _rounded(world.max(axis=0))}
        rows.append(row)
    return rows


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in values]


def _cells(row: dict[str, Any]) -> list[Any]:
    """The faces in voxels, and in mm; empty where there are none."""
    cells: list[Any] = []
    for keys in (("low", "high"), ("low_mm", "high_mm")):
        for key in keys:
            values = row.get(key, [])
            cells += [*values, *[""] * (3 - len(values))]
    return cells
