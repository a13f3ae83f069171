"""Images and label maps of cases as files of other tools: copied where they fit, else written anew on the same grid."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.base.files import write_bytes, write_file
from cmt_med.base.text import counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.conventions.names import require_distinct
from cmt_med.data.manifest import Manifest
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.data.volumes.written import write_volume

NIFTI = ".nii.gz"

log = logging.getLogger(__name__)


def are_pictures(manifest: Manifest) -> bool:
    """Tell whether all images are 2D, by their names."""
    return all(looks_like_picture(file) for case in manifest.cases for file, _ in case.images.values())


def require_whole_annotations(manifest: Manifest, layout: str) -> None:
    """Raise E_LABEL where cases annotate some of the labels alone, which a layout has no place for."""
    partial = [case.name for case in (*manifest.cases, *manifest.test) if case.annotated is not None]
    if partial:
        raise DataError(
            f"{layout} has no place for cases that annotate some labels alone", where=f"case {partial[0]}",
            why="the others would be learned as background", fix="use --to msd, whose list keeps 'annotated'", code="E_LABEL",
        )  # fmt: skip


def taught_and_tests(manifest: Manifest, untaught: Collection[str]) -> tuple[list[Case], list[Case]]:
    """The cases for training, and those for testing: these and the ``untaught``, which training could not use.

    Raises:
        DataError: E_MANIFEST, if two cases for testing have one name.
    """
    if untaught:
        log.warning(
            "%s without a reference written as test cases: %s",
            counted(len(untaught), "case"),
            ", ".join([*untaught][:5]),
        )
    tests = [*manifest.test, *(case for case in manifest.cases if case.name in untaught)]
    require_distinct([case.name for case in tests], str(manifest.path))
    return [case for case in manifest.cases if case.name not in untaught], tests


def values_of(manifest: Manifest) -> list[int]:
    """The values of the label maps."""
    return [*manifest.labels.values(), *([] if manifest.ignore is None else [manifest.ignore])]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as it is."""
    with source.open("rb") as stream:
        write_file(target, partial(shutil.copyfileobj, stream))


def write_image(case: Case, channel: str, target: Path) -> None:
    """Write one channel of a case, as NIfTI or as PNG."""
    loaded = load_case(case, [channel])  # what is missing or damaged is refused here rather than by who reads the copy
    source, position = case.images[channel]
    if target.suffix == ".png":  # always anew: a palette, or grey saved in colour, would be read as other channels
        write_bytes(target, as_png(loaded.image[0][..., 0].T))
    elif position is None and source.name.endswith(NIFTI):
        copy_file(source, target)
    else:
        write_volume(target, loaded.image[0], loaded.grid, source)


def write_colours(case: Case, target: Path) -> None:
    """Write red, green and blue of a case as one PNG."""
    loaded = load_case(case, COLOURS)
    write_bytes(target, as_png(np.stack([plane[..., 0].T for plane in loaded.image], -1)))


def write_channels(case: Case, channels: Sequence[str], target: Path) -> None:
    """Write several channels of a case as one file, the channels last."""
    loaded = load_case(case, channels)
    write_volume(target, np.moveaxis(loaded.image, 0, -1), loaded.grid, case.images[channels[0]][0])


def write_label(case: Case, manifest: Manifest, values: Mapping[int, int], target: Path) -> None:
    """A label map in the numbers of the layout; the file itself where it has them."""
    assert case.label is not None  # by the callers
    first = manifest.channels[0]
    alone = replace(case, images={first: case.images[first]}) if case.images[first][1] is None else case
    loaded = load_case(alone, [first], values_of(manifest), need_label=True)
    assert loaded.label is not None  # asked for
    if (
        target.name.endswith(NIFTI)
        and case.label.name.endswith(NIFTI)
        and case.label.is_file()
        and loaded.grid.equals(load_labels(case.label, case.name, colours=case.colours)[1])
        and all(old == new for old, new in values.items())
    ):
        copy_file(case.label, target)
        return
    table = np.zeros(256, np.uint8)
    for old, new in values.items():
        table[old] = new
    write_volume(target, table[loaded.label], loaded.grid, case.label)


def as_png(pixels: NDArray[np.float32]) -> bytes:
    """A picture of whole numbers, of 8 bits if they fit, else 16 (grey alone)."""
    highest, whole = float(pixels.max()), bool((pixels == np.round(pixels)).all() and pixels.min() >= 0)
    if not whole or highest > (255 if pixels.ndim == 3 else 65535):
        raise DataError(
            "the picture's values do not fit into a PNG", where="convert", why=f"they reach {highest:g}",
            fix="save it with whole numbers up to 65535", code="E_RANGE",
        )  # fmt: skip
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8 if highest <= 255 else np.uint16)).save(stream, format="PNG")
    return stream.getvalue()
