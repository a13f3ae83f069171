"""The cases of a report to look at: a picture of each, and small volumes of the worst and the best for the viewer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cmt_med.base.errors import CmtError
from cmt_med.base.text import visible
from cmt_med.reports.listing import CaseFiles, Listing
from cmt_med.reports.planes import three_planes
from cmt_med.reports.viewer import embedded_case
from cmt_med.reports.volumes import largest_error, load_shown

PICTURES = 24  # scored cases with a picture at most: the worst half and the best half
EMBEDDED = 6  # cases with volumes in the page at most; likewise, and where room is left, some without a score
UNDEFINED = 6  # cases without a score that have a picture at most

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Picture:
    """A case with three planes through its largest error; ``fault`` says why there are none."""

    case: str
    headline: str
    png: bytes | None
    fault: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures, worst case first, those of cases without a score, and the viewer's cases with the page's numbers of them."""

    pictures: tuple[Picture, ...]
    undefined: tuple[Picture, ...]
    embedded: tuple[dict[str, Any], ...]
    number_of: dict[str, int]


def worst_and_best(ranked: Sequence[_Item], most: int) -> list[_Item]:
    """All of them if they are at most ``most``, else the first and the last halves of that many."""
    if len(ranked) <= most:
        return list(ranked)
    return [*ranked[: most - most // 2], *ranked[len(ranked) - most // 2 :]]


def make_gallery(listing: Listing, headlines: Mapping[str, str], *, scored: int, embed: bool) -> Gallery:
    """Draw the cases of ``listing``, which are ranked from the worst to the best.

    Args:
        listing: files and targets.
        headlines: what is said about each case.
        scored: how many of the cases have a score; they come first.
        embed: whether there is a viewer that volumes are worth embedding for.
    """
    ranked, undefined = listing.cases[:scored], listing.cases[scored:]
    inside: set[str] = set()
    if embed:
        chosen = worst_and_best(ranked, EMBEDDED)
        inside = {case.name for case in (*chosen, *undefined[: EMBEDDED - len(chosen)])}
    pictures: list[Picture] = []
    embedded: list[dict[str, Any]] = []
    number_of: dict[str, int] = {}
    drawn = worst_and_best(ranked, PICTURES)
    for case in (*drawn, *undefined[:UNDEFINED]):
        try:
            picture, volumes = _draw(case, listing, headlines[case.name], embed=case.name in inside)
        except CmtError as error:
            log.warning("no picture of %s: %s", visible(case.name), error.what)
            pictures.append(Picture(case.name, headlines[case.name], None, error.what))
            continue
        pictures.append(Picture(case.name, headlines[case.name], picture))
        if volumes is not None:
            number_of[case.name] = len(embedded)
            embedded.append(volumes)
    return Gallery(tuple(pictures[: len(drawn)]), tuple(pictures[len(drawn) :]), tuple(embedded), number_of)


def _draw(case: CaseFiles, listing: Listing, headline: str, *, embed: bool) -> tuple[bytes, dict[str, Any] | None]:
    shown = load_shown(case, listing.targets, listing.reference_targets)
    error_mm = (shown.affine @ np.array([*largest_error(shown), 1.0]))[:3]
    channel = next(reversed(case.images), "no image")
    title = f"{case.name} ({headline})"
    return three_planes(shown, error_mm), embedded_case(title, channel, shown, error_mm) if embed else None
