"""The brain-tumour challenges' conventions by year: names of cases, channels and labels, numbers, regions.

The same number means different things: 4 is enhancing tumour up to 2021 and a cavity in 2024, the decathlon swaps 1 and 2, in
the 2013 numbering 3 is core without enhancement. Which convention a data set follows is told by :mod:`.signs`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.config.schema import Region

_UNTIL_2021 = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
_FROM_2023 = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
_OLD_SUFFIXES = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"}
_NEW_SUFFIXES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}


@dataclass(frozen=True)
class Convention:
    """One challenge's way of naming.

    Attributes:
        name: the word for ``--convention``.
        about: one line for people.
        cases: pattern of a case name (ignoring case).
        group: pattern of what is left off a case name to name the patient.
        suffixes: canonical channel -> what file names call it.
        labels: canonical label -> value.
        label_suffix: what file names call the label map.
        lesions: the data set whose lesion-wise rule the challenge uses, if it has one.
        example: a case name with ``{n}`` for a number.
    """

    name: str
    about: str
    cases: str
    group: str
    suffixes: dict[str, str]
    labels: dict[str, int]
    label_suffix: str
    lesions: str | None
    example: str


def _until_2021(year: int, cases: str, group: str, example: str) -> Convention:
    about = f"BraTS {year}: 1 NCR/NET, 2 ED, 4 ET"
    return Convention(f"brats{year}", about, cases, group, _OLD_SUFFIXES, _UNTIL_2021, "seg", None, example)


def _from_2023(name: str, data_set: str, labels: dict[str, int]) -> Convention:
    values = ", ".join(f"{value} {label}" for label, value in labels.items() if value)
    return Convention(
        name, f"BraTS {name[5:9]} {data_set}: {values}", rf"brats-{data_set}-\d{{5}}-\d{{3}}$", r"-\d{3}$",
        _NEW_SUFFIXES, labels, "seg", data_set.lower(), f"BraTS-{data_set}-{{n:05d}}-000",
    )  # fmt: skip


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "brats2013", "BRATS 2013 and 2015: 1 NCR, 2 ED, 3 NET, 4 ET", r"(brats_(2013|tcia)_|vsd\.brain)", r"_\d+$",
            {"t1": "T1", "t1ce": "T1c", "t2": "T2", "flair": "Flair"},
            {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4}, "OTMultiClass", None, "brats_2013_pat{n:04d}_1",
        ),
        _until_2021(2017, r"brats17_", r"_\d+$", "Brats17_PHANTOM_{n}_1"),
        _until_2021(2018, r"brats18_", r"_\d+$", "Brats18_PHANTOM_{n}_1"),
        _until_2021(2019, r"brats19_", r"_\d+$", "BraTS19_PHANTOM_{n}_1"),
        _until_2021(2020, r"brats20_(training|validation)_\d+$", r"$^", "BraTS20_Training_{n:03d}"),
        _until_2021(2021, r"brats2021_\d+$", r"$^", "BraTS2021_{n:05d}"),
        _from_2023("brats2023-gli", "GLI", _FROM_2023),
        _from_2023("brats2023-men", "MEN", _FROM_2023),
        _from_2023("brats2023-met", "MET", _FROM_2023),
        _from_2023("brats2023-ped", "PED", _FROM_2023),
        _from_2023("brats2023-ssa", "SSA", _FROM_2023),
        _from_2023("brats2024-gli", "GLI", _FROM_2023 | {"RC": 4}),
        Convention(
            "brats2024-men-rt", "BraTS 2024 MEN-RT: 1 GTV", r"brats-men-rt-\d{4}-\d+$", r"-\d+$", {"t1ce": "t1c"},
            {"background": 0, "GTV": 1}, "gtv", None, "BraTS-MEN-RT-{n:04d}-1",
        ),
        Convention(
            "msd", "Medical Segmentation Decathlon Task01: 1 ED, 2 NCR/NET, 3 ET", r"brats_\d{3}$", r"$^",
            {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"},
            {"background": 0, "ED": 1, "NCR": 2, "ET": 3}, "label", None, "BRATS_{n:03d}",
        ),
    )
}  # fmt: skip
_FAMILIES = {
    "brats2023": ("brats2023-gli", "brats2023-men", "brats2023-met", "brats2023-ped", "brats2023-ssa"),
    "brats2024": ("brats2024-gli", "brats2024-men-rt"),
}


def standard_regions(labels: Collection[str]) -> list[Region]:
    """The challenge's overlapping regions for the labels that a data set has, in the order they are painted.

    WT = NCR + NET + ED + ET, TC = NCR + NET + ET, ET; where the data set tells them apart also NET (2013, so that its
    numbering can be written back) and RC (2024); for MEN-RT the GTV alone.
    """
    parts = {
        "WT": (("NCR", "NET", "ED", "ET"), "ED"),
        "TC": (("NCR", "NET", "ET"), "NCR"),
        "NET": (("NET",), "NET"),
        "ET": (("ET",), "ET"),
        "RC": (("RC",), "RC"),
        "GTV": (("GTV",), "GTV"),
    }
    regions = []
    for name, (members, write) in parts.items():
        present = [label for label in members if label in labels]
        if present and write in labels:
            regions.append(Region(name=name, labels=present, write=write))
    return regions


def lesions_of(convention: str) -> str | None:
    """The data set whose lesion-wise rule a convention's challenge uses; None where it has none."""
    return CONVENTIONS[convention].lesions if convention in CONVENTIONS else None


def patient_of(case: str, convention: Convention) -> str:
    """The patient that a case belongs to: its name without the time point, where it is one of the convention's names."""
    return re.sub(convention.group, "", case) if re.match(convention.cases, case, re.I) else case


def named_convention(word: str, cases: Sequence[str]) -> Convention:
    """The convention that a word names; a year alone is completed by the case names.

    Raises:
        ConfigError: for a word that is no convention.
    """
    return _named(word, conventions_of(cases))


def labels_by_name(cases: Sequence[str]) -> dict[str, int] | None:
    """Label numbers of the challenge that case names belong to, or None if they are of none.

    Names alone leave open whether a glioma is of 2023 or 2024; the numbers they share are the same.

    Raises:
        DataError: E_CONVENTION, if names are of challenges that number differently, or only some are of one.
    """
    found = [_labels_of_name(case) for case in cases]
    known = {name: value for labels in found if labels for name, value in labels.items()}
    if not known:
        return None
    strange = [
        case for case, labels in zip(cases, found, strict=True) if labels is None or not labels.items() <= known.items()
    ]
    if strange or len(set(known.values())) < len(known):
        one = next(case for case in cases if conventions_of([case]))
        raise DataError(
            "the cases number their labels differently, as far as their names tell",
            where=f"{len(cases)} cases, among them {', '.join(dict.fromkeys([one, strange[0] if strange else cases[-1]]))}",
            why="results are written in the numbers of the data set, and one number would have two meanings",
            fix="say whose numbers all results get with --convention, or run infer on one data set after the other",
            code="E_CONVENTION",
        )
    return known


def _labels_of_name(case: str) -> dict[str, int] | None:
    fitting = [c for c in CONVENTIONS.values() if re.match(c.cases, case, re.I)]
    return max((c.labels for c in fitting), key=len, default=None)


def conventions_of(cases: Sequence[str]) -> set[str]:
    """The conventions whose way of naming cases fits these names."""
    return {name for name in CONVENTIONS if any(re.match(CONVENTIONS[name].cases, case, re.I) for case in cases)}


def _named(word: str, by_name: Collection[str]) -> Convention:
    key = word.lower()
    if key in _FAMILIES:  # the year alone: the names tell the rest
        members = [name for name in _FAMILIES[key] if name in by_name]
        key = members[0] if members else _FAMILIES[key][0]
    if key not in CONVENTIONS:
        raise ConfigError(
            f"there is no convention {word!r}", where="--convention", why="its labels would have to be guessed",
            fix=f"use one of {', '.join([*CONVENTIONS, *_FAMILIES])}",
        )  # fmt: skip
    return CONVENTIONS[key]
