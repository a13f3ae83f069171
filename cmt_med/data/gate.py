"""The gate: every volume that the package reads comes through here, checked, or not at all."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from cmt_med.data.manifest import Case
from cmt_med.errors import DataError

GRID_TOLERANCE = 1e-3  # of a voxel
LABEL_TOLERANCE = 1e-3
MAX_VOXELS = 2**31


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape, and the matrix from indices to millimetres (RAS+)."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, per axis."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    def equals(self, other: Grid) -> bool:
        """Whether no corner of the two grids is further apart than a thousandth of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.shape) - 1
        apart = np.abs(corners @ (self.affine - other.affine).T)[:, :3].max()
        return bool(apart <= GRID_TOLERANCE * min(self.spacing))


@dataclass(frozen=True)
class Loaded:
    """A case in memory: ``image`` (C, D1, D2, D3) float32, ``label`` and ``mask`` (D1, D2, D3) or None, and the grid."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    mask: NDArray[np.bool_] | None
    grid: Grid


def load_case(
    case: Case, channels: Sequence[str], labels: Sequence[int] | None = None, *, need_label: bool = False
) -> Loaded:
    """Read and check one case.

    Args:
        case: its files.
        channels: the channels wanted, by name, in order.
        labels: allowed label values; None skips the label.
        need_label: whether a missing label is an error.

    Raises:
        DataError: E_IO, E_FORMAT, E_TRUNCATED, E_GZIP, E_NDIM, E_DTYPE, E_SIZE, E_NONFINITE, E_GRID, E_LABEL or
            E_CHANNEL, naming case and file.
    """
    missing = [name for name in channels if name not in case.images]
    if missing:
        raise DataError(
            f"channel {', '.join(missing)} is missing",
            where=f"case {case.name}",
            why=f"the model takes {', '.join(channels)}; the case has {', '.join(case.images)}",
            fix="add the file under that name, or leave the case out",
            code="E_CHANNEL",
        )
    grid: Grid | None = None
    planes: list[NDArray[np.float32]] = []
    opened: dict[Path, tuple[NDArray[np.float32], Grid]] = {}
    for name in channels:
        path, position = case.images[name]
        if path not in opened:
            opened[path] = _read_volume(path, case.name, ndim=3 if position is None else 4)
        values, found = opened[path]
        if position is not None:
            if position >= values.shape[3]:
                raise DataError(
                    f"the 4D image has {values.shape[3]} channels, channel {name} would be number {position + 1}",
                    where=f"case {case.name}: {path}",
                    fix="correct 'modality' in the case list",
                    code="E_NDIM",
                )
            if name == channels[0] and values.shape[3] != len(case.images):
                raise DataError(
                    f"the 4D image has {values.shape[3]} channels, the case list names {len(case.images)}",
                    where=f"case {case.name}: {path}",
                    why="channels would be matched to the wrong names",
                    fix="correct 'modality' in the case list",
                    code="E_NDIM",
                )
            values = values[..., position]
        grid = _require_same_grid(grid, found, case.name, path)
        planes.append(values)
    if grid is None:
        raise DataError("no channels are asked for", where=f"case {case.name}", code="E_CHANNEL")
    label = mask = None
    if labels is not None and case.label is not None:
        values, found = _read_volume(case.label, case.name, ndim=3)
        _require_same_grid(grid, found, case.name, case.label)
        label = _check_labels(values, labels, case.name, case.label)
    elif need_label:
        raise DataError(
            "the case has no label", where=f"case {case.name}", fix="add 'label' to the case list", code="E_LABEL"
        )
    if case.mask is not None:
        values, found = _read_volume(case.mask, case.name, ndim=3)
        _require_same_grid(grid, found, case.name, case.mask)
        mask = values > 0.5
        if not mask.any():
            raise DataError(
                "the mask is empty",
                where=f"case {case.name}: {case.mask}",
                why="nothing would be left of the image",
                fix="correct the mask, or leave it out of the case list",
                code="E_MASK",
            )
    return Loaded(np.stack(planes), label, mask, grid)


def load_labels(path: Path, case: str, allowed: Sequence[int] | None = None) -> tuple[NDArray[np.uint8], Grid]:
    """Read one label volume (D1, D2, D3) and its grid; the errors are those of :func:`load_case`."""
    values, grid = _read_volume(path, case, ndim=3)
    return _check_labels(values, allowed if allowed is not None else range(256), case, path), grid


def _read_volume(path: Path, case: str, *, ndim: int) -> tuple[NDArray[np.float32], Grid]:
    where = f"case {case}: {path}"
    if not path.is_file():
        raise DataError(
            "the file does not exist" if not path.exists() else "not a regular file",
            where=where,
            why="the case cannot be read without it",
            fix="check the case list; relative paths start at its folder",
            code="E_IO",
        )
    try:
        if path.suffix == ".gz":
            _read_to_end(path)
        image = nib.load(path)
        shape = tuple(int(n) for n in image.shape)
        _check_header(image, shape, ndim, where)
        values = np.asanyarray(image.dataobj).astype(np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
    except DataError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        truncated = isinstance(error, EOFError)
        raise DataError(
            "the file ends too early" if truncated else "the compressed data is damaged",
            where=where,
            why=str(error),
            fix="copy the file again from its source",
            code="E_TRUNCATED" if truncated else "E_GZIP",
        ) from error
    except ImageFileError as error:
        raise DataError(
            "not a readable NIfTI file", where=where, why=str(error), fix="convert it to .nii.gz", code="E_FORMAT"
        ) from error
    except OSError as error:
        # nibabel reports a short file as OSError with the expected and the found number of bytes.
        short = "Expected" in str(error) and "got" in str(error)
        raise DataError(
            "the file ends too early" if short else "the file cannot be read",
            where=where,
            why=str(error),
            fix="copy the file again from its source",
            code="E_TRUNCATED" if short else "E_IO",
        ) from error
    except (ValueError, TypeError, OverflowError, MemoryError, HeaderDataError) as error:
        raise DataError(
            "the header does not describe a volume",
            where=where,
            why=str(error),
            fix="convert the original image again",
            code="E_HEADER",
        ) from error
    bad = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{bad} voxels are NaN or infinite",
            where=where,
            why="one such voxel would make the whole prediction meaningless",
            fix="repair or replace the file",
            code="E_NONFINITE",
        )
    if ndim == 3:
        values = values.reshape(shape[:3])  # trailing axes of length one
    return values, Grid(shape[:3], affine)


def _read_to_end(path: Path) -> None:
    # nibabel stops at the last voxel and never reaches the checksum at the end of the stream.
    with gzip.open(path, "rb") as stream:
        while stream.read(1 << 22):
            pass


def _check_header(image: SpatialImage, shape: tuple[int, ...], ndim: int, where: str) -> None:
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb":
        raise DataError(
            f"the voxels are {dtype}", where=where, why="only real numbers are segmented", fix="convert the image",
            code="E_DTYPE",
        )  # fmt: skip
    real = shape[:3] if ndim == 3 and all(n == 1 for n in shape[3:]) else shape
    if len(real) != ndim:
        raise DataError(
            f"the image is {len(shape)}D with shape {shape}, {ndim}D is expected",
            where=where,
            why="several channels in one file need names" if ndim == 3 else "the case list names several channels",
            fix="name the channels under 'modality' in the case list" if ndim == 3 else "correct 'modality'",
            code="E_NDIM",
        )
    if min(shape) < 1 or np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise DataError(
            f"the header claims the shape {shape}",
            where=where,
            why="no image has this size",
            fix="convert the original image again",
            code="E_SIZE",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            "the header's matrix from voxels to millimetres cannot be inverted",
            where=where,
            why="the place of a voxel in the patient is not defined",
            fix="convert the original image again",
            code="E_GEOMETRY",
        )


def _require_same_grid(first: Grid | None, found: Grid, case: str, path: Path) -> Grid:
    if first is None or first.equals(found):
        return first or found
    if first.shape != found.shape:
        why = f"shape {found.shape}, the first channel has {first.shape}"
    else:
        apart = float(np.abs(first.affine - found.affine).max())
        why = f"the matrices to millimetres differ by up to {apart:.6g}"
    raise DataError(
        "the file lies on another grid than the case's first channel",
        where=f"case {case}: {path}",
        why=why,
        fix="resample it to the first channel's grid",
        code="E_GRID",
    )


def _check_labels(values: NDArray[np.float32], allowed: Sequence[int], case: str, path: Path) -> NDArray[np.uint8]:
    rounded = np.rint(values)
    off = np.abs(values - rounded).max(initial=0)
    found = np.unique(rounded)
    wrong = [f"{v:g}" for v in found if int(v) not in allowed]
    if off > LABEL_TOLERANCE or wrong:
        raise DataError(
            f"label values {', '.join(wrong[:10])} are not in the label map" if wrong else "labels are not integers",
            where=f"case {case}: {path}",
            why=f"the map has {', '.join(str(v) for v in list(allowed)[:20])}"
            if wrong
            else f"a voxel is {off:.3g} away from a whole number",
            fix="correct 'labels' in the case list or the file",
            code="E_LABEL",
        )
    return rounded.astype(np.uint8)
