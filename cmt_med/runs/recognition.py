"""What a data set as downloaded is: its files read through the gate, its cases, classes, channels and labels."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.compute.memory import within_what_is_left
from cmt_med.config.schema import Missing
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import CONVENTIONS, Convention, patient_of, standard_regions
from cmt_med.data.conventions.names import (
    LABEL_WORDS,
    SEQUENCES,
    TUMOUR_LABELS,
    is_brain_tumour,
    labels_by_number,
    require_distinct,
)
from cmt_med.data.conventions.signs import Signs, UnknownChallengeError, recognise
from cmt_med.data.manifest import Manifest, load_manifest
from cmt_med.data.meanings import annotated_values
from cmt_med.data.preprocessing.cache import default_cache_folder
from cmt_med.data.preprocessing.survey import Survey, survey
from cmt_med.data.sources import case_list, coco, find_dataset
from cmt_med.data.sources.by_grid import keep_one_modality
from cmt_med.data.sources.dataset import Dataset, leave_out_incomplete
from cmt_med.data.volumes.journal import LARGE, journal_of
from cmt_med.runs.targets import (
    ask_about_incomplete,
    choose,
    keep_copies_together,
    leave_out_unnamed,
    note_covered,
    require_distinct_classes,
    require_one_foreground,
)

NO_CONVENTION = "none"
"""The answer that labels are of no challenge: each is called by its number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recognised:
    """A data set, and how it was understood.

    Attributes:
        found: how it lies on disk; cases that cannot be used are among its problems.
        seen: what its files hold.
        manifest: its cases with channels, labels or classes.
        style: the challenge whose labels these are; None for labels of its own.
        reasons: for that.
    """

    found: Dataset
    seen: Survey
    manifest: Manifest
    style: Convention | None = None
    reasons: list[str] = field(default_factory=list)


def data_set(path: Path, missing: Missing = "drop", task: str | None = None) -> Manifest:
    """The data set that a config names: a case list as it stands, or whatever ``init`` takes, whose files are read first.

    Args:
        path: of the data set.
        missing: ``data.missing`` of the config.
        task: of the config; None if nobody has chosen.

    Raises:
        DataError: as of :func:`cmt_med.data.manifest.load_manifest` and :func:`recognised`.
    """
    manifest, problems = data_set_with_problems(path, None, missing, task)
    for problem in problems:
        log.warning("left out: %s", problem.message())
    return manifest


def data_set_with_problems(
    path: Path, convention: str | None, missing: Missing = "drop", task: str | None = None
) -> tuple[Manifest, list[DataError]]:
    """:func:`data_set`, and the cases that were left out; ``convention`` as of :func:`recognised`."""
    if (case_list.recognises(path) or not path.exists()) and convention is None and not coco.recognises(path):
        return load_manifest(path), []
    known = recognised(path, path, convention, missing, task)
    for note in known.found.notes:
        log.info("%s: %s", path, note)
    return known.manifest, [*known.found.problems, *known.seen.problems]


def recognised(
    path: Path, listed: Path, convention: str | None, missing: Missing | None = None, task: str | None = None
) -> Recognised:
    """Read a data set as downloaded.

    Args:
        path: as of ``cmt-med init``.
        listed: where its case list will lie.
        convention: the answer to what the labels mean; None if nobody asked.
        missing: what is done with cases that lack a channel; None to ask where a third of them do.
        task: what is to be learned; None if nobody has chosen.

    Raises:
        DataError: E_IO, E_LABEL, E_CONVENTION, E_TASK where label maps and classes are there, or the first faulty case where none
            is left; ConfigError: for an answer that does not fit.
    """
    by_number, convention = convention == NO_CONVENTION, None if convention == NO_CONVENTION else convention
    found = find_dataset(path)
    if found.listed is not None and found.problems:  # a list says itself what belongs to it
        for problem in found.problems[1:10]:
            log.error("%s", problem.message())
        raise found.problems[0]
    if found.by_name:
        require_distinct([case.name for case in found.cases], str(path))
    keep_one_modality(found)
    leave_out_incomplete(found, missing or "drop")
    if missing is None:
        ask_about_incomplete(found)
    if not found.cases:
        raise found.problems[0] if found.problems else _nothing(path)
    if not any(case.label or case.class_name or case.instances or case.boxes for case in found.cases):
        strange = [problem for problem in found.problems if problem.code in ("E_LABEL", "E_DICOM")]
        raise strange[0] if strange else _unlabelled(path, pictures=found.pictures)
    if convention is not None and any(case.class_name for case in found.cases):
        raise ConfigError(
            "a convention says what label values mean", where=f"--convention {convention}",
            why="these cases have classes, and no label is learned", fix="leave it out",
        )  # fmt: skip
    if convention is not None and not set(found.channels) & {*SEQUENCES, "image"}:
        raise ConfigError(
            "a convention says what the labels of brain tumours mean", where=f"--convention {convention}",
            why=f"the channels are {', '.join(found.channels)}, no MR sequence", fix="leave it out, and name the labels",
        )  # fmt: skip
    seen = _look(found, path)
    note_covered(found, seen)
    keep_copies_together(found, seen)
    choose(found, seen, task, path)
    if not seen.cases:
        raise seen.problems[0]
    classes = sorted({case.class_name for case in seen.cases if case.class_name})
    require_distinct_classes(classes, path)
    if any(case.boxes for case in seen.cases):
        manifest = Manifest(
            listed, found.name, tuple(seen.cases), tuple(found.channels), dict(found.labels), found.demo or seen.demo,
            test=tuple(found.test),
        )  # fmt: skip
        return Recognised(found, seen, manifest)
    if classes or any(case.instances for case in seen.cases):
        manifest = Manifest(
            listed, found.name, tuple(seen.cases), tuple(found.channels), {}, found.demo or seen.demo, classes=tuple(classes),
            test=tuple(found.test),
        )  # fmt: skip
        return Recognised(found, seen, manifest)
    if not seen.labelled:
        raise seen.problems[0] if seen.problems else _unlabelled(path, pictures=found.pictures)
    if by_number or not (found.labels or found.convention or convention or set(found.channels) & set(SEQUENCES)):
        require_one_foreground(seen, path)
        found.labels, found.convention = labels_by_number(seen.values), ""
        found.notes.append(
            f"nothing names the labels: {_listed(found.labels)}; rename them under 'labels' in the case list"
        )
    style, reasons = _convention(found, seen, convention)
    labels = style.labels if style is not None else found.labels
    if style is None:
        leave_out_unnamed(seen, labels, found.named_by)
    if not any(seen.values.keys() - {0}):
        raise DataError(
            "all label maps are empty", where=str(path), why="there is nothing to learn from",
            fix="check that these are the masks", code="E_LABEL",
        )  # fmt: skip
    return Recognised(found, seen, _manifest(found, seen, style, labels, listed), style, reasons)


def _look(found: Dataset, path: Path) -> Survey:
    console = Console(stderr=True)
    progress = Progress(console=console, disable=not console.is_terminal, transient=True)
    with within_what_is_left(), progress as bar:
        task = bar.add_task("reading", total=len(found.cases))
        begun = time.monotonic()
        journal = journal_of(default_cache_folder(), path, "cases") if len(found.cases) >= LARGE else None
        result = survey(found.cases, found.channels, tick=lambda: bar.advance(task), journal=journal)
    log.info("%d cases read in %.0f s", len(found.cases), time.monotonic() - begun)
    return result


def _convention(found: Dataset, seen: Survey, asked: str | None) -> tuple[Convention | None, list[str]]:
    """The convention; None where the case list names labels of its own that are no challenge's."""
    named = found.labels or (CONVENTIONS[found.convention].labels if found.convention else {})
    signs = Signs([c.name for c in seen.cases], found.suffixes, set(seen.values), named, seen.values_in)
    if asked is None and found.convention:
        return recognise(signs, found.convention, origin="the case list's convention")
    if asked is None and found.labels and not set(found.labels) & set(TUMOUR_LABELS):
        return None, [f"{found.named_by} names the labels" if found.named_by else "the values in the label maps"]
    try:
        return recognise(signs, asked)
    except UnknownChallengeError:
        strange = set(seen.values) - set(found.labels.values())
        # A list that names tumour parts says what they mean, whoever numbered the cases: only a challenge's names overrule.
        if asked is None and found.labels and not strange:
            return None, [f"{found.named_by} names the labels"]
        raise


def _manifest(found: Dataset, seen: Survey, style: Convention | None, labels: dict[str, int], path: Path) -> Manifest:
    def completed(case: Case) -> Case:
        if case.name in found.annotated:
            values = annotated_values(found.annotated[case.name], f"case {case.name}", found.listed or path, labels)
            case = replace(case, annotated=values)
        own = case.group not in ("", case.name)
        return case if style is None or own else replace(case, group=patient_of(case.name, style))

    # Only parts of a brain tumour make up the challenge's regions; a liver's necrosis is a label like any other.
    brain = style is not None or is_brain_tumour(labels, found.channels)
    regions = found.regions or (standard_regions(labels) if brain else None)
    return Manifest(
        path=path,
        name=found.name,
        cases=tuple(completed(case) for case in seen.cases),
        channels=tuple(found.channels),
        labels=dict(labels),
        demo=found.demo or seen.demo,
        convention=style.name if style is not None else "",
        regions=tuple(regions) if regions else None,
        colours=dict(found.colours),
        test=tuple(found.test),
        ignore=found.ignore,
    )


def _listed(labels: dict[str, int]) -> str:
    more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return ", ".join(f"{value} {name}" for name, value in list(labels.items())[:8]) + more


def _nothing(path: Path) -> DataError:
    return DataError("there are no cases here", where=str(path), why="no volume was found",
                     fix="give the folder with the cases", code="E_IO")  # fmt: skip


def _unlabelled(path: Path, *, pictures: bool) -> DataError:
    if pictures:
        return DataError(
            "no image has a label map or a class", where=str(path), why="there is nothing to train on",
            fix="put label maps into a folder beside the images (images/ and masks/); for classes, give the folder above: one "
            "folder for each of at least two classes", code="E_LABEL",
        )  # fmt: skip
    return DataError(
        "no case has a label map", where=str(path), why="there is nothing to train on",
        fix=f"name label maps CASE_{LABEL_WORDS[0]}, or _{', _'.join(LABEL_WORDS[1:])}; to segment with a trained model, "
        "no config is needed: cmt-med infer --model MODEL --input PATH", code="E_LABEL",
    )  # fmt: skip
