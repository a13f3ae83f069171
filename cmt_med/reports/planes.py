"""Three planes through a point of a case, with the outlines of prediction and reference: a picture that needs no viewer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from cmt_med.base.boxes import Boxes
from cmt_med.data.volumes.boxes import on_grid
from cmt_med.reports.volumes import Shown, display_window, reduced

# Told apart by readers with any of the usual colour deficiencies, too; none is grey.
PALETTE = (
    (230, 97, 1), (26, 133, 255), (64, 176, 70), (212, 17, 89), (148, 92, 214), (230, 178, 0), (0, 158, 150), (170, 85, 50),
)  # fmt: skip
TINT = 0.6  # the reference has the label's colour, mixed with this much white
PANEL = 300  # pixels, of the longest side
MARGIN_MM = 15.0
_OUTLINE, _DASH = 2, 5  # pixels
_LETTERS = (("P", "A", "F", "H"), ("L", "R", "F", "H"), ("L", "R", "P", "A"))  # left, right, bottom, top of each plane


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of the target of that number."""
    return PALETTE[index % len(PALETTE)]


def tinted(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour of a label in the reference."""
    red, green, blue = (round(part + (255 - part) * TINT) for part in colour)
    return red, green, blue


def three_planes(shown: Shown, point_mm: NDArray[np.float64], boxes: Sequence[tuple[Boxes, bool]] = ()) -> bytes:
    """A PNG of the planes through ``point_mm``, cut to the labels and 15 mm around them; of a single slice, that plane.

    The reference is a solid line in a light colour, the prediction a dashed one in the full colour over it. ``boxes`` of both, in
    voxels of what is shown, and whether they are a reference's, are drawn where they cut a plane.
    """
    part = reduced(shown, max(shown.image.shape), MARGIN_MM)
    at = np.linalg.solve(part.affine, [*point_mm, 1.0])[:3].round().astype(int)
    at = np.clip(at, 0, np.array(part.image.shape) - 1)
    scale = PANEL / max(n * s for n, s in zip(part.image.shape, part.spacing, strict=True))
    thin = [axis for axis in (2, 1, 0) if shown.image.shape[axis] == 1]  # of a picture, one plane says it all
    layers = [(on_grid(found, shown.affine, part.affine), is_reference) for found, is_reference in boxes]
    panels = [_panel(part, axis, at, scale, layers, lettered=not thin) for axis in thin or (2, 1, 0)]
    sheet = Image.new("RGB", (sum(p.width for p in panels) + 8 * 2, max(p.height for p in panels)))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (sheet.height - panel.height) // 2))
        left += panel.width + 8
    stream = io.BytesIO()
    sheet.quantize(192, dither=Image.Dither.NONE).save(stream, format="png", optimize=True)
    return stream.getvalue()


def whole_picture(shown: Shown) -> bytes:
    """A PNG of the planes through the middle of an image, or of its only plane."""
    middle = (shown.affine @ [*((n - 1) / 2 for n in shown.image.shape), 1.0])[:3]
    return three_planes(shown, middle)


def _panel(
    part: Shown, axis: int, at: NDArray[np.int_], scale: float, boxes: Sequence[tuple[Boxes, bool]], *, lettered: bool
) -> Image.Image:
    across, up = (a for a in range(3) if a != axis)
    size = [max(1, round(part.image.shape[a] * part.spacing[a] * scale)) for a in (across, up)]
    columns, rows = (
        np.minimum((np.arange(n) + 0.5) * part.image.shape[a] / n, part.image.shape[a] - 1).astype(int)
        for n, a in zip(size, (across, up), strict=True)
    )
    rows = rows[::-1]  # the picture's first row is the top

    def plane(array: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32] | NDArray[np.uint8]:
        return np.take(array, at[axis], axis).T[np.ix_(rows, columns)]

    low, high = display_window(part.image)
    grey = np.clip((plane(part.image) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    dashes = np.add.outer(np.arange(len(rows)), np.arange(len(columns))) // _DASH % 2 == 0
    for layer, is_reference in ((part.reference, True), (part.predicted, False)):
        if layer is None:
            continue
        values = plane(layer)
        for value in np.unique(values[values > 0]):
            mask = values == value
            line = mask & ~ndimage.binary_erosion(mask, iterations=_OUTLINE, border_value=1)
            colour = colour_of(int(value) - 1)
            picture[line if is_reference else line & dashes] = tinted(colour) if is_reference else colour
    for found, is_reference in boxes:
        _draw_boxes(picture, found, is_reference, axis, int(at[axis]), part.image.shape)
    image = Image.fromarray(picture)
    column = int((at[across] + 0.5) * size[0] / part.image.shape[across])
    row = size[1] - 1 - int((at[up] + 0.5) * size[1] / part.image.shape[up])
    _annotate(image, axis if lettered else None, column, row)
    return image


def _draw_boxes(
    picture: NDArray[np.uint8], boxes: Boxes, is_reference: bool, axis: int, at: int, shape: tuple[int, ...]
) -> None:
    """Draw the outlines of the boxes that cut a plane, in the colours of their classes; of a prediction dashed."""
    across, up = (a for a in range(3) if a != axis)
    height, width = picture.shape[:2]
    dashes = np.add.outer(np.arange(height), np.arange(width)) // _DASH % 2 == 0
    cuts = (boxes.low[:, axis] < at + 1) & (boxes.high[:, axis] > at)
    for low, high, value in zip(boxes.low[cuts], boxes.high[cuts], boxes.classes[cuts].tolist(), strict=True):
        left, right = (int(np.clip(round(face[across] * width / shape[across]), 0, width)) for face in (low, high))
        bottom, top = (int(np.clip(round(height - face[up] * height / shape[up]), 0, height)) for face in (low, high))
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        line = mask & ~ndimage.binary_erosion(mask, iterations=_OUTLINE, border_value=0)
        colour = colour_of(value - 1)
        picture[line if is_reference else line & dashes] = tinted(colour) if is_reference else colour


def _annotate(image: Image.Image, axis: int | None, column: int, row: int) -> None:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for line in (
        (column, 0, column, 7),
        (column, height - 8, column, height),
        (0, row, 7, row),
        (width - 8, row, width, row),
    ):
        draw.line(line, fill=(255, 255, 0))
    if axis is None:
        return
    left, right, bottom, top = _LETTERS[axis]
    for place, anchor, letter in (
        ((10, height // 2), "lm", left), ((width - 10, height // 2), "rm", right),
        ((width // 2, height - 10), "ms", bottom), ((width // 2, 10), "mt", top),
    ):  # fmt: skip
        draw.text(place, letter, fill=(200, 200, 200), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))
