"""A case: its files, and what is known beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CASE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\Z")

ANY_OBJECT = "*"
"""Among names of segments: whatever else is there, as any number of an object."""
Codes = Mapping[int | str, int]
"""Label values of what files have in their place: colours, 65536 R + 256 G + B, and names of DICOM segments."""

COLOURS = ("red", "green", "blue")
"""The channels of a picture in colour, in their order."""


@dataclass(frozen=True)
class Case:
    """One case: files by channel, and what is known beside them.

    ``images`` maps a channel to its file and, for a 4D file with several channels, the position in it (else None).
    ``group`` is the patient: splits never separate the cases of one group. ``sha256`` has the sums that files must have
    (:mod:`cmt_med.data.volumes.sums`), for those that the case list names. ``colours`` are the label values of a mask in
    colour, by 65536 R + 256 G + B, or of a DICOM segmentation, by the names of its segments; empty where pixels are label
    values themselves. ``class_name`` is what the image as a whole shows; empty if nothing says so. ``ignore`` is the value of
    voxels in the label map that nobody has annotated; None for none. ``annotated`` are the label values that its source
    annotates: of others, nobody knows where they are; None for all. ``instances`` is a label image in which every object has a
    number of its own. ``boxes`` is a file with boxes around objects (:mod:`cmt_med.data.volumes.box_files`).
    """

    name: str
    images: dict[str, tuple[Path, int | None]]
    label: Path | None = None
    mask: Path | None = None
    group: str = ""
    fold: int | None = None
    sha256: dict[Path, str] = field(default_factory=dict)
    colours: dict[int | str, int] = field(default_factory=dict)
    class_name: str = ""
    ignore: int | None = None
    annotated: tuple[int, ...] | None = None
    instances: Path | None = None
    boxes: Path | None = None

    def annotates(self, values: Iterable[int]) -> bool:
        """Tell whether all of these label values are annotated."""
        return self.annotated is None or set(values) <= {0, *self.annotated}


def first_image(case: Case) -> Path:
    """The file of the first of its channels."""
    return next(iter(case.images.values()))[0]


def segments_of(codes: Codes) -> dict[str, int]:
    """Label values by the names of DICOM segments alone."""
    return {name: value for name, value in codes.items() if isinstance(name, str)}


def colours_alone(codes: Codes) -> dict[int, int]:
    """Label values by colours alone."""
    return {colour: value for colour, value in codes.items() if isinstance(colour, int)}
