"""Preprocessed cases on disk, memory-mapped, and never stale.

An entry's key is a hash of the content of the case's files and of the transforms; a changed file or setting is another
entry. What is found on the disk is held against the sums that it was written with, once a run (0.15 s for a case of 95 MB).
Pages are shared between processes by the operating system, so the data costs one copy in memory at most.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from cmt_med.base.boxes import Boxes
from cmt_med.base.errors import OutputError
from cmt_med.base.files import sha256, write_file, write_json
from cmt_med.data.case import Case
from cmt_med.data.preprocessing.depth import DEPTH_VERSION, depth_map, renumbered
from cmt_med.data.preprocessing.fingerprint import case_statistics
from cmt_med.data.preprocessing.pipeline import POINTS_PER_LABEL, as_dictionary, preprocessing, seen_by, takes_zeros
from cmt_med.data.volumes.boxes import boxes_key, load_boxes, on_grid, with_one_source
from cmt_med.data.volumes.gate import Loaded, content_of, load_case
from cmt_med.data.volumes.instances import load_instances, objects_key
from cmt_med.data.volumes.sums import sum_of_sums

CACHE_VERSION = 4  # since 4, statistics leave out a mask that nothing depends on
_IDENTITY = 2
"""Part of what a run knows its cases by; unlike ``CACHE_VERSION`` it stays, so that runs begun before can be resumed."""
_CACHE_FIX = "set CMT_CACHE to a folder that you may write to, on a disk with room for the data set in float32"
_FILES = ("image.npy", "label.npy", "points.npy")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case; its arrays are opened as memory maps.

    ``target`` is the number of its class, for tasks that answer for whole images; such a case has no label map. ``annotated``
    are the label values that its source annotates, and its label map has no other ones; None for all. ``objects`` tells whether
    the case has numbered objects; its label map then holds their depths (:mod:`cmt_med.data.preprocessing.depth`). ``boxed``
    tells whether it has boxes, and no label map, ``unlabelled`` whether it has its image alone. ``content`` is the sum of its
    images (:func:`cmt_med.data.volumes.sums.sum_of_sums`).
    """

    name: str
    folder: Path
    target: int | None = None
    annotated: tuple[int, ...] | None = None
    objects: bool = False
    boxed: bool = False
    content: str = ""
    unlabelled: bool = False

    def image(self) -> NDArray[np.float32]:
        """(C, *S), read-only."""
        return np.load(self.folder / "image.npy", mmap_mode="r", allow_pickle=False)

    def label(self) -> NDArray[np.uint8]:
        """(1, *S), read-only."""
        return np.load(self.folder / "label.npy", mmap_mode="r", allow_pickle=False)

    def instances(self) -> NDArray[np.uint16]:
        """Numbers of objects from 1 on (*S), read-only; of a case that has some."""
        return np.load(self.folder / "instances.npy", mmap_mode="r", allow_pickle=False)

    def boxes(self) -> Boxes:
        """Boxes around objects, in voxels of the image; of a case that has such a target."""
        rows = np.load(self.folder / "boxes.npy", allow_pickle=False)
        return Boxes.of(rows[:, :3], rows[:, 3:6], rows[:, 6], None, rows[:, 7])

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its arrays' files."""
        if self.boxed:
            return ("image.npy", "points.npy", "boxes.npy")
        if self.unlabelled:
            return ("image.npy", "points.npy")
        return _FILES[:1] if self.target is not None else (*_FILES, "instances.npy") if self.objects else _FILES

    def points(self) -> list[NDArray[np.signedinteger]]:
        """For each label but background, voxels of it (n, 3); none that nobody has annotated."""
        rows = np.load(self.folder / "points.npy", allow_pickle=False)
        return [rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])]

    @property
    def identity(self) -> str:
        """The hash of the case's files and settings, whatever version of the cache holds it, and its class."""
        key = self.folder.name.partition("-")[0]
        return key if self.target is None else f"{key}:{self.target}"

    def statistics(self) -> dict[str, Any]:
        """Of the case as it was read: see :func:`cmt_med.data.preprocessing.fingerprint.case_statistics`."""
        found: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))["statistics"]
        return found

    def values(self) -> set[int]:
        """The labels that occur, without the background; or the class."""
        if self.target is not None:
            return {self.target}
        if self.unlabelled:
            return set()
        return {int(value) for value in np.unique(np.load(self.folder / "points.npy", allow_pickle=False)[:, 0])}


def default_cache_folder() -> Path:
    """``$CMT_CACHE``, else ``cmt_med`` in the user's cache folder.

    Raises:
        OutputError: if the user has no home folder.
    """
    if os.environ.get("CMT_CACHE"):
        return Path(os.environ["CMT_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmt_med"
    except RuntimeError as error:
        raise OutputError(
            "there is no place for preprocessed cases",
            where="CMT_CACHE",
            why="this user has no home folder",
            fix=_CACHE_FIX,
        ) from error


def prepare(
    case: Case,
    *,
    channels: Sequence[str],
    labels: Mapping[str, int],
    settings: Mapping[str, Any],
    folder: Path,
    target: int | None = None,
    objects: bool = False,
    boxed: bool = False,
    min_component_mm3: float = 0.0,
    unlabelled: bool = False,
) -> CachedCase:
    """The entry of a case, made if there is none for exactly these files and settings, or if it is damaged.

    Args:
        case: its files.
        channels: wanted of it, in order.
        labels: name -> value in its label map.
        settings: of :func:`cmt_med.data.preprocessing.pipeline.preprocessing`.
        folder: of all entries.
        target: number of its class, where that is all that is learned; its label map is left alone then.
        objects: whether numbered objects are learned, and no label map.
        boxed: whether boxes are, which the case has, or which are derived from its objects or labels.
        min_component_mm3: of a label that boxes are derived from.
        unlabelled: whether the image is all that is learned from.

    Raises:
        DataError: from the gate, naming the case.
        OutputError: if the cache cannot be written.
    """
    if target is not None or objects or unlabelled:
        case = replace(case, label=None, ignore=None, annotated=None)
    if boxed:
        case = with_one_source(case)
    else:
        case = replace(case, boxes=None) if objects else replace(case, instances=None, boxes=None)
    labels = {} if target is not None or unlabelled else labels
    sums = {name: content_of(case.images[name][0], case) for name in channels if name in case.images}
    key = _key(case, channels, labels, settings, sums, [min_component_mm3] if boxed else None)
    content, annotated = sum_of_sums(sums.values()), None if boxed else case.annotated
    entry = CachedCase(
        case.name, folder / f"{key}-{CACHE_VERSION}", target, annotated, objects, boxed, content, unlabelled
    )
    if _is_whole(entry):
        return entry
    dense = target is None and not objects and not boxed and not unlabelled
    allowed = [*labels.values(), *([] if case.ignore is None else [case.ignore])] if dense else None
    whole = load_case(case, channels, allowed, need_label=dense, zeros=takes_zeros(settings))
    loaded = seen_by(_without_the_unknown(whole, case), settings)
    arrays: dict[str, NDArray[Any]]
    if objects:
        loaded, arrays = _with_objects(case, loaded, settings)
    elif boxed:
        arrays = _with_boxes(
            case, load_boxes(case, labels, loaded.grid, min_component_mm3=min_component_mm3), loaded, settings
        )
    else:
        data = preprocessing(settings, with_label=dense)(as_dictionary(loaded))
        arrays = {"image.npy": np.ascontiguousarray(data["image"].numpy(), dtype=np.float32)}
    if unlabelled:
        arrays["points.npy"] = _sample_points((np.abs(arrays["image.npy"]).max(axis=0) > 0).astype(np.uint8))
    if dense:
        label = np.ascontiguousarray(data["label"].numpy(), dtype=np.uint8)
        arrays |= {"label.npy": label, "points.npy": _sample_points(label[0], case.ignore)}
    try:
        for name, array in arrays.items():
            write_file(entry.folder / name, lambda stream, a=array: np.save(stream, a, allow_pickle=False))  # type: ignore[misc]
        # Written last: an entry without it was cut short and is made again.
        sums = {name: sha256(entry.folder / name) for name in arrays}
        statistics = case_statistics(loaded, channels, settings["clip"])
        if case.annotated is not None:
            statistics["annotated"] = list(case.annotated)
        described = {
            "version": CACHE_VERSION,
            "shape": list(arrays["image.npy"].shape),
            "sha256": sums,
            "statistics": statistics,
        }
        write_json(entry.folder / "meta.json", described)
    except OutputError as error:
        raise OutputError(
            f"case {case.name} cannot be kept as it was preprocessed",
            where=error.where,
            why=error.why,
            fix=_CACHE_FIX,
        ) from error
    return entry


def _with_objects(case: Case, loaded: Loaded, settings: Mapping[str, Any]) -> tuple[Loaded, dict[str, NDArray[Any]]]:
    """The case with a label where there are objects, and its arrays."""
    numbers, grid = load_instances(case, loaded.grid)
    data = as_dictionary(loaded)
    data["label"] = MetaTensor(torch.from_numpy(numbers[None]), affine=torch.as_tensor(grid.affine))
    done = preprocessing(settings, with_label=True)(data)
    kept = renumbered(np.rint(done["label"].numpy()[0]).astype(np.int32))
    sizes = np.linalg.norm(done["image"].affine.numpy()[:3, :3], axis=0)
    label = np.ascontiguousarray(depth_map(kept, sizes.tolist()))
    arrays: dict[str, NDArray[Any]] = {
        "image.npy": np.ascontiguousarray(done["image"].numpy(), dtype=np.float32),
        "label.npy": label[None],
        "points.npy": _sample_points((label > 0).astype(np.uint8)),
        "instances.npy": np.ascontiguousarray(kept),
    }
    return replace(loaded, label=(numbers > 0).astype(np.uint8)), arrays


def _with_boxes(case: Case, boxes: Boxes, loaded: Loaded, settings: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a case with boxes, in voxels of the preprocessed image; patches are drawn around their middles."""
    done = preprocessing(settings, with_label=False)(as_dictionary(loaded))
    image = np.ascontiguousarray(done["image"].numpy(), dtype=np.float32)
    found = on_grid(boxes, loaded.grid.affine, np.asarray(done["image"].affine, np.float64)).within(image.shape[1:])
    counted = found[~found.ignored]
    middles = np.clip((counted.low + counted.high) // 2, 0, np.array(image.shape[1:]) - 1)
    return {
        "image.npy": image,
        "points.npy": np.column_stack([counted.classes, middles]).astype(np.int32),
        "boxes.npy": np.column_stack([found.low, found.high, found.classes, found.ignored]).astype(np.float64),
    }


def _without_the_unknown(loaded: Loaded, case: Case) -> Loaded:
    """The case without labels that its source does not annotate: where they are drawn, they may be so in part."""
    if case.annotated is None or loaded.label is None:
        return loaded
    kept = np.isin(loaded.label, [*case.annotated, *([] if case.ignore is None else [case.ignore])])
    return replace(loaded, label=np.where(kept, loaded.label, np.uint8(0)))


def _is_whole(entry: CachedCase) -> bool:
    """Tell whether an entry is there, as it was written: a bit that has flipped would be learned from without a word."""
    described = entry.folder / "meta.json"
    if not described.exists():
        return False
    try:
        sums = dict(json.loads(described.read_text(encoding="utf-8")).get("sha256", {}))
        wrong = [name for name in entry.files if sha256(entry.folder / name) != sums.get(name)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        wrong = [str(error)]
    if wrong:
        log.warning(
            "case %s is cached, but not as it was written (%s in %s); it is made again",
            entry.name, ", ".join(wrong), entry.folder,
        )  # fmt: skip
    return not wrong


def _key(
    case: Case, channels: Sequence[str], labels: Mapping[str, int], settings: Mapping[str, Any], sums: Mapping[str, str],
    boxes: list[float] | None,
) -> str:  # fmt: skip
    files = {name: [content, case.images[name][1]] for name, content in sums.items()}
    extra = [content_of(path, case) if path is not None else None for path in (case.label, case.mask)]
    described = [_IDENTITY, files, extra, list(channels), sorted(labels.values()), dict(settings)]
    if case.ignore is not None:
        described.append({"ignore": case.ignore})
    if case.annotated is not None:
        described.append({"annotated": case.annotated})
    if case.instances is not None:
        described.append({"instances": objects_key(case), "depths": DEPTH_VERSION})
    if boxes is not None:
        own = {} if case.boxes is None else {"boxes": boxes_key(case)}
        described.append({"names": sorted(labels.items()), "settings": boxes} | own)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _sample_points(label: NDArray[np.uint8], ignore: int | None = None) -> NDArray[np.signedinteger]:
    """Rows (label, i, j, k): at most ``POINTS_PER_LABEL`` voxels of each label but ``ignore``, evenly over its scan order."""
    rows = []
    kind = np.int16 if max(label.shape) <= np.iinfo(np.int16).max else np.int32  # whose values would wrap
    for value in np.unique(label):
        if value in (0, ignore):
            continue
        found = np.argwhere(label == value)
        chosen = found[np.linspace(0, len(found) - 1, min(len(found), POINTS_PER_LABEL)).astype(int)]
        rows.append(np.column_stack([np.full(len(chosen), value), chosen]).astype(kind))
    return np.concatenate(rows) if rows else np.zeros((0, 4), dtype=kind)
