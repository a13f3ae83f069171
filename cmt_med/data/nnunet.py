"""nnU-Net's raw data sets, put into the words of a case list.

Version 2: ``imagesTr/CASE_0000.nii.gz`` with a number for each channel, ``labelsTr/CASE.nii.gz``, ``imagesTs``, ``labelsTs``, and
a ``dataset.json`` with ``channel_names``, ``labels`` (a value, or a list of values for an overlapping region) and
``file_ending``; or there the files of each case under ``dataset``. Version 1: a decathlon's list, whose images have the channels'
numbers on disk. Folds are those of a ``splits_final.json`` beside the list. (nnU-Net, documentation/dataset_format.md and
region_based_training.md.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmt_med.base.errors import DataError
from cmt_med.base.text import strict_json
from cmt_med.data.case import COLOURS
from cmt_med.data.entries import fault
from cmt_med.data.volumes.endings import looks_like_picture, volume_stem
from cmt_med.data.volumes.streams import readable_name

SPLITS = "splits_final.json"
IGNORE = "ignore"
_NUMBER = re.compile(r"(.+)_(\d{4})\Z", re.DOTALL)
_RGB = (("r", "g", "b"), ("red", "green", "blue"))


def describes(content: Mapping[str, Any], path: Path) -> bool:
    """Tell whether the content of a ``dataset.json`` is that of nnU-Net."""
    if isinstance(content.get("training"), list):
        return _is_first_version(content, path)
    return isinstance(content.get("channel_names"), dict) and isinstance(content.get("labels"), dict)


@dataclass
class CaseList:
    """A data set in the words of a case list; what is wrong with single cases of it; and what was read in an unusual way."""

    content: dict[str, Any]
    problems: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def as_case_list(content: Mapping[str, Any], path: Path) -> CaseList:
    """The same data set as :func:`cmt_med.data.manifest.load_manifest` has it.

    Raises:
        DataError: E_MANIFEST, for what nnU-Net would refuse, too, but for single cases.
    """
    if isinstance(content.get("training"), list):
        return CaseList(_first_version(content, path))
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise fault(path, f"'file_ending' is {ending!r}", 'write "file_ending": ".nii.gz"')
    names = content["channel_names"]
    if not all(str(key).isdigit() for key in names):
        raise fault(path, "'channel_names' has a key that is no number", 'write "channel_names": {"0": "T1", ...}')
    channels = [str(names[key]) for key in sorted(names, key=int)]
    if len(channels) == 3 and looks_like_picture(Path(f"x{ending}")) and tuple(map(str.lower, channels)) in _RGB:
        channels = list(COLOURS)
    folds = _folds(path)
    listed = content.get("dataset")
    if listed is None:
        training = _cases(path, "Tr", ending, channels)
        test = _cases(path, "Ts", ending, channels)
    else:
        training, test = _listed(listed, path, channels), []
    if not training:
        raise fault(path, f"there is no imagesTr/CASE_0000{ending}", "put the images there, or correct 'file_ending'")
    problems = _not_there(path, training, folds, ending)
    for entry in training:
        if folds:
            entry["fold"] = folds.get(entry["id"], None)
    labels, regions, ignore = _labels(content, path)
    unnamed = [name for name, value in labels.items() if name == f"label_{value}" and name not in content["labels"]]
    notes = (
        [f"regions name no label alone: {', '.join(unnamed)}; name it in 'labels' of {path.name}"] if unnamed else []
    )
    return CaseList({
        **({"name": str(content["name"])} if content.get("name") else {}),
        "modality": {str(i): name for i, name in enumerate(channels)}, "labels": labels,
        **({"regions": regions} if regions else {}), **({} if ignore is None else {IGNORE: ignore}),
        "training": training, "test": test,
    }, problems, notes)  # fmt: skip


def _not_there(
    path: Path, training: Sequence[Mapping[str, Any]], folds: Mapping[str, int], ending: str
) -> list[DataError]:
    """Cases for training without a label map, and those of ``splits_final.json`` without an image."""
    problems = []
    for name in sorted(folds.keys() - {entry["id"] for entry in training}):
        image = path.parent / f"imagesTr/{name}_0000{ending}"
        fix = f"put its images there, or take it out of {SPLITS}"
        what = f"case {name!r} is not in the data set, and is in {SPLITS}: it has no image"
        problems.append(_of_case(name, what, image, "the folds name cases of imagesTr", fix))
    for entry in training:
        if "label" not in entry:
            file = path.parent / f"labelsTr/{entry['id']}{ending}"
            fix = "put the file there, or move the images to imagesTs"
            problems.append(
                _of_case(entry["id"], "the case has no label map", file, "cases of imagesTr are for training", fix)
            )
    return problems


def _of_case(case: str, what: str, file: Path, why: str, fix: str) -> DataError:
    error = DataError(what, where=f"case {case}: {readable_name(file)}", why=why, fix=fix, code="E_MANIFEST")
    error.case = case
    return error


# ---- cases


def _cases(path: Path, part: str, ending: str, channels: list[str]) -> list[dict[str, Any]]:
    """The cases of ``imagesTr`` or ``imagesTs``, with their label maps."""
    folder, labels = path.parent / f"images{part}", path.parent / f"labels{part}"
    files: dict[str, dict[int, str]] = {}
    for name in sorted(file.name for file in folder.iterdir()) if folder.is_dir() else ():
        numbered = _NUMBER.match(name.removesuffix(ending)) if name.endswith(ending) else None
        if numbered:
            files.setdefault(numbered[1], {})[int(numbered[2])] = f"{folder.name}/{name}"
    strange = [(case, n) for case, found in files.items() for n in found if n >= len(channels)]
    if strange:
        case, n = strange[0]
        raise fault(
            path, f"case {case} has a channel {n:04d}, 'channel_names' ends with {len(channels) - 1:04d}",
            "name every channel, or remove the file",
        )  # fmt: skip
    together = (
        len(channels) > 1 and looks_like_picture(Path(f"x{ending}")) and all(set(f) == {0} for f in files.values())
    )
    result = []
    for case, found in files.items():
        entry: dict[str, Any] = {
            "id": case, "image": found[0] if together else {channels[n]: found[n] for n in sorted(found)}
        }  # fmt: skip
        if (labels / f"{case}{ending}").exists():
            entry["label"] = f"{labels.name}/{case}{ending}"
        result.append(entry)
    return result


def _listed(listed: Any, path: Path, channels: list[str]) -> list[dict[str, Any]]:
    """The cases that ``dataset`` names."""
    form = 'write "dataset": {"CASE": {"images": [...], "label": ...}}'
    if not isinstance(listed, dict):
        raise fault(path, "'dataset' is not a mapping", form)
    result = []
    for case, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not isinstance(entry.get("label"), str):
            raise fault(path, f"dataset[{case!r}] lacks images or a label", form)
        together = len(images) == 1 < len(channels) and looks_like_picture(Path(str(images[0])))
        result.append({"id": case, "image": images[0] if together else images, "label": entry["label"]})
    return result


def _folds(path: Path) -> dict[str, int]:
    """Case -> the fold that holds it out; nothing without a ``splits_final.json``."""
    splits = path.parent / SPLITS
    if not splits.is_file():
        return {}
    try:
        content = strict_json(splits.read_text(encoding="utf-8"))
        pairs = [(str(case), fold) for fold, parts in enumerate(content) for case in parts["val"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise fault(splits, "the folds cannot be read", 'write [{"train": [...], "val": [...]}, ...]') from error
    twice = [case for case, count in Counter(case for case, _ in pairs).items() if count > 1]
    if twice:
        raise fault(splits, f"case {twice[0]!r} is held out in two folds", "hold each case out once")
    return dict(pairs)


# ---- labels


def _labels(content: Mapping[str, Any], path: Path) -> tuple[dict[str, int], list[dict[str, Any]], int | None]:
    """Labels by name; regions, where a name stands for several values; and the value of voxels that nobody has annotated."""
    listed: dict[str, list[int]] = {}
    for name, values in content["labels"].items():
        numbers = values if isinstance(values, list) else [values]
        if not numbers or not all(isinstance(v, int) and not isinstance(v, bool) for v in numbers):
            raise fault(path, f"label {name!r} has the value {values!r}", "write a whole number, or a list of such")
        listed[str(name)] = numbers
    ignored = listed.pop(IGNORE, None)
    highest = max((value for values in listed.values() for value in values), default=0)
    if ignored is not None and (len(ignored) != 1 or ignored[0] <= highest):
        raise fault(
            path,
            f"the label {IGNORE!r} has the value {content['labels'][IGNORE]!r}",
            "give it the highest value of all",
        )
    ignore = None if ignored is None else ignored[0]
    if all(len(values) == 1 for values in listed.values()):
        return {name: values[0] for name, values in listed.items()}, [], ignore
    parts = {name: values for name, values in listed.items() if values != [0]}
    named = {values[0]: name for name, values in parts.items() if len(values) == 1}
    every = sorted({v for values in parts.values() for v in values})
    labels = {"background": 0} | {named.get(value, f"label_{value}"): value for value in every}
    name_of = {value: name for name, value in labels.items()}
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(parts) or not set(map(str, order)) <= set(map(str, every)):
        raise fault(
            path,
            f"'regions_class_order' is {order!r}",
            f"write the value that each of {', '.join(parts)} is painted with",
        )
    regions = [
        {"name": name, "labels": [name_of[v] for v in sorted(values)], "write": name_of[int(order[i])]}
        for i, (name, values) in enumerate(parts.items())
    ]
    return labels, regions, ignore


# ---- version 1


def _is_first_version(content: Mapping[str, Any], path: Path) -> bool:
    """Tell whether the images of a decathlon's list are on disk with numbers of channels alone."""
    first = next(iter(content["training"]), None)
    image = first.get("image") if isinstance(first, dict) else None
    if not isinstance(image, str) or (path.parent / image).exists():
        return False
    return _numbered(path.parent / image, 0).exists()


def _first_version(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    names = content.get("modality", {})
    count = len(names) if isinstance(names, dict | list) else 0

    folds = _folds(path)

    def entry(listed: Any) -> Any:
        """An entry with the files of its channels; what is none is left to who reads the list, and is refused there."""
        plain = {"image": listed} if isinstance(listed, str) else listed
        if not isinstance(plain, dict) or not isinstance(plain.get("image"), str):
            return listed
        image = Path(plain["image"])
        name = volume_stem(image)
        fold = {"fold": folds[name]} if name in folds else {}
        return {**plain, "id": name, "image": [str(_numbered(image, n)) for n in range(count)], **fold}

    test = content.get("test", [])
    return {
        **content,
        "training": [*map(entry, content["training"])],
        "test": [*map(entry, test)] if isinstance(test, list) else [],
    }


def _numbered(file: Path, channel: int) -> Path:
    stem = volume_stem(file)
    return file.with_name(f"{stem}_{channel:04d}{file.name[len(stem) :]}")
