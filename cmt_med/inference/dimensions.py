"""Whether a model and an image are both 2D, or both 3D."""

from __future__ import annotations

from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.gate import Grid
from cmt_med.inference.model import ModelCard


def require_dimensions(card: ModelCard, case: str, source: Path, grid: Grid) -> None:
    """Raise where a network of 2D images would see a volume, or one of volumes a 2D image.

    Args:
        card: of the model.
        case: its name, for the message.
        source: file of the image.
        grid: of the image.

    Raises:
        DataError: E_NDIM.
    """
    depth = grid.shape[2]
    task = card.outputs
    if card.slice_axes and depth > 1 and (not task.dense or task.queries or task.boxes):
        what, fix = (
            "the case is a volume, the model is for 2D images alone",
            "give it single images, or train with volumes",
        )
    elif depth > 1 and not looks_like_picture(source) and _was_shown_images(card):
        what, fix = (
            "the case is a volume, the model was trained on 2D images",
            "give it 2D images, or train with volumes",
        )
    elif not card.slice_axes and depth == 1 and looks_like_picture(source):
        what, fix = "the case is a 2D image, the model is for volumes", "give it volumes, or train with 2D images"
    else:
        return
    shape = "×".join(map(str, grid.shape))
    raise DataError(what, where=f"case {case}: {source}", why=f"it has {shape} voxels", fix=fix, code="E_NDIM")


def _was_shown_images(card: ModelCard) -> bool:
    """Tell whether all training cases were single slices: the slices of a volume are another kind of image."""
    trained = card.training_data
    if not card.slice_axes or trained is None:
        return False
    return trained.extent[2][1] <= trained.spacing[2][1]
