"""The gate: every volume that the package reads comes through here, checked, or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import CmtError, DataError
from cmt_med.compute.memory import no_memory
from cmt_med.data.case import COLOURS, Case, Codes, segments_of
from cmt_med.data.volumes.decoder import Check, Volume, decode
from cmt_med.data.volumes.flags import image_flags
from cmt_med.data.volumes.grid import Grid, corner_distance, counted_like
from cmt_med.data.volumes.header import VolumeHeader
from cmt_med.data.volumes.streams import readable_name
from cmt_med.data.volumes.sums import check_sums, content_key
from cmt_med.data.volumes.values import brightness, from_colours
from cmt_med.data.volumes.values import labels as label_values

__all__ = ["Grid", "Loaded", "as_listed", "content_of", "grid_of", "load_case", "load_labels", "require_same_grid"]


@dataclass(frozen=True)
class Loaded:
    """A case in memory: ``image`` (C, D1, D2, D3) float32, ``label`` and ``mask`` (D1, D2, D3) or None, and the grid.

    ``flags`` are sentences about what is suspicious: constant or copied channels, values far beyond all others, channels that
    are not used. ``missing`` are channels that the case lacks, and that are zeros in ``image``.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    mask: NDArray[np.bool_] | None
    grid: Grid
    flags: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def load_case(
    case: Case, channels: Sequence[str], labels: Sequence[int] | None = None, *, need_label: bool = False,
    room: int | None = None, zeros: bool = False,
) -> Loaded:  # fmt: skip
    """Read and check one case.

    Args:
        case: its files.
        channels: the channels wanted, by name, in order.
        labels: allowed label values; None skips the label.
        need_label: whether a missing label is an error.
        room: bytes that there are for the images; a case that needs more is refused by its headers. None for no bound.
        zeros: a channel that the case lacks is zeros, of which normalisation makes zeros; else it is an error.

    Raises:
        DataError: naming case and file. E_CHANNEL and E_LABEL for what is missing or has strange values; E_IO, E_FORMAT,
            E_TRUNCATED, E_GZIP, E_HASH, E_HEADER, E_DTYPE, E_NDIM, E_SIZE, E_UNITS, E_GEOMETRY, E_DICOM for a file;
            E_NONFINITE, E_RANGE for its voxels; E_GRID, E_MASK for files that do not fit together; E_TIMEOUT, E_MEMORY,
            E_DECODE if decoding fails.
    """
    present = _present(case, channels, zeros=zeros)
    planes: list[NDArray[np.float32]] = []
    opened: dict[Path, Volume] = {}
    grid: Grid | None = None

    def fits(stored: VolumeHeader) -> None:
        """Raise where a header claims more than there is room for: small files can unpack to a thousand times their size."""
        kept = sum(volume.stored.size for volume in opened.values())
        needed = kept + stored.size + 4 * len(channels) * math.prod(stored.shape[:3])
        if room is not None and needed > room:
            why = f"the images take at least {needed / 1e9:.2f} GB, and there are {room / 1e9:.2f} GB"
            raise no_memory(readable_name(path), why)

    for name in present:
        path, position = case.images[name]
        where = f"case {case.name}: {readable_name(path)}"
        if path not in opened:
            opened[path] = _read(path, case, channels=None if position is None else tuple(case.images), check=fits)
            if position is not None:
                _require_all_planes(opened[path], case, where)
        own = grid_of(opened[path])
        plane = brightness(opened[path], where, position)
        if grid is not None:
            plane, own = counted_like(plane, own, grid)
        grid = require_same_grid(grid, own, where)
        planes.append(plane)
    if grid is None:
        raise DataError(
            "no channels are asked for", where=f"case {case.name}", fix="name at least one", code="E_CHANNEL"
        )
    label = mask = None
    if labels is not None and case.label is not None:
        where = f"case {case.name}: {readable_name(case.label)}"
        volume = read_label_volume(case.label, case)
        label, own = counted_like(label_values(volume, labels, where), grid_of(volume), grid)
        require_same_grid(grid, own, where)
    elif need_label:
        raise DataError(
            "the case has no label", where=f"case {case.name}", why="training and scoring need one",
            fix="add 'label' to the case list", code="E_LABEL",
        )  # fmt: skip
    if case.mask is not None:
        mask = _mask(case.mask, case, grid)
    image = np.stack(planes) if len(planes) > 1 else planes[0][None]  # a view: a large volume is not copied
    flags = image_flags(present, image, case.images)
    missing = tuple(name for name in channels if name not in present)
    if missing:
        image = _with_zeros(image, [name in present for name in channels])
        flags = (*(f"channel {name} is missing, and 0 in its place" for name in missing), *flags)
    return Loaded(image, label, mask, grid, flags, missing)


def _with_zeros(image: NDArray[np.float32], present: Sequence[bool]) -> NDArray[np.float32]:
    """The channels of an image at those places that are ``present``, and zeros at the others."""
    result = np.zeros((len(present), *image.shape[1:]), dtype=np.float32)
    result[np.flatnonzero(present)] = image
    return result


def load_labels(
    path: Path,
    case: str,
    allowed: Sequence[int] | None = None,
    *,
    sums: Mapping[Path, str] | None = None,
    colours: Codes | None = None,
    like: Grid | None = None,
) -> tuple[NDArray[np.uint8], Grid]:
    """Read one label volume (D1, D2, D3) and its grid; the errors are those of :func:`load_case`.

    Args:
        path: of the volume.
        case: its name, for messages.
        allowed: label values that may occur; None for any from 0 to 255.
        sums: what the case list says of files (``Case.sha256``); a volume that is among them must have that sum.
        colours: label values of a mask in colour, or of a DICOM segmentation (``Case.colours``).
        like: count the voxels as this grid does, if it has the same ones (:meth:`Grid.reordering`).
    """
    volume = read_label_volume(path, Case(case, {}, sha256=dict(sums or {}), colours=dict(colours or {})))
    where = f"case {case}: {readable_name(path)}"
    values = label_values(volume, allowed if allowed is not None else range(256), where)
    return counted_like(values, grid_of(volume), like) if like is not None else (values, grid_of(volume))


def grid_of(volume: Volume) -> Grid:
    """The grid of a volume."""
    return Grid(volume.stored.shape[:3], np.array(volume.stored.affine, dtype=np.float64))


def _read(
    path: Path, case: Case, *, channels: Sequence[str] | None, check: Check | None = None, labels: bool = False
) -> Volume:
    """A file of a case: a 3D volume, or one with these channels on a fourth axis."""
    try:
        if path in case.sha256:
            check_sums(path, case.sha256[path])
        volume = decode(path, check, labels=labels, segments=segments_of(case.colours) if labels else None)
    except DataError as error:
        raise _of_case(error, case) from error
    volume = as_listed(volume, channels, f"case {case.name}: {readable_name(path)}")
    shape, ndim = volume.stored.shape, 3 if channels is None else 4
    if len(shape) != ndim:
        several = ndim == 3
        raise DataError(
            f"the image is {len(shape)}D with shape {shape}, {ndim}D is expected",
            where=f"case {case.name}: {readable_name(path)}",
            why="several channels in one file need names" if several else "the case list names several channels",
            fix="name the channels under 'modality' in the case list, or save one volume alone"
            if several
            else "correct 'modality' in the case list",
            code="E_NDIM",
        )
    return volume


def read_label_volume(path: Path, case: Case) -> Volume:
    """Read the file of a label map, with values as stored; the errors are those of :func:`load_case`."""
    volume = _read(path, case, channels=None, labels=True)
    return from_colours(volume, case.colours, f"case {case.name}: {readable_name(path)}") if case.colours else volume


def as_listed(volume: Volume, channels: Sequence[str] | None, where: str) -> Volume:
    """A picture with the channels that the case list has of it; other volumes as they are.

    Shades of grey are red, green and blue alike, and a picture whose colours are alike everywhere is one in grey, however it
    was saved.

    Args:
        volume: as read.
        channels: that the case list names for the file; None for one that is the whole file.
        where: case and file, for messages.

    Raises:
        DataError: E_CHANNEL, for a picture in colour where one channel is expected.
    """
    stored, array = volume.stored, volume.array
    if not stored.is_picture:
        return volume
    if channels is not None and set(channels) == set(COLOURS) and array.ndim == 3:
        shape = (*stored.shape, 3)
        return Volume(replace(stored, shape=shape), np.broadcast_to(array[..., None], shape))
    if channels is None and array.ndim == 4 and stored.shape[3] == 3:
        first = array[..., 0]
        if not (np.array_equal(first, array[..., 1]) and np.array_equal(first, array[..., 2])):
            raise DataError(
                "the picture is in colour, and one channel is expected", where=where,
                why="which of red, green and blue is meant is not known",
                fix='write "modality": {"0": "red", "1": "green", "2": "blue"} in the case list, or save the picture in grey',
                code="E_CHANNEL",
            )  # fmt: skip
        return Volume(replace(stored, shape=stored.shape[:3], channels_first=False), first)
    return volume


def content_of(path: Path, case: Case) -> str:
    """The sum of one of a case's files as part of a key, also where it need not be read again; see :func:`content_key`.

    Raises:
        DataError: E_HASH, naming case and file.
    """
    try:
        return content_key(path, case.sha256)
    except DataError as error:
        raise _of_case(error, case) from error


def _of_case(error: DataError, case: Case) -> CmtError:
    """The error of a file, saying also whose it is."""
    return error.within(f"case {case.name}")


def _present(case: Case, channels: Sequence[str], *, zeros: bool) -> list[str]:
    """The channels that the case has; all of them, unless zeros stand for the others."""
    missing = [name for name in channels if name not in case.images]
    if missing and (not zeros or len(missing) == len(channels)):
        raise DataError(
            f"channel {', '.join(missing)} is missing",
            where=f"case {case.name}",
            why=f"the model takes {', '.join(channels)}; the case has {', '.join(case.images)}",
            fix="add the file under that name, or leave the case out" if zeros else "add the file under that name, or leave the "
            "case out; models trained with data.missing=zeros do with one channel of several",
            code="E_CHANNEL",
        )  # fmt: skip
    return [name for name in channels if name in case.images]


def _require_all_planes(volume: Volume, case: Case, where: str) -> None:
    if volume.stored.shape[3] != len(case.images):
        raise DataError(
            f"the 4D image has {volume.stored.shape[3]} channels, the case list names {len(case.images)}",
            where=where,
            why="channels would be matched to the wrong names",
            fix="correct 'modality' in the case list",
            code="E_NDIM",
        )


def _mask(path: Path, case: Case, grid: Grid) -> NDArray[np.bool_]:
    where = f"case {case.name}: {readable_name(path)}"
    volume = _read(path, case, channels=None, labels=True)
    mask, own = counted_like(label_values(volume, (0, 1), where, binary=True) > 0, grid_of(volume), grid)
    require_same_grid(grid, own, where)
    if not mask.any():
        raise DataError(
            "the mask is empty", where=where, why="nothing would be left of the image",
            fix="correct the mask, or leave it out of the case list", code="E_MASK",
        )  # fmt: skip
    return mask


def require_same_grid(first: Grid | None, found: Grid, where: str, than: str = "the case's first channel") -> Grid:
    """Return the grid of a case.

    Args:
        first: of its files so far, if there is one.
        found: of one more file.
        where: names that file in the message.
        than: names the file of ``first``.

    Raises:
        DataError: E_GRID, if the two differ.
    """
    if first is None or first.equals(found):
        return first or found
    if first.shape != found.shape:
        why = f"shape {found.shape}, not {first.shape}"
    else:
        apart = corner_distance(first.affine, found.affine, first.shape)
        why = f"corners lie up to {apart:.4g} mm apart ({apart / min(first.spacing):.3g} voxels)"
    raise DataError(
        f"the file lies on another grid than {than}",
        where=where,
        why=why,
        fix="resample it to that grid, or correct its header if only that is wrong",
        code="E_GRID",
    )
