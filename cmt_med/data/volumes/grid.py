"""Positions of voxels: grids, and the checks of a header's matrix from indices to millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError

GRID_TOLERANCE = 1e-3  # of a voxel, between files of one case
GEOMETRY_TOLERANCE = 0.1
"""Of a voxel, at the corner where two descriptions of one file's place are furthest apart.

Below it no reader's choice can move a voxel into its neighbour. Rounding stays far below it (at most 0.002 in 445 real NIfTI
files), and what goes wrong in practice (a matrix that was not updated, another origin, a shear) lies far above.
"""
SPACING_TOLERANCE = 1e-3  # relative: some tools write voxel sizes with three decimals
NEARLY_PERPENDICULAR = 0.02
"""Cosine between two axes (about 1 degree) up to which a shear is taken for accumulated rounding, and can be repaired."""


_Type = TypeVar("_Type", bound=np.generic)


@dataclass(frozen=True)
class Grid:
    """The positions of voxels: shape, and the matrix from indices to millimetres (RAS+)."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, per axis."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    def equals(self, other: Grid) -> bool:
        """Tell whether no corner of the two grids is further apart than a thousandth of a voxel."""
        if self.shape != other.shape:
            return False
        return corner_distance(self.affine, other.affine, self.shape) <= GRID_TOLERANCE * min(self.spacing)

    def reordering(self, other: Grid) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """How to make an array on this grid one on ``other``, if both have the same voxels and only count them differently.

        Converters turn axes around (dcm2niix the rows of a DICOM series), which moves no voxel.

        Returns:
            The order of the axes, and the axes to flip after that; None if the voxels are not the same.
        """
        between = np.linalg.inv(other.affine) @ self.affine
        turned = np.round(between[:3, :3])
        order = tuple(int(axis) for axis in np.abs(turned).argmax(axis=1))
        if sorted(order) != [0, 1, 2] or np.abs(turned).sum() != 3:
            return None
        flipped = tuple(axis for axis in range(3) if turned[axis, order[axis]] < 0)
        matrix = self.affine[:, [*order, 3]].copy()
        shape = tuple(self.shape[axis] for axis in order)
        for axis in flipped:
            matrix[:, 3] += matrix[:, axis] * (shape[axis] - 1)
            matrix[:, axis] *= -1
        return (order, flipped) if other.equals(Grid(shape, matrix)) else None

    @property
    def axes(self) -> str:
        """Directions in the patient that the indices grow towards, for example ``"RAS"``; nearest ones if oblique."""
        cosines = self.affine[:3, :3] / np.maximum(self.spacing, np.finfo(float).tiny)
        letters, free = ["?"] * 3, [0, 1, 2]
        for axis in np.argsort(-np.abs(cosines).max(axis=0)):
            direction = max(free, key=lambda d: abs(cosines[d, axis]))
            letters[axis] = ("RAS" if cosines[direction, axis] > 0 else "LPI")[direction]
            free.remove(direction)
        return "".join(letters)

    @property
    def oblique_degrees(self) -> float:
        """Largest angle between an axis and the nearest direction of the patient."""
        cosines = np.abs(self.affine[:3, :3]).max(axis=0) / np.maximum(self.spacing, np.finfo(float).tiny)
        return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))


def corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """The distance that a corner of the volume moves from one matrix to the other, at most: largest coordinate, in mm."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(shape[:3]) - 1
    return float(np.abs(corners @ (one - other).T)[:, :3].max())


def check_matrix(affine: NDArray[np.float64], shape: Sequence[int], where: str, name: str) -> None:
    """Refuse a matrix that does not place voxels, or places them on axes that are not perpendicular.

    Args:
        affine: (4, 4), from indices to millimetres.
        shape: of the volume.
        where: file, for the message.
        name: what the format calls the matrix.

    Raises:
        DataError: E_GEOMETRY, saying which.
    """
    if not np.isfinite(affine).all():
        raise geometry_error(f"the {name} has NaN or infinite entries", where, "the place of a voxel is not defined")
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(spacing).all() or spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise geometry_error(f"the {name} is singular", where, "several voxels would lie at one place in the patient")
    if spacing.min() < 1e-5 or spacing.max() > 1e4 or np.abs(affine[:3, 3]).max() > 1e7:
        sizes = " × ".join(f"{v:.3g}" for v in spacing)
        raise geometry_error(f"the {name} claims voxels of {sizes} mm", where, "no scanner makes such voxels")
    moved = corner_distance(affine, perpendicular(affine, shape), shape) / spacing.min()
    if moved > GEOMETRY_TOLERANCE:
        raise geometry_error(
            f"the {name} is sheared: its axes are not perpendicular", where,
            f"a corner lies {moved:.3g} voxels from where perpendicular axes would put it, and readers differ in what they do",
            "resample the image to a grid with perpendicular axes; `inspect --fix` repairs angles of less than a degree",
        )  # fmt: skip


def perpendicular(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The nearest matrix with perpendicular axes, the same voxel sizes and the same place of the volume's centre.

    Nearest by the polar decomposition of the direction cosines.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = (left @ right) * spacing
    centre = (np.array(shape[:3]) - 1) / 2
    result[:3, 3] += (affine[:3, :3] - result[:3, :3]) @ centre
    return result


def geometry_error(what: str, where: str, why: str, fix: str = "") -> DataError:
    """E_GEOMETRY."""
    return DataError(
        what, where=where, why=why, fix=fix or "convert the original image again, or resample it to a grid that is known",
        code="E_GEOMETRY",
    )  # fmt: skip


def counted_like(array: NDArray[_Type], own: Grid, grid: Grid) -> tuple[NDArray[_Type], Grid]:
    """An array and its grid, with the axes in the order and direction of another grid that has the same voxels."""
    if own.equals(grid):
        return array, own
    found = own.reordering(grid)
    if found is None:
        return array, own
    return np.asfortranarray(np.flip(array.transpose(found[0]), found[1])), grid
