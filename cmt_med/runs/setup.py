"""A config and a case list for a data set as downloaded: what ``cmt-med init`` writes and says."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError, OutputError
from cmt_med.base.files import require_writable_folder, write_json, write_text
from cmt_med.base.text import counted, visible
from cmt_med.compute.memory import within_what_is_left
from cmt_med.config.reading import load_config
from cmt_med.config.schema import Experiment
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
from cmt_med.data.conventions.signs import Signs, UnknownChallengeError, cavities_in_doubt, recognise
from cmt_med.data.manifest import Manifest, manifest_content
from cmt_med.data.preprocessing.survey import Survey, survey
from cmt_med.data.sources import find_dataset
from cmt_med.data.sources.dataset import Dataset, leave_out_incomplete
from cmt_med.data.splits import split_cases
from cmt_med.runs.first_config import first_config

NO_CONVENTION = "none"
"""The answer that labels are of no challenge: each is called by its number."""

log = logging.getLogger(__name__)


def set_up(path: Path, output: Path, *, convention: str | None = None, force: bool = False) -> int:
    """Write a config and its case list, say what was found, and return the exit code; arguments as of ``cmt-med init``.

    Raises:
        DataError: E_IO, E_LABEL, E_CONVENTION, or the first faulty case where none is left; OutputError: if a file exists.
    """
    by_number, convention = convention == NO_CONVENTION, None if convention == NO_CONVENTION else convention
    listed = output.with_suffix(".json")
    _require_free(output, listed, force=force)
    found = find_dataset(path)
    if found.by_name:
        require_distinct([case.name for case in found.cases], str(path))
    leave_out_incomplete(found)
    if not found.cases:
        raise found.problems[0] if found.problems else _nothing(path)
    if not any(case.label or case.class_name for case in found.cases):
        strange = [problem for problem in found.problems if problem.code == "E_LABEL"]
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
    require_writable_folder(output.parent)
    seen = _look(found)
    if not seen.cases:
        raise seen.problems[0]
    classes = sorted({case.class_name for case in seen.cases if case.class_name})
    _require_distinct_classes(classes, path)
    if classes:
        return _set_up_classes(found, seen, classes, output, listed)
    if not seen.labelled:
        raise seen.problems[0] if seen.problems else _unlabelled(path, pictures=found.pictures)
    if by_number or not (found.labels or found.convention or convention or set(found.channels) & set(SEQUENCES)):
        found.labels, found.convention = labels_by_number(seen.values), ""
        found.notes.append(
            f"nothing names the labels: {_listed(found.labels)}; rename them under 'labels' in the case list"
        )
    style, reasons = _convention(found, seen, convention)
    labels = style.labels if style is not None else found.labels
    if not any(seen.values.keys() - {0}):
        raise DataError(
            "all label maps are empty", where=str(path), why="there is nothing to learn from",
            fix="check that these are the masks", code="E_LABEL",
        )  # fmt: skip
    manifest = _manifest(found, seen, style, labels, listed)
    write_json(listed, manifest_content(manifest, manifest.cases, listed.parent))
    write_text(output, first_config(output, listed, manifest, seen, found))
    failures = _note_failures(found, seen, output.parent)
    experiment = load_config(output)
    for line in _told(manifest, seen, found, style, reasons, failures):
        print(visible(line))
    _print_plan(experiment, manifest, len(manifest.regions or manifest.labels))
    print(f"config:    {output}\ncase list: {listed}\nnext:      cmt-med train --config {output} --dry-run")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _set_up_classes(found: Dataset, seen: Survey, classes: list[str], output: Path, listed: Path) -> int:
    """Write config and case list for images with classes, and say what was found."""
    channels = tuple(found.channels)
    manifest = Manifest(
        listed, found.name, tuple(seen.cases), channels, {}, found.demo or seen.demo, classes=tuple(classes)
    )
    write_json(listed, manifest_content(manifest, manifest.cases, listed.parent))
    write_text(output, first_config(output, listed, manifest, seen, found))
    failures = _note_failures(found, seen, output.parent)
    experiment = load_config(output)
    counts = Counter(case.class_name for case in manifest.cases)
    patients = len({case.group for case in manifest.cases})
    rare = [name for name in classes if counts[name] == 1]
    for line in (
        f"data set:   {found.title}, {counted(len(manifest.cases), 'case')}"
        + (f" of {counted(patients, 'patient')}" if patients < len(manifest.cases) else ""),
        "classes:    " + ", ".join(f"{name} ({counted(counts[name], 'case')})" for name in classes),
        f"channels:   {', '.join(channels)}",
        *(f"note:       {note}" for note in found.notes),
        *(f"note:       of {name} there is one case: it is trained on or scored, not both" for name in rare),
        *_untaught([case.name for case in manifest.cases if not case.class_name], "class"),
        *(f"left out:   {failure['case']}: [{failure['code']}] {failure['what']}" for failure in failures),
    ):
        print(visible(line))
    if patients == len(manifest.cases):
        print(
            "patients:   not known: each image counts as one; name them under 'group' in the case list, or scores are optimistic"
        )
    _print_plan(experiment, manifest, len(classes))
    print(f"config:    {output}\ncase list: {listed}\nnext:      cmt-med train --config {output} --dry-run")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _note_failures(found: Dataset, seen: Survey, folder: Path) -> list[dict[str, str]]:
    """Write ``failures.json`` of what was left out, or remove an older one."""
    failures = [
        {"case": p.case or p.where.removeprefix("case ")} | p.as_dict() for p in [*found.problems, *seen.problems]
    ]
    if failures:
        write_json(folder / "failures.json", failures)
    else:
        (folder / "failures.json").unlink(missing_ok=True)
    return failures


def _require_free(output: Path, listed: Path, *, force: bool) -> None:
    if output.suffix not in (".yaml", ".yml"):
        raise OutputError(
            "the config needs a name in .yaml", where=f"--output {output}", why="the case list beside it is named after it",
            fix="for example my.yaml",
        )  # fmt: skip
    there = [str(path) for path in (output, listed) if path.exists()]
    if there and not force:
        raise OutputError(
            "the file exists", where=", ".join(there), why="it may have been edited",
            fix="give another --output, or --force to replace it",
        )  # fmt: skip


def _look(found: Dataset) -> Survey:
    console = Console(stderr=True)
    progress = Progress(console=console, disable=not console.is_terminal, transient=True)
    with within_what_is_left(), progress as bar:
        task = bar.add_task("reading", total=len(found.cases))
        begun = time.monotonic()
        result = survey(found.cases, found.channels, tick=lambda: bar.advance(task))
    log.info("%d cases read in %.0f s", len(found.cases), time.monotonic() - begun)
    return result


def _convention(found: Dataset, seen: Survey, asked: str | None) -> tuple[Convention | None, list[str]]:
    """The convention; None where the case list names labels of its own that are no challenge's."""
    named = found.labels or (CONVENTIONS[found.convention].labels if found.convention else {})
    signs = Signs([c.name for c in seen.cases], found.suffixes, set(seen.values), named, seen.values_in)
    if asked is None and found.convention:
        return recognise(signs, found.convention, origin="the case list's convention")
    if asked is None and found.labels and not set(found.labels) & set(TUMOUR_LABELS):
        return None, ["the case list names the labels" if found.listed else "the values in the label maps"]
    try:
        return recognise(signs, asked)
    except UnknownChallengeError:
        strange = set(seen.values) - set(found.labels.values())
        # A list that names tumour parts says what they mean, whoever numbered the cases: only a challenge's names overrule.
        if asked is None and found.labels and not strange:
            return None, ["the case list names the labels"]
        raise


def _manifest(found: Dataset, seen: Survey, style: Convention | None, labels: dict[str, int], path: Path) -> Manifest:
    def with_patient(case: Case) -> Case:
        own = case.group not in ("", case.name)
        return case if style is None or own else replace(case, group=patient_of(case.name, style))

    # Only parts of a brain tumour make up the challenge's regions; a liver's necrosis is a label like any other.
    brain = style is not None or is_brain_tumour(labels, found.channels)
    regions = found.regions or (standard_regions(labels) if brain else None)
    return Manifest(
        path=path,
        name=found.name,
        cases=tuple(with_patient(case) for case in seen.cases),
        channels=tuple(found.channels),
        labels=dict(labels),
        demo=found.demo or seen.demo,
        convention=style.name if style is not None else "",
        regions=tuple(regions) if regions else None,
        colours=dict(found.colours),
    )


# ---- what is said


def _told(
    manifest: Manifest,
    seen: Survey,
    found: Dataset,
    style: Convention | None,
    reasons: list[str],
    failures: list[dict[str, str]],
) -> Iterator[str]:
    patients = len({case.group for case in manifest.cases})
    cases = f"{counted(len(manifest.cases), 'case')} of {counted(patients, 'patient')}"
    yield f"data set:   {found.title}, {cases}, {seen.labelled} with labels"
    yield f"convention: {style.about if style is not None else 'none; names as listed'} (from {'; '.join(reasons)})"
    yield f"channels:   {', '.join(manifest.channels)}"
    counts = ", ".join(f"{name} = {v} in {counted(seen.values[v], 'case')}" for name, v in manifest.labels.items())
    yield f"labels:     {counts}"
    for region in manifest.regions or ():
        yield f"region:     {region.name} = {' + '.join(region.labels)}, written as {region.write}"
    shapes = Counter(seen.shapes).most_common(1)[0][0]
    if found.pictures:
        yield f"size:       mostly {'×'.join(map(str, shapes[:2]))} pixels"
    else:
        yield (f"size:       foreground mostly {'×'.join(map(str, shapes))} voxels of "
              f"{'×'.join(f'{v:g}' for v in np.median(np.array(seen.spacings), axis=0))} mm")  # fmt: skip
    lacking = [name for name in style.suffixes if name not in manifest.channels] if style is not None else []
    if lacking:
        yield (
            f"note:       no case has {', '.join(lacking)}, which {style.name if style else ''} has: they are not used"
        )
    for note in found.notes:
        yield f"note:       {note}"
    yield from _untaught([case.name for case in manifest.cases if case.label is None], "label map")
    if {1, 255} <= seen.values.keys() and not any({1, 255} <= values for values in seen.values_in.values()):
        yield (
            f"look at:    the foreground is 1 in {counted(seen.values[1], 'case')} and 255 in {seen.values[255]}: if both mean "
            "the same, rewrite one kind"
        )
    doubtful = cavities_in_doubt(style, seen.values_in) if style is not None else []
    if doubtful:
        yield (f"look at:    {', '.join(doubtful[:10])}{' and more' if len(doubtful) > 10 else ''}: a cavity (4) without "
              "enhancing tumour (3), or a mask numbered as until 2021, where 4 is enhancing tumour")  # fmt: skip
    for case, pairs in sorted(seen.copies.items()) if not found.pictures else ():  # grey, saved in colour
        yield f"copied:     case {case}: {', '.join(f'{a} and {b} are the same image' for a, b in pairs)}"
    for failure in failures:
        yield f"left out:   {failure['case']}: [{failure['code']}] {failure['what']}"


def _untaught(names: list[str], lacking: str) -> Iterator[str]:
    """A line on the cases that nothing can be learned from."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield f"note:       {counted(len(names), 'case')} without a {lacking}, not trained on: {', '.join(names[:5])}{more}"


def _require_distinct_classes(classes: list[str], path: Path) -> None:
    """Raise for classes whose names differ in capitals, spaces or underscores alone.

    Raises:
        DataError: E_LABEL, naming both.
    """
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(re.sub(r"[\s_]+", "", name).casefold(), name)
        if other != name:
            raise DataError(
                f"two classes have almost the same name: {other!r} and {name!r}", where=str(path),
                why="one is more often a slip of the pen than a class of its own", fix="write both alike, or name them apart",
                code="E_LABEL",
            )  # fmt: skip


def _print_plan(experiment: Experiment, manifest: Manifest, targets: int) -> None:
    from cmt_med.runs.plan import foresee  # torch takes seconds to import, and faulty data is known before
    from cmt_med.tasks import TASKS

    taught = [case for case in manifest.cases if TASKS[experiment.task].has_target(case)]
    training, _ = split_cases(taught, experiment.data.split, experiment.seed)
    lines = foresee(experiment, len(manifest.channels), targets, len(training))
    for line in lines:
        print(f"plan:       {line}")


def _listed(labels: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in labels.items())


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
