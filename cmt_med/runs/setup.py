"""A config and a case list for a data set as downloaded: what ``cmt-med init`` writes and says."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, OutputError
from cmt_med.base.files import require_writable_folder, write_json, write_text
from cmt_med.base.text import counted, visible
from cmt_med.config.data import Missing
from cmt_med.config.reading import load_config
from cmt_med.config.schema import Experiment
from cmt_med.data.conventions.signs import cavities_in_doubt
from cmt_med.data.manifest import Manifest, manifest_content
from cmt_med.data.preprocessing.survey import Survey
from cmt_med.data.sources.dataset import Dataset
from cmt_med.data.splits import split_cases
from cmt_med.data.volumes.endings import volume_stem
from cmt_med.runs.first_config import first_config
from cmt_med.runs.recognition import Recognised, recognised

log = logging.getLogger(__name__)


def set_up(
    path: Path,
    output: Path,
    *,
    convention: str | None = None,
    task: str | None = None,
    missing: Missing | None = None,
    force: bool = False,
) -> int:
    """Write a config and its case list, say what was found, and return the exit code; arguments as of ``cmt-med init``.

    Raises:
        DataError: E_IO, E_LABEL, E_CONVENTION, E_TASK, or the first faulty case where none is left; OutputError: if a file
            exists.
    """
    output = _config_file(output, path)
    listed = output.with_suffix(".json")
    _require_free(output, listed, force=force)
    if output.parent.is_dir():
        require_writable_folder(output.parent)  # found before minutes of reading
    known = recognised(path, listed, convention, missing, task)
    require_writable_folder(output.parent)
    found, seen, manifest = known.found, known.seen, known.manifest
    if manifest.classes:
        return _set_up_classes(known, path, output)
    write_json(listed, manifest_content(manifest, manifest.cases, listed.parent, test=True))
    write_text(output, first_config(output, listed, manifest, seen, found, task))
    failures = _note_failures(found, seen, output.parent)
    experiment = load_config(output)
    objects = any(case.instances or case.boxes for case in manifest.cases)
    for line in _told_of_objects(known, failures) if objects else _told(known, path, failures):
        print(visible(line))
    _print_plan(experiment, manifest, _outputs(experiment, manifest))
    print(f"config:    {output}\ncase list: {listed}\nnext:      cmt-med train --config {output} --dry-run")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _outputs(experiment: Experiment, manifest: Manifest) -> int:
    """Channels of the network's output."""
    if experiment.task == "detection":
        return max(1, len(manifest.labels) - 1)
    return 2 if experiment.task == "instances" else len(manifest.regions or manifest.labels)


def _set_up_classes(known: Recognised, path: Path, output: Path) -> int:
    """Write config and case list for images with classes, and say what was found."""
    found, seen, manifest = known.found, known.seen, known.manifest
    listed, classes = manifest.path, manifest.classes
    write_json(listed, manifest_content(manifest, manifest.cases, listed.parent, test=True))
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
        f"channels:   {', '.join(manifest.channels)}",
        *(f"note:       {note}" for note in found.notes),
        *_incomplete(found),
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


def _config_file(output: Path, path: Path) -> Path:
    """The config: the file that is named, or in a folder, one with the name of the data set."""
    if output.suffix and not output.is_dir():
        return output
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", volume_stem(path.resolve()).removesuffix(".json").removesuffix(".csv"))
    return output / f"{name.strip('._-') or 'experiment'}.yaml"


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


# ---- what is said


def _told(known: Recognised, path: Path, failures: list[dict[str, str]]) -> Iterator[str]:
    manifest, seen, found, style = known.manifest, known.seen, known.found, known.style
    patients = len({case.group for case in manifest.cases})
    cases = f"{counted(len(manifest.cases), 'case')} of {counted(patients, 'patient')}"
    yield f"data set:   {found.title}, {cases}, {seen.labelled} with labels"
    yield f"convention: {style.about if style is not None else 'none'} (from {'; '.join(known.reasons)})"
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
    yield from _incomplete(found)
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


def _told_of_objects(known: Recognised, failures: list[dict[str, str]]) -> Iterator[str]:
    """Lines on images with numbered objects, or with boxes around objects."""
    manifest = known.manifest
    boxed = any(case.boxes for case in manifest.cases)
    taught = sum(bool(case.boxes or case.instances) for case in manifest.cases)
    what = "boxes" if boxed else "numbered objects"
    yield f"data set:   {known.found.title}, {counted(len(manifest.cases), 'case')}, {taught} with {what}"
    yield f"channels:   {', '.join(manifest.channels)}"
    for note in known.found.notes:
        yield f"note:       {note}"
    yield from _untaught(
        [case.name for case in manifest.cases if not (case.instances or case.boxes)],
        "file of boxes" if boxed else "label image",
    )
    for failure in failures:
        yield f"left out:   {failure['case']}: [{failure['code']}] {failure['what']}"


def _incomplete(found: Dataset) -> Iterator[str]:
    """A line on how to use the cases that were left out because they lack a channel."""
    if found.incomplete:
        count = counted(len(found.incomplete), "case")
        yield f"note:       {count} without a channel left out; --missing zeros uses them, with 0 for it"


def _untaught(names: list[str], lacking: str) -> Iterator[str]:
    """A line on the cases that nothing can be learned from."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield f"note:       {counted(len(names), 'case')} without a {lacking}, not trained on: {', '.join(names[:5])}{more}"


def _print_plan(experiment: Experiment, manifest: Manifest, targets: int) -> None:
    from cmt_med.runs.plan import foresee  # torch takes seconds to import, and faulty data is known before
    from cmt_med.tasks import TASKS

    taught = [case for case in manifest.cases if TASKS[experiment.task].has_target(case)]
    training, _ = split_cases(taught, experiment.data.split, experiment.seed)
    lines = foresee(experiment, len(manifest.channels), targets, len(training))
    for line in lines:
        print(f"plan:       {line}")
