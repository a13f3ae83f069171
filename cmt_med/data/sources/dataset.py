"""The cases found under a path, and what is known of them: the one result of every reader of this room."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmt_med.base.errors import DataError
from cmt_med.config.schema import Missing, Region
from cmt_med.data.case import CASE_NAME, Case
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.streams import readable_name


@dataclass
class Dataset:
    """Cases found under a path, and the problems of single cases.

    Attributes:
        kind: of what was found, for messages: "case list", "table", "folder", ...
        title: of the data set, for messages.
        name: what its case list calls it, if there is one that does.
        cases: all that can be told apart, complete or not; without patient or fold unless the data set names them.
        test: cases that a case list names apart, without references.
        channels: of its cases.
        labels: names and values of labels that the data set states.
        named_by: what states them.
        colours: of label maps in colour (``Case.colours``).
        regions: overlapping targets that the data set states.
        annotated: case name -> names of the labels that its source annotates, where the cases do not have their values yet.
        boxes: class -> number of boxes around objects, where images have such.
        ignore: value of voxels that nobody has annotated; None for none.
        convention: that the case list states.
        demo: whether the case list says that its volumes are synthetic.
        suffixes: what file names (or a list) call the channels.
        notes: what was read in an unusual way, a line each.
        problems: cases that were left out, and why.
        incomplete: names of those that were left out because they lack a channel.
        unmatched: volumes that belong to no case.
        doubtful: cases with a channel or a label map twice, here once; they are among the problems.
        duplicates: the second files of these.
        others: files that are no volumes, where folders were searched for volumes.
        repeated: links to folders that were there already, likewise.
        listed: the case list, if there is one.
        by_name: whether cases and channels were told by the names of files, with nothing that lists them.
    """

    kind: str
    title: str = ""
    name: str = ""
    cases: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    named_by: str = ""
    colours: dict[int | str, int] = field(default_factory=dict)
    regions: tuple[Region, ...] | None = None
    ignore: int | None = None
    annotated: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, int] = field(default_factory=dict)
    convention: str = ""
    demo: bool = False
    suffixes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    unmatched: list[Path] = field(default_factory=list)
    doubtful: list[Case] = field(default_factory=list)
    duplicates: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    listed: Path | None = None
    by_name: bool = False

    @property
    def pictures(self) -> bool:
        """Tell whether all images are 2D."""
        files = [file for case in self.cases for file, _ in case.images.values()]
        return bool(files) and all(map(looks_like_picture, files))


def leave_out_incomplete(found: Dataset, missing: Missing = "drop") -> None:
    """Move cases that are incomplete, listed twice or badly named from ``cases`` to ``problems``.

    Args:
        found: the data set.
        missing: ``zeros`` keeps cases that have at least one of the channels.
    """
    seen: set[str] = set()
    owners: dict[tuple[tuple[Path, int | None], ...], str] = {}
    kept = []
    for case in found.cases:
        files = tuple(case.images[name] for name in sorted(case.images))
        owner = owners.get(files, case.name)
        lacking = [name for name in found.channels if name not in case.images] if missing == "drop" else []
        if not case.images:
            fault = DataError(
                "the case has no image", where=f"case {case.name}", why="a label map alone shows nothing to learn from",
                fix="give the folder that holds the images, too", code="E_CHANNEL",
            )  # fmt: skip
        elif lacking:
            found.incomplete.append(case.name)
            fault = DataError(
                f"channel {', '.join(lacking)} is missing", where=f"case {case.name}",
                why=f"{', '.join(found.channels)} are needed of every case",
                fix="add the file, do without the case, or train with data.missing=zeros", code="E_CHANNEL",
            )  # fmt: skip
        elif case.name in seen:
            fault = DataError(
                "the case name stands twice", where=f"case {case.name}", why="one result would overwrite the other",
                fix="give it another id", code="E_MANIFEST",
            )  # fmt: skip
        elif owner != case.name:
            fault = DataError(
                f"these are the files of case {owner}", where=f"case {case.name}",
                why="it could else be trained on and held out", fix="list each image once", code="E_MANIFEST",
            )  # fmt: skip
        elif not CASE_NAME.match(case.name):
            fault = DataError(
                "this cannot be a case name", where=f"case {case.name!r}", why="it becomes the name of files",
                fix="use letters, digits, . _ + - (at most 200), or a table with ids", code="E_MANIFEST",
            )  # fmt: skip
        else:
            seen.add(case.name)
            owners[files] = case.name
            kept.append(case)
            continue
        fault.case = readable_name(Path(case.name))
        found.problems.append(fault)
    found.cases = kept
