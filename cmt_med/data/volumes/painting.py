"""Label maps made of named masks: segments of DICOM, and masks in files of their own. One voxel has one label.

Objects with a number each may overlap: the smaller one lies on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import ANY_OBJECT

_LEAVE_OUT = 'give the one that is not wanted the value 0 in the case list: "segments": {"NAME": 0}'


def values_of(names: Sequence[str], table: Mapping[str, int], where: str, numbers: Sequence[int]) -> list[int]:
    """The label value of each name.

    Args:
        names: of segments or structures.
        table: name -> label value; empty where the case list has none.
        where: the file, for messages.
        numbers: of the names, which are their values without a table.

    Raises:
        DataError: E_LABEL for names that the table does not have, and for numbers above 255 without one.
    """
    if not table:
        if max(numbers, default=0) > 255:
            raise DataError(
                f"a segment has the number {max(numbers)}", where=where, why="label values go up to 255",
                fix='name the segments in the case list: "segments": {"NAME": 1}', code="E_LABEL",
            )  # fmt: skip
        return list(numbers)
    strange = [name for name in names if name not in table and ANY_OBJECT not in table]
    if strange:
        raise DataError(
            f"the segment {strange[0]!r} is not in the case list", where=where, why=f"it names {', '.join(list(table)[:8])}",
            fix='add it to "segments", with 0 to leave it out', code="E_LABEL",
        )  # fmt: skip
    return [table.get(name, table.get(ANY_OBJECT, 0)) for name in names]


class Painted:
    """A label map that masks are painted into.

    Args:
        array: zeros, which are painted.
        where: the file, for messages.
    """

    def __init__(self, array: NDArray[np.uint8], where: str) -> None:
        self.array, self.where = array, where
        self._owners: dict[int, str] = {}

    def paint(self, part: NDArray[np.uint8], mask: NDArray[np.bool_], value: int, name: str) -> None:
        """Give the voxels of a mask their value.

        Args:
            part: of the array, as a view, of the mask's shape.
            mask: of the segment.
            value: above 0.
            name: of the segment.

        Raises:
            DataError: E_LABEL, where another segment has another value.
        """
        taken = part[mask]
        clash = taken[(taken != 0) & (taken != value)]
        if clash.size:
            raise DataError(
                f"the segments {self._owners[int(clash[0])]!r} and {name!r} overlap", where=self.where,
                why=f"{clash.size} voxels would have two labels", fix=_LEAVE_OUT, code="E_LABEL",
            )  # fmt: skip
        part[mask] = value
        self._owners.setdefault(value, name)


def paint_objects(
    masks: Sequence[tuple[int, NDArray[np.int64]]], shape: Sequence[int], order: Literal["C", "F"]
) -> tuple[NDArray[np.int32], int]:
    """The label image of objects, the larger ones painted first, and how many of their voxels others cover.

    Args:
        masks: number of each object, and its voxels as places in the flat array.
        shape: of the array.
        order: in which the places count its voxels.
    """
    numbers = np.zeros(math.prod(shape), np.int32)
    for number, places in sorted(masks, key=lambda mask: -len(mask[1])):
        numbers[places] = number
    covered = sum(len(places) for _, places in masks) - int(np.count_nonzero(numbers))
    return numbers.reshape(shape, order=order), covered
