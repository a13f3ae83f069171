"""Data sets in the layouts of other tools: the work of ``cmt-med convert``."""

from __future__ import annotations

import io
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError, OutputError
from cmt_med.base.files import write_bytes, write_file, write_folder, write_json, write_text
from cmt_med.base.text import as_text, counted
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.manifest import Manifest
from cmt_med.data.nnunet import IGNORE, SPLITS
from cmt_med.data.volumes.endings import looks_like_picture
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.data.volumes.written import write_volume
from cmt_med.runs.recognition import data_set_with_problems

NIFTI = ".nii.gz"
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
    if not any(case.label for case in manifest.cases):
        raise DataError(
            "no case has a label map", where=str(path), why=f"{to} is a layout of images with label maps here",
            fix="classes are written by init, into its case list", code="E_LABEL",
        )  # fmt: skip
    if output.is_dir():
        output.rmdir()  # empty; it comes back whole
    write_folder(output, lambda folder: LAYOUTS[to](manifest, folder))
    for problem in problems:
        log.warning("left out: %s", problem.message())
    if manifest.test:
        log.warning("%s not written", counted(len(manifest.test), "test case"))
    left = len(problems)
    print(f"{counted(len(manifest.cases), 'case')} written to {output} ({to})" + (f", {left} left out" if left else ""))
    return EXIT_SOME_FAILED if problems else EXIT_DONE


# ---- layouts


def _nnunet(manifest: Manifest, folder: Path) -> None:
    """Version 2 of nnU-Net's raw folders: labels without gaps, regions as lists, folds in ``splits_final.json``."""
    _require_whole_annotations(manifest, "nnU-Net")
    pictures = _pictures(manifest)
    ending = ".png" if pictures else NIFTI
    values = {value: i for i, value in enumerate(sorted(manifest.labels.values()))}
    if manifest.ignore is not None:
        values[manifest.ignore] = len(values)  # nnU-Net wants it to be the highest
    together = pictures and set(manifest.channels) == set(COLOURS)
    for case in manifest.cases:
        if together:
            _write_colours(case, folder / f"imagesTr/{case.name}_0000.png")
        for n, channel in enumerate(manifest.channels if not together else ()):
            _write_image(case, channel, folder / f"imagesTr/{case.name}_{n:04d}{ending}")
        if case.label is not None:
            _write_label(case, manifest, values, folder / f"labelsTr/{case.name}{ending}")
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
               "numTraining": len(manifest.cases), "file_ending": ending}  # fmt: skip
    write_json(folder / "dataset.json", content | ({"name": manifest.name} if manifest.name else {}))
    folds = sorted({case.fold for case in manifest.cases if case.fold is not None})
    if folds and all(case.fold is not None for case in manifest.cases):
        splits = [{"train": [c.name for c in manifest.cases if c.fold != fold],
                   "val": [c.name for c in manifest.cases if c.fold == fold]} for fold in folds]  # fmt: skip
        write_json(folder / SPLITS, splits)


def _msd(manifest: Manifest, folder: Path) -> None:
    """The decathlon's layout: one file for all channels of a case."""
    _require_volumes(manifest, "msd")
    values = {value: value for value in _values(manifest)}
    training = []
    for case in manifest.cases:
        image = folder / f"imagesTr/{case.name}{NIFTI}"
        if len(manifest.channels) == 1:
            _write_image(case, manifest.channels[0], image)
        else:
            _write_volumes(case, manifest.channels, image)
        entry: dict[str, Any] = {"image": f"./imagesTr/{case.name}{NIFTI}"}
        if case.label is not None:
            _write_label(case, manifest, values, folder / f"labelsTr/{case.name}{NIFTI}")
            entry["label"] = f"./labelsTr/{case.name}{NIFTI}"
        if case.annotated is not None:
            entry["annotated"] = [name for name, value in manifest.labels.items() if value in case.annotated]
        training.append(entry)
    write_json(folder / "dataset.json", {
        "name": manifest.name or "data set", "tensorImageSize": "3D" if len(manifest.channels) == 1 else "4D",
        "modality": {str(i): _shown(name) for i, name in enumerate(manifest.channels)},
        "labels": {str(value): name for name, value in manifest.labels.items()},
        **({} if manifest.ignore is None else {IGNORE: manifest.ignore}),
        "numTraining": len(training), "numTest": 0, "training": training, "test": [],
    })  # fmt: skip


def _bids(manifest: Manifest, folder: Path) -> None:
    """BIDS 1.9: a subject for each patient, a run for each of its cases, and label maps as derivatives."""
    _require_volumes(manifest, "bids")
    _require_whole_annotations(manifest, "BIDS")
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
    subjects: dict[str, str] = {}
    runs: dict[str, int] = {}
    derived = folder / "derivatives/labels"
    values = {value: value for value in manifest.labels.values()}
    # What the image's name has before its suffix, its label map's has, too.
    named = _BIDS_SUFFIXES[manifest.channels[0]].rpartition("_")[0]
    for case in manifest.cases:
        subject = subjects.setdefault(case.group, _subject(case.group, subjects))
        runs[subject] = runs.get(subject, 0) + 1
        several = sum(other.group == case.group for other in manifest.cases) > 1
        stem = f"sub-{subject}" + (f"_run-{runs[subject]:02d}" if several else "")
        for channel in manifest.channels:
            suffix = _BIDS_SUFFIXES[channel]
            _write_image(case, channel, folder / f"sub-{subject}/anat/{stem}_{suffix}{NIFTI}")
        if case.label is not None:
            _write_label(
                case, manifest, values, derived / f"sub-{subject}/anat/{stem}{named and f'_{named}'}_dseg{NIFTI}"
            )
    about = {"Name": manifest.name or "data set", "BIDSVersion": "1.9.0"}
    write_json(folder / "dataset_description.json", about | {"DatasetType": "raw"})
    made = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "cmt_med"}]}
    write_json(derived / "dataset_description.json", about | made)
    rows = [f"{value}\t{as_text(name)}" for name, value in manifest.labels.items()]
    write_text(derived / "dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")
    write_text(folder / "README", "Written by cmt-med convert.\n")
    lines = [f"sub-{subject}\t{as_text(group)}" for group, subject in subjects.items()]
    write_text(folder / "participants.tsv", "\n".join(["participant_id\tsource_name", *lines]) + "\n")


LAYOUTS: dict[str, Callable[[Manifest, Path], None]] = {"nnunet": _nnunet, "msd": _msd, "bids": _bids}


def _values(manifest: Manifest) -> list[int]:
    """The values of the label maps."""
    return [*manifest.labels.values(), *([] if manifest.ignore is None else [manifest.ignore])]


def _pictures(manifest: Manifest) -> bool:
    return all(looks_like_picture(file) for case in manifest.cases for file, _ in case.images.values())


def _require_whole_annotations(manifest: Manifest, layout: str) -> None:
    partial = [case.name for case in manifest.cases if case.annotated is not None]
    if partial:
        raise DataError(
            f"{layout} has no place for cases that annotate some labels alone", where=f"case {partial[0]}",
            why="the others would be learned as background", fix="use --to msd, whose list keeps 'annotated'", code="E_LABEL",
        )  # fmt: skip


def _require_volumes(manifest: Manifest, layout: str) -> None:
    if _pictures(manifest):
        raise DataError(
            f"{layout} holds volumes",
            where=str(manifest.path),
            why="these are 2D images",
            fix="use --to nnunet",
            code="E_NDIM",
        )


def _subject(group: str, taken: Mapping[str, str]) -> str:
    """A subject's label, which has letters and digits alone."""
    bare = re.sub(r"[^A-Za-z0-9]", "", group.removeprefix("sub-")) or "x"
    names = [bare, *(f"{bare}x{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken.values())


def _shown(channel: str) -> str:
    """A channel's name as others write it: nnU-Net tells CT by exactly that word."""
    return {"ct": "CT", "red": "R", "green": "G", "blue": "B"}.get(channel, channel)


# ---- files


def _place(source: Path, target: Path) -> None:
    with source.open("rb") as stream:
        write_file(target, partial(shutil.copyfileobj, stream))


def _write_image(case: Case, channel: str, target: Path) -> None:
    loaded = load_case(case, [channel])  # what is missing or damaged is refused here rather than by who reads the copy
    source, position = case.images[channel]
    if target.suffix == ".png":  # always anew: a palette, or grey saved in colour, would be read as other channels
        write_bytes(target, _png(loaded.image[0][..., 0].T))
    elif position is None and source.name.endswith(NIFTI):
        _place(source, target)
    else:
        write_volume(target, loaded.image[0], loaded.grid, source)


def _write_colours(case: Case, target: Path) -> None:
    loaded = load_case(case, COLOURS)
    write_bytes(target, _png(np.stack([plane[..., 0].T for plane in loaded.image], -1)))


def _write_volumes(case: Case, channels: Sequence[str], target: Path) -> None:
    loaded = load_case(case, channels)
    write_volume(target, np.moveaxis(loaded.image, 0, -1), loaded.grid, case.images[channels[0]][0])


def _write_label(case: Case, manifest: Manifest, values: Mapping[int, int], target: Path) -> None:
    """A label map in the numbers of the layout; the file itself where it has them."""
    assert case.label is not None  # by the callers
    first = manifest.channels[0]
    alone = replace(case, images={first: case.images[first]}) if case.images[first][1] is None else case
    loaded = load_case(alone, [first], _values(manifest), need_label=True)
    assert loaded.label is not None  # asked for
    if (
        target.name.endswith(NIFTI)
        and case.label.name.endswith(NIFTI)
        and case.label.is_file()
        and loaded.grid.equals(load_labels(case.label, case.name, colours=case.colours)[1])
        and all(old == new for old, new in values.items())
    ):
        _place(case.label, target)
        return
    table = np.zeros(256, np.uint8)
    for old, new in values.items():
        table[old] = new
    write_volume(target, table[loaded.label], loaded.grid, case.label)


def _png(pixels: NDArray[np.float32]) -> bytes:
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
