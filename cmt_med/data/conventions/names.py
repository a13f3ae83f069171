"""Channels and labels by name: one spelling for what data sets call differently.

Facts: BraTS 2018-2021 t1, t1ce, t2, flair; BraTS 2023-24 t1n, t1c, t2w, t2f; MSD Task01 FLAIR, T1w, t1gd, T2w.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cmt_med.base.errors import DataError

_CHANNELS = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "fla"),
}
SEQUENCES = tuple(_CHANNELS)
LABEL_WORDS = ("seg", "dseg", "gt", "gtv", "label", "labels", "otmulticlass", "segmentation")
"""Words for label maps in file names."""
MASK_WORDS = ("mask", "brainmask")
_LABELS = {
    "background": ("background", "bg"),
    "NCR": ("ncr", "ncrnet", "netc", "necrosis", "nonenhancingtumor", "nonenhancingtumour", "necrotictumorcore"),
    "NET": ("net",),
    "ED": ("ed", "edema", "oedema", "snfh", "peritumoraledema"),
    "ET": ("et", "enhancingtumor", "enhancingtumour", "enhancing"),
    "RC": ("rc", "resectioncavity", "cavity"),
    "GTV": ("gtv", "grosstumorvolume", "grosstumourvolume"),
}
_OF_ANY_ORGAN = frozenset({"necrosis", "edema", "oedema", "enhancing", "cavity"})
"""Words for tumour parts that alone say nothing of a brain tumour."""
_CHANNEL_OF = {alias: name for name, aliases in _CHANNELS.items() for alias in aliases}
_LABEL_OF = {alias: name for name, aliases in _LABELS.items() for alias in aliases}
MEAN = "mean"
"""The name of the average over labels or regions in reports; none of these can have that name."""
TUMOUR_LABELS = tuple(name for name in _LABELS if name != "background")


def canonical_channel(name: str) -> str:
    """The usual name of an MR sequence (``"T1Gd"`` -> ``"t1ce"``); other names in lower case."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return _CHANNEL_OF.get(key, name.lower())


def canonical_label(name: str) -> str:
    """The usual name of a tumour part (``"edema"`` -> ``"ED"``); other names in lower case."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return _LABEL_OF.get(key, name.lower())


def is_brain_tumour(labels: Collection[str], channels: Collection[str]) -> bool:
    """Tell whether all labels are tumour parts, and at least one channel is an MR sequence of the brain.

    Other organs have a necrosis or an edema, too, beside labels that are no tumour parts, in images of another kind, or as the
    only label. A single channel that nothing names ("image") says nothing against it.
    """
    alone = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in labels if canonical_label(name) != "background"}
    if len(alone) == 1 and alone <= _OF_ANY_ORGAN:
        return False
    parts = {canonical_label(name) for name in labels} - {"background"}
    known = {canonical_channel(name) for name in channels} & {*SEQUENCES, "image"}
    return bool(parts) and parts <= set(TUMOUR_LABELS) and bool(known)


def disagreements(named: Mapping[str, int], labels: Mapping[str, int]) -> list[str]:
    """List what of ``named`` has another meaning in ``labels``, such as ``"3 is ET"``; both are label name -> number.

    A name with another number is one, and a number with another name, but for the background, which any name may have, and for
    a core without parts set apart, which is called NCR or NET.
    """
    name_of = {value: name for name, value in labels.items()}
    apart = {"NCR", "NET"} <= named.keys() or {"NCR", "NET"} <= labels.keys()

    def same(one: str, other: str) -> bool:
        return one == other or (not apart and {one, other} == {"NCR", "NET"})

    return [
        f"{value} is {name}"
        for name, value in named.items()
        if value and (labels.get(name, value) != value or not same(name, name_of.get(value, name)))
    ]


def case_and_word(stem: str, folder: str, known: Collection[str]) -> tuple[str, str]:
    """Case and role of a file by its name without ending; the role is ``""`` if no word of the name is known.

    ``ID_t1ce`` and ``ID-t1c`` end in it; ``T1c_anything`` and ``brainmask`` begin with it, and the case is their folder;
    BRATS 2013 and 2015 have it within (``VSD.Brain.XX.O.MR_T1c.54515``; ``OT`` is their label map).

    Args:
        stem: the name.
        folder: name of the folder that stands for the case.
        known: roles, canonical: channels, and words for label maps and masks.
    """
    parts = re.split(r"[_.-]", stem)
    last = re.match(r"^(.+)[_-]([A-Za-z0-9]+)\Z", stem, re.DOTALL)
    if last and canonical_channel(last.group(2)) in known:
        return last.group(1), last.group(2)
    if canonical_channel(parts[0]) in known:
        return folder, parts[0]
    inside = [part for part in parts[1:] if canonical_channel(part) in known or part == "OT"]
    if len(inside) == 1:
        return folder, "seg" if inside[0] == "OT" else inside[0]
    return stem, ""


def place_of(file: Path, stem: str) -> Path:
    """The folder that stands for a file's case: BRATS 2013 has one more, of the file's own name, around each file."""
    return file.parent.parent if file.parent.name == stem else file.parent


def require_distinct(cases: Iterable[str], where: str) -> None:
    """Refuse names of cases whose results would overwrite others.

    Results are called ``NAME.nii.gz``, ``NAME.json``, ``NAME_prob.nii.gz`` and ``NAME.boxes.json``.

    Some file systems do not tell capitals from small letters, so names that differ in them alone are the same.

    Raises:
        DataError: E_MANIFEST.
    """
    seen: dict[str, str] = {}
    for name in cases:
        key = name.casefold()
        if key in ("run", "failures") or key.endswith(("_prob", ".boxes")):
            raise DataError(
                f"a case cannot be called {name!r}", where=where,
                why="its results would have the name of run.json, failures.json, or of another case's probabilities or boxes",
                fix="rename it, or list it with another id", code="E_MANIFEST",
            )  # fmt: skip
        if key in seen:
            raise DataError(
                "two cases have the same name", where=f"{where}: {', '.join(dict.fromkeys((seen[key], name)))}",
                why="one result would overwrite the other", fix="rename one, or list them with ids", code="E_MANIFEST",
            )  # fmt: skip
        seen[key] = name


def labels_by_number(values: Iterable[int]) -> dict[str, int]:
    """Names for labels that have none: one alone is the foreground, several are called by their numbers."""
    kept = sorted(set(values) - {0})
    names = ["foreground"] if len(kept) == 1 else [f"label_{value}" for value in kept]
    return {"background": 0} | dict(zip(names, kept, strict=True))
