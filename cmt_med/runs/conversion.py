"""Data sets in the layouts of other tools: the work of ``cmt-med convert``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError, OutputError
from cmt_med.base.files import write_folder, write_json, write_text
from cmt_med.base.text import as_text, counted
from cmt_med.data.case import COLOURS
from cmt_med.data.manifest import Manifest
from cmt_med.data.nnunet import IGNORE, SPLITS
from cmt_med.data.sources.split_folders import TEST, TRAIN
from cmt_med.runs.coco_layout import write_coco
from cmt_med.runs.converted import (
    NIFTI,
    are_pictures,
    require_whole_annotations,
    taught_and_tests,
    values_of,
    write_channels,
    write_colours,
    write_image,
    write_label,
)
from cmt_med.runs.recognition import data_set_with_problems

_BIDS_SUFFIXES = {
    "t1": "T1w", "t2": "T2w", "flair": "FLAIR", "mri": "acq-mri_T1w", "image": "acq-image_T1w",
}  # fmt: skip

log = logging.getLogger(__name__)


def convert_data_set(path: Path, to: str, output: Path, *, convention: str | None = None) -> int:
    """Write a data set in another layout, say what was written, and return the exit code; arguments as of ``cmt-med convert``.

    Raises:
        ConfigError: for an unknown layout; DataError: for a data set that cannot be read, or that the layout cannot hold;
        OutputError: if the folder is not empty, or cannot be written.
    """
    if to not in LAYOUTS:
        raise ConfigError(
            f"layout {to!r} is unknown", where="--to", why="it says who is to read the folder",
            fix=f"use one of {', '.join(LAYOUTS)}",
        )  # fmt: skip
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            "the folder is not empty", where=f"--output {output}", why="files would be mixed", fix="give another"
        )
    manifest, problems = data_set_with_problems(path, convention)
    objects = any(case.instances or case.boxes for case in manifest.cases)
    if not any(case.label for case in manifest.cases) and not (objects and to == "coco"):
        raise DataError(
            "no case has a label map", where=str(path), why=f"{to} is a layout of images with label maps here",
            fix="use --to coco for numbered objects and boxes" if objects else "classes are written by init, into its case list",
            code="E_LABEL",
        )  # fmt: skip
    if output.is_dir():
        output.rmdir()  # empty; it comes back whole
    write_folder(output, lambda folder: LAYOUTS[to](manifest, folder))
    for problem in problems:
        log.warning("left out: %s", problem.message())
    left, tests = len(problems), f" and {counted(len(manifest.test), 'test case')}" if manifest.test else ""
    more = f", {left} left out" if left else ""
    print(f"{counted(len(manifest.cases), 'case')}{tests} written to {output} ({to}){more}")
    return EXIT_SOME_FAILED if problems else EXIT_DONE


# ---- layouts


def _nnunet(manifest: Manifest, folder: Path) -> None:
    """Version 2 of nnU-Net's raw folders: labels without gaps, regions as lists, folds in ``splits_final.json``."""
    require_whole_annotations(manifest, "nnU-Net")
    pictures = are_pictures(manifest)
    ending = ".png" if pictures else NIFTI
    values = {value: i for i, value in enumerate(sorted(manifest.labels.values()))}
    if manifest.ignore is not None:
        values[manifest.ignore] = len(values)  # nnU-Net wants it to be the highest
    together = pictures and set(manifest.channels) == set(COLOURS)
    training, tests = taught_and_tests(manifest, [case.name for case in manifest.cases if case.label is None])
    for part, cases in (("Tr", training), ("Ts", tests)):
        for case in cases:
            if together:
                write_colours(case, folder / f"images{part}/{case.name}_0000.png")
            for n, channel in enumerate(manifest.channels if not together else ()):
                write_image(case, channel, folder / f"images{part}/{case.name}_{n:04d}{ending}")
            if case.label is not None:
                write_label(case, manifest, values, folder / f"labels{part}/{case.name}{ending}")
    labels: dict[str, Any] = {name: values[value] for name, value in manifest.labels.items()}
    regions: dict[str, Any] = {}
    if manifest.regions is not None:
        of = {r.name: [values[manifest.labels[name]] for name in r.labels] for r in manifest.regions}
        labels = {"background": 0} | {name: v[0] if len(v) == 1 else v for name, v in of.items()}
        regions = {"regions_class_order": [values[manifest.labels[r.write]] for r in manifest.regions]}
    if manifest.ignore is not None:
        labels[IGNORE] = values[manifest.ignore]
    names = COLOURS if together else manifest.channels
    content = {"channel_names": {str(i): _shown(name) for i, name in enumerate(names)}, "labels": labels, **regions,
               "numTraining": len(training), "file_ending": ending}  # fmt: skip
    write_json(folder / "dataset.json", content | ({"name": manifest.name} if manifest.name else {}))
    folds = sorted({case.fold for case in training if case.fold is not None})
    if folds and all(case.fold is not None for case in training):
        splits = [{"train": [c.name for c in training if c.fold != fold],
                   "val": [c.name for c in training if c.fold == fold]} for fold in folds]  # fmt: skip
        write_json(folder / SPLITS, splits)


def _msd(manifest: Manifest, folder: Path) -> None:
    """The decathlon's layout: one file for all channels of a case."""
    _require_volumes(manifest, "msd")
    values = {value: value for value in values_of(manifest)}
    listed: dict[str, list[Any]] = {"Tr": [], "Ts": []}
    for part, case in [*(("Tr", case) for case in manifest.cases), *(("Ts", case) for case in manifest.test)]:
        image = folder / f"images{part}/{case.name}{NIFTI}"
        if len(manifest.channels) == 1:
            write_image(case, manifest.channels[0], image)
        else:
            write_channels(case, manifest.channels, image)
        entry: dict[str, Any] = {"image": f"./images{part}/{case.name}{NIFTI}"}
        if case.label is not None:
            write_label(case, manifest, values, folder / f"labels{part}/{case.name}{NIFTI}")
            entry["label"] = f"./labels{part}/{case.name}{NIFTI}"
        if case.annotated is not None:
            entry["annotated"] = [name for name, value in manifest.labels.items() if value in case.annotated]
        listed[part].append(entry)
    if not any("label" in entry for entry in listed["Ts"]):  # as the decathlon has them
        listed["Ts"] = [entry["image"] for entry in listed["Ts"]]
    write_json(folder / "dataset.json", {
        "name": manifest.name or "data set", "tensorImageSize": "3D" if len(manifest.channels) == 1 else "4D",
        "modality": {str(i): _shown(name) for i, name in enumerate(manifest.channels)},
        "labels": {str(value): name for name, value in manifest.labels.items()},
        **({} if manifest.ignore is None else {IGNORE: manifest.ignore}),
        "numTraining": len(listed["Tr"]), "numTest": len(listed["Ts"]), "training": listed["Tr"], "test": listed["Ts"],
    })  # fmt: skip


def _bids(manifest: Manifest, folder: Path) -> None:
    """BIDS 1.9: a subject for each patient, a run for each of its cases, and label maps as derivatives."""
    _require_volumes(manifest, "bids")
    require_whole_annotations(manifest, "BIDS")
    if manifest.ignore is not None:
        raise DataError(
            "BIDS has no value for voxels that nobody has annotated", where=str(manifest.path),
            why="they would become a label like others", fix="use --to nnunet or msd", code="E_LABEL",
        )  # fmt: skip
    strange = [name for name in manifest.channels if name not in _BIDS_SUFFIXES]
    if strange or (len(manifest.channels) > 1 and {"mri", "image"} & set(manifest.channels)):
        raise DataError(
            f"BIDS has no name for the channels {', '.join(strange or manifest.channels)}", where=str(manifest.path),
            why="its suffixes are of MR images",
            fix="use --to nnunet or msd", code="E_CHANNEL",
        )  # fmt: skip
    subjects: dict[tuple[str, str], str] = {}
    runs: dict[str, int] = {}
    derived = folder / "derivatives/labels"
    values = {value: value for value in manifest.labels.values()}
    # What the image's name has before its suffix, its label map's has, too.
    named = _BIDS_SUFFIXES[manifest.channels[0]].rpartition("_")[0]
    both = [*((TRAIN, case) for case in manifest.cases), *((TEST, case) for case in manifest.test)]
    for split, case in both:
        subject = subjects.setdefault((case.group, split), _subject(case.group, subjects.values()))
        runs[subject] = runs.get(subject, 0) + 1
        several = sum((part, other.group) == (split, case.group) for part, other in both) > 1
        stem = f"sub-{subject}" + (f"_run-{runs[subject]:02d}" if several else "")
        for channel in manifest.channels:
            suffix = _BIDS_SUFFIXES[channel]
            write_image(case, channel, folder / f"sub-{subject}/anat/{stem}_{suffix}{NIFTI}")
        if case.label is not None:
            write_label(
                case, manifest, values, derived / f"sub-{subject}/anat/{stem}{named and f'_{named}'}_dseg{NIFTI}"
            )
    about = {"Name": manifest.name or "data set", "BIDSVersion": "1.9.0"}
    write_json(folder / "dataset_description.json", about | {"DatasetType": "raw"})
    made = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "cmt_med"}]}
    write_json(derived / "dataset_description.json", about | made)
    rows = [f"{value}\t{as_text(name)}" for name, value in manifest.labels.items()]
    write_text(derived / "dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")
    write_text(folder / "README", "Written by cmt-med convert.\n")
    lines = [f"sub-{subject}\t{as_text(group)}\t{split}" for (group, split), subject in subjects.items()]
    write_text(folder / "participants.tsv", "\n".join(["participant_id\tsource_name\tsplit", *lines]) + "\n")


LAYOUTS: dict[str, Callable[[Manifest, Path], None]] = {
    "nnunet": _nnunet,
    "msd": _msd,
    "bids": _bids,
    "coco": write_coco,
}


def _require_volumes(manifest: Manifest, layout: str) -> None:
    if are_pictures(manifest):
        raise DataError(
            f"{layout} holds volumes",
            where=str(manifest.path),
            why="these are 2D images",
            fix="use --to nnunet",
            code="E_NDIM",
        )


def _subject(group: str, taken: Collection[str]) -> str:
    """A subject's label, which has letters and digits alone."""
    bare = re.sub(r"[^A-Za-z0-9]", "", group.removeprefix("sub-")) or "x"
    names = [bare, *(f"{bare}x{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _shown(channel: str) -> str:
    """A channel's name as others write it: nnU-Net tells CT by exactly that word."""
    return {"ct": "CT", "red": "R", "green": "G", "blue": "B"}.get(channel, channel)
