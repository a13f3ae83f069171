"""The position of voxels in NIfTI files: qform, sform and voxel sizes, which must agree.

Source: nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_med.data.volumes.grid import (
    GEOMETRY_TOLERANCE,
    SPACING_TOLERANCE,
    check_matrix,
    corner_distance,
    geometry_error,
)

_CODES = {1: "scanner", 2: "aligned to another scan", 3: "Talairach", 4: "MNI", 5: "another template"}


@dataclass(frozen=True)
class Place:
    """The fields of a header that say where a volume lies; ``rounded`` if they were stored with 32 bits."""

    pixdim: Sequence[float]
    qform_code: int
    sform_code: int
    quatern: Sequence[float]
    qoffset: Sequence[float]
    srow: Sequence[float]
    rounded: bool


def place_affine(place: Place, shape: Sequence[int], where: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The matrix from indices to millimetres (RAS+), and remarks: the sform where its code is set, else the qform.

    Raises:
        DataError: E_GEOMETRY, saying which disagreement.
    """
    for name, code in (("qform_code", place.qform_code), ("sform_code", place.sform_code)):
        if code != 0 and code not in _CODES:
            raise geometry_error(
                f"{name} is {code}, which means nothing", where, "some readers use the matrix, some do not"
            )
    if place.qform_code == 0 and place.sform_code == 0:
        raise geometry_error(
            "qform_code and sform_code are both 0: the header does not say where the volume lies", where,
            "left and right cannot be told apart, and each reader assumes something else",
            "convert the original image again with a tool that keeps its orientation (dcm2niix), or set the sform if you know it",
        )  # fmt: skip
    if place.sform_code == 0:
        affine = qform(place, where)
        check_matrix(affine, shape, where, "qform")
        return affine, ()
    affine = sform(place)
    check_matrix(affine, shape, where, "sform")
    _check_spacing(place, affine, where)
    if place.qform_code == 0:
        return affine, ()
    return affine, _compare(place, affine, shape, where)


def sform(place: Place) -> NDArray[np.float64]:
    """The matrix (4, 4) that the header has as such."""
    return np.vstack([np.array(place.srow, dtype=np.float64).reshape(3, 4), [0, 0, 0, 1]])


def qform(place: Place, where: str) -> NDArray[np.float64]:
    """The matrix (4, 4) of rotation (a quaternion), voxel sizes and offset; ``where`` for messages.

    Raises:
        DataError: E_GEOMETRY if they are no rotation or no sizes.
    """
    b, c, d = place.quatern
    sizes = np.array(place.pixdim[1:4], dtype=np.float64)
    if not np.isfinite([b, c, d, *sizes, *place.qoffset]).all():
        raise geometry_error("the qform has NaN or infinite entries", where, "the place of a voxel is not defined")
    if sizes.min() <= 0:
        listed = " × ".join(f"{v:g}" for v in sizes)
        raise geometry_error(
            f"pixdim claims voxels of {listed}", where, "sizes are positive, and readers mend this differently"
        )
    left = 1.0 - (b * b + c * c + d * d)
    if left < -1e-6:
        raise geometry_error("the qform's quaternion is longer than 1", where, "it is no rotation")
    # Near a half turn, rounding of b, c, d is all that is left for a.
    a = math.sqrt(left) if left > 3 * _epsilon(place) else 0.0
    b, c, d = np.array([b, c, d]) / math.sqrt(a * a + b * b + c * c + d * d)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handed = place.pixdim[0]
    if handed not in (-1, 0, 1):
        raise geometry_error(
            f"pixdim[0] is {handed:g}, it must be 1 or -1", where, "readers would mirror the volume or not"
        )
    result = np.eye(4)
    result[:3, :3] = rotation * sizes * [1, 1, -1 if handed == -1 else 1]
    result[:3, 3] = place.qoffset
    return result


def qform_parameters(affine: NDArray[np.float64]) -> tuple[tuple[float, float, float], float]:
    """The quaternion (b, c, d) and pixdim[0] of a matrix with perpendicular axes."""
    rotation = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    handed = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation = rotation * [1, 1, handed]
    # Bar-Itzhack's symmetric matrix: its eigenvector of the largest eigenvalue is the quaternion, for every rotation.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    b, c, d, a = np.linalg.eigh(k)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return (float(sign * b), float(sign * c), float(sign * d)), handed


def _epsilon(place: Place) -> float:
    return float(np.finfo(np.float32 if place.rounded else np.float64).eps)


def _check_spacing(place: Place, affine: NDArray[np.float64], where: str) -> None:
    sizes, spacing = np.array(place.pixdim[1:4], dtype=np.float64), np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(sizes).all() or np.abs(sizes / spacing - 1).max() > SPACING_TOLERANCE:
        said = (" × ".join(f"{v:.5g}" for v in values) for values in (sizes, spacing))
        raise geometry_error(
            "pixdim and sform disagree: voxels of {} mm and of {} mm".format(*said), where,
            "readers differ in which of the two they take",
            "`inspect --fix` writes a copy with the sform's sizes where no qform uses pixdim; else convert the original again",
        )  # fmt: skip


def _compare(place: Place, affine: NDArray[np.float64], shape: Sequence[int], where: str) -> tuple[str, ...]:
    other = qform(place, where)
    check_matrix(other, shape, where, "qform")
    smallest = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    apart = corner_distance(affine, other, shape)
    if apart <= GEOMETRY_TOLERANCE * smallest + _rounding(place, affine, shape):
        return ()
    spaces = ""
    if place.qform_code != place.sform_code:
        spaces = f" ({_CODES[place.qform_code]} and {_CODES[place.sform_code]})"
    fix = "keep the one that is meant and set the other's code to 0"
    if np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        raise geometry_error(
            f"qform and sform are mirror images: they disagree about left and right{spaces}", where,
            "readers differ in which of the two they take, and nothing in the file says which side is left",
            f"find out at the source (a lesion's side, a marker), then {fix}; `inspect --fix` does not choose",
        )  # fmt: skip
    raise geometry_error(
        f"qform and sform put the volume at different places{spaces}", where,
        f"corners lie up to {apart:.3g} mm apart ({apart / smallest:.3g} voxels); readers differ in which of the two they take",
        f"{fix}; `inspect --fix` does so where one is plainly unset",
    )  # fmt: skip


def _rounding(place: Place, affine: NDArray[np.float64], shape: Sequence[int]) -> float:
    """By how many millimetres rounding of the quaternion can move a corner.

    Only b, c and d are stored; a = sqrt(1 - b² - c² - d²) loses its digits near a half turn, which every axial scan that was
    stored as left-posterior-superior is near. There the rotation is known to 2·sqrt(3·2⁻²³) = 0.0012 radian only.
    """
    b, c, d = place.quatern
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    unsure = 3 * _epsilon(place)
    angle = 2 * min(math.sqrt(unsure), unsure / max(a, 1e-30))
    return angle * float(np.linalg.norm(affine[:3, :3] @ (np.array(shape[:3]) - 1)))
