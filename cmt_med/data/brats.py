"""The brain-tumour challenges' conventions by year, and how a data set tells which one it follows.

The same number means different things: 4 is enhancing tumour up to 2021 and a cavity in 2024, the decathlon swaps 1 and 2, in
the 2013 numbering 3 is core without enhancement. So a convention is taken only where every sign of the data set (case names,
channel names, label values) agrees with it, and asked for where they do not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cmt_med.config import Region
from cmt_med.data.names import LABEL_WORDS
from cmt_med.errors import ConfigError, DataError

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
_POST_TREATMENT = re.compile(r"-1\d{2}$")  # 2024 counts a glioma's scans after treatment from 100


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


@dataclass(frozen=True)
class Signs:
    """What a data set shows of its convention.

    Attributes:
        cases: case names.
        suffixes: what file names call the channels, as they stand there.
        values: label values present, background included.
        named: label names and values that a dataset.json states; empty where there is none.
    """

    cases: Sequence[str]
    suffixes: Collection[str]
    values: Collection[int]
    named: dict[str, int]


def recognise(signs: Signs, asked: str | None = None) -> tuple[Convention, list[str]]:
    """The convention that all signs agree with.

    Args:
        signs: of the data set.
        asked: the user's ``--convention``, which decides where names cannot; labels must fit it all the same.

    Returns:
        The convention, and the reasons for it, a line each.

    Raises:
        ConfigError: for a word that is no convention.
        DataError: E_CONVENTION, with the question to answer, or if no one word can be the answer; E_LABEL if values do not
            fit the convention asked for.
    """
    by_name = _by_name(signs.cases)
    _require_one_numbering(by_name, signs.cases)
    if asked is not None:
        chosen = _asked(asked, by_name)
        unknown = sorted(set(signs.values) - set(chosen.labels.values()))
        if unknown:
            raise DataError(
                f"label values {', '.join(map(str, unknown))} do not exist in {chosen.name}",
                where="the label files",
                why=f"{chosen.about}; the files have {_listed(signs.values)}",
                fix="give the --convention that the files follow, or correct the files",
                code="E_LABEL",
            )
        against = by_name and chosen.name not in by_name
        return chosen, [f"--convention {asked}" + (f", against case names of {_listed(by_name)}" if against else "")]
    strangers = [c for c in signs.cases if not any(re.match(CONVENTIONS[n].cases, c, re.I) for n in by_name)]
    if not by_name or strangers:
        mixed = f"some case names are of {', '.join(sorted(by_name))}, but not {strangers[0]!r}" if by_name else ""
        raise _question(mixed or f"case names such as {signs.cases[0]!r} are of no known challenge", signs)
    fitting = [name for name in by_name if _contradiction(CONVENTIONS[name], signs) is None]
    reasons = [f"case names such as {signs.cases[0]}", f"label values {_listed(signs.values)}"]
    if len({CONVENTIONS[name].cases for name in by_name}) > 1:
        raise _question(f"case names are of several challenges: {', '.join(sorted(by_name))}", signs, by_name)
    if not fitting:
        contradictions = [_contradiction(CONVENTIONS[name], signs) or "" for name in sorted(by_name)]
        raise _question("; ".join(contradictions), signs, by_name)
    synonyms = _strange(CONVENTIONS[fitting[0]], signs)
    if synonyms:
        reasons.append(f"channels named {_listed(synonyms)} by synonym")
    if len(fitting) > 1:  # BraTS-GLI without label 4: 2023, or 2024 without a cavity; 1 to 3 mean the same in both
        later = any(_POST_TREATMENT.search(case) for case in signs.cases)
        reasons.append("time points from 100 on" if later else "no time point from 100 on, no cavity")
        fitting = [name for name in fitting if name.startswith("brats2024") == later]
    return CONVENTIONS[fitting[0]], reasons


def _contradiction(convention: Convention, signs: Signs) -> str | None:
    """What speaks against a convention whose case names fit."""
    values, known = {v for v in signs.values if v}, set(convention.labels.values())
    if values - known:
        return f"case names say {convention.about}, but the files have label {_listed(values - known)}"
    if values == {1} and len(known) > 2:
        return (
            f"case names say {convention.about}, but the files have label 1 alone, as a mask of the whole tumour would"
        )
    if "RC" in convention.labels and 4 in values and 3 not in values:
        return f"case names say {convention.about}, but label 4 without any 3 is enhancing tumour as until 2021"
    strange = _strange(convention, signs)
    found = {word.lower() for word in signs.suffixes}
    # One file under another synonym is somebody's habit; a whole set of another challenge's words is a sign.
    if strange and any(found <= _words(other) for other in CONVENTIONS.values()):
        return (
            f"case names say {convention.name} (channels {_listed(_words(convention))}), "
            f"but files are named {_listed(strange)}"
        )
    for label, value in signs.named.items():
        if convention.labels.get(label, value) != value:
            return f"case names say {convention.about}, but dataset.json says {value} is {label}"
    return None


def cavities_in_doubt(convention: Convention, values_in: Mapping[str, Collection[int]]) -> list[str]:
    """Cases with a cavity and no enhancing tumour: so they may be, but a mask numbered as until 2021 looks the same."""
    cavity, enhancing = convention.labels.get("RC"), convention.labels.get("ET")
    if cavity is None:
        return []
    return sorted(case for case, values in values_in.items() if cavity in values and enhancing not in values)


def _words(convention: Convention) -> set[str]:
    return {word.lower() for word in convention.suffixes.values()}


def _strange(convention: Convention, signs: Signs) -> set[str]:
    """Channel words that are not the convention's own."""
    return {word for word in signs.suffixes if word.lower() not in _words(convention)}


def _require_one_numbering(by_name: Collection[str], cases: Sequence[str]) -> None:
    """Refuse cases of challenges that number the same labels differently: no one word could be right for all of them."""
    numberings = [
        {frozenset(CONVENTIONS[name].labels.items()) for name in by_name if CONVENTIONS[name].cases == pattern}
        for pattern in {CONVENTIONS[name].cases for name in by_name}
    ]
    if not numberings or set.intersection(*numberings):
        return
    counts: dict[str, int] = {}
    for case in cases:
        named = " or ".join(sorted(_by_name([case]))) or "none that is known"
        counts[named] = counts.get(named, 0) + 1
    raise DataError(
        "the cases are of challenges that number their labels differently",
        where="; ".join(f"{named}: {number} cases" for named, number in sorted(counts.items())),
        why="one number would have two meanings",
        fix="give each challenge a folder of its own, and run init on one after the other",
        code="E_CONVENTION",
    )


def named_convention(word: str, cases: Sequence[str]) -> Convention:
    """The convention that a word names; a year alone is completed by the case names.

    Raises:
        ConfigError: for a word that is no convention.
    """
    return _asked(word, _by_name(cases))


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
        one = next(case for case in cases if _by_name([case]))
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


def _by_name(cases: Sequence[str]) -> set[str]:
    return {name for name in CONVENTIONS if any(re.match(CONVENTIONS[name].cases, case, re.I) for case in cases)}


def _asked(word: str, by_name: Collection[str]) -> Convention:
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


def _question(why: str, signs: Signs, likely: Collection[str] = ()) -> DataError:
    values = {v for v in signs.values if v}
    choices: dict[frozenset[tuple[str, int]], list[Convention]] = {}  # those that number alike are one answer
    for convention in sorted(CONVENTIONS.values(), key=lambda c: c.name not in likely):
        if values <= set(convention.labels.values()):
            choices.setdefault(frozenset(convention.labels.items()), []).append(convention)
    listed = "; ".join(
        f"{c[0].name} ({c[0].about.partition(': ')[2]}{', as ' + ', '.join(o.name for o in c[1:]) if c[1:] else ''})"
        for c in choices.values()
    )
    fix = "no known --convention has these values; correct the files, or write a case list that names the labels"
    if listed:
        fix = f"which convention do the labels follow? Answer with --convention WORD: {listed}"
    if not signs.values:
        fix = f"if there are label maps, name them CASE_{LABEL_WORDS[0]}, or _{', _'.join(LABEL_WORDS[1:])}; {fix}"
    return DataError(
        "what the labels mean is not certain",
        where=f"label values {_listed(signs.values)}" if signs.values else "no label map was found by its name",
        why=why,
        fix=fix,
        code="E_CONVENTION",
    )


def _listed(items: Collection[object]) -> str:
    return ", ".join(str(item) for item in sorted(items, key=str))
