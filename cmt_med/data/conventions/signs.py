"""Recognition of the challenge's convention that a data set follows.

A convention is taken only where every sign of the data set (case names, channel names, label values, what a dataset.json says)
agrees with it, and asked for where they do not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cmt_med.base.errors import DataError
from cmt_med.data.conventions.brats import CONVENTIONS, Convention, conventions_of, named_convention
from cmt_med.data.conventions.names import TUMOUR_LABELS, disagreements

_POST_TREATMENT = re.compile(r"-1\d{2}$")  # 2024 counts a glioma's scans after treatment from 100


@dataclass(frozen=True)
class Signs:
    """Signs of a data set's convention.

    Attributes:
        cases: case names.
        suffixes: what file names call the channels, as they stand there.
        values: label values present, background included.
        named: label names and values that a dataset.json states; empty where there is none.
        values_in: case -> its label values, for cases with a label map.
    """

    cases: Sequence[str]
    suffixes: Collection[str]
    values: Collection[int]
    named: dict[str, int]
    values_in: Mapping[str, Collection[int]] = field(default_factory=dict)


class UnknownChallengeError(DataError):
    """No case name is of a known challenge: only the labels' names can say what they mean."""


def recognise(signs: Signs, asked: str | None = None, *, origin: str = "--convention") -> tuple[Convention, list[str]]:
    """The convention that all signs agree with.

    Args:
        signs: of the data set.
        asked: the answer to the question, which decides where names cannot; everything else must fit it all the same.
        origin: where the answer was given.

    Returns:
        The convention, and the reasons for it, a line each.

    Raises:
        ConfigError: for a word that is no convention.
        DataError: E_CONVENTION, with the question to answer, if no one word can be the answer, or if the answer is not what
            the data set says by itself; E_LABEL if values do not fit the answer.
    """
    by_name = conventions_of(signs.cases)
    _require_one_numbering(by_name, signs.cases)
    return _of_itself(signs, by_name) if asked is None else _as_answered(signs, by_name, asked, origin)


def _of_itself(signs: Signs, by_name: Collection[str]) -> tuple[Convention, list[str]]:
    strangers = [c for c in signs.cases if not any(re.match(CONVENTIONS[n].cases, c, re.I) for n in by_name)]
    if not by_name or strangers:
        if not by_name:
            why = f"case names such as {signs.cases[0]!r} are of no known challenge"
            raise _question(why, signs, kind=UnknownChallengeError)
        raise _question(f"some case names are of {', '.join(sorted(by_name))}, but not {strangers[0]!r}", signs)
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


def _as_answered(signs: Signs, by_name: Collection[str], asked: str, origin: str) -> tuple[Convention, list[str]]:
    chosen = named_convention(asked, signs.cases)
    stated = disagreements(signs.named, chosen.labels)
    if stated:
        why = f"the case list says that {', '.join(stated)}"
        raise _overruled(chosen, origin, why, "correct the case list's labels")
    unknown = sorted(set(signs.values) - set(chosen.labels.values()))
    if unknown:
        raise DataError(
            f"label values {', '.join(map(str, unknown))} do not exist in {chosen.name}",
            where="the label files",
            why=f"{chosen.about}; the files have {_listed(signs.values)}",
            fix="give the --convention that the files follow, or correct the files",
            code="E_LABEL",
        )
    try:
        plain, reasons = _of_itself(signs, by_name)
    except DataError:  # there was a question, and this is the answer
        against = by_name and chosen.name not in by_name
        return chosen, [f"{origin} {asked}" + (f", against case names of {_listed(by_name)}" if against else "")]
    if disagreements(plain.labels, chosen.labels):
        why = f"{'; '.join(reasons)} say {plain.about}"
        raise _overruled(chosen, origin, why, "write a case list that names the labels, if they are renumbered")
    return chosen, [f"{origin} {asked}"]


def _overruled(chosen: Convention, origin: str, why: str, otherwise: str) -> DataError:
    return DataError(
        f"the labels are not numbered as in {chosen.name}", where=origin, why=why,
        fix=f"leave the convention out, which answers where nothing else does; or {otherwise}", code="E_CONVENTION",
    )  # fmt: skip


def _contradiction(convention: Convention, signs: Signs) -> str | None:
    """List what speaks against a convention whose case names fit."""
    values, known = {v for v in signs.values if v}, set(convention.labels.values())
    if values - known:
        return f"case names say {convention.about}, but the files have label {_listed(values - known)}"
    if values == {1} and len(known) > 2:
        return (
            f"case names say {convention.about}, but the files have label 1 alone, as a mask of the whole tumour would"
        )
    if "RC" in convention.labels and 4 in values and 3 not in values:
        return f"case names say {convention.about}, but label 4 without any 3 is enhancing tumour as until 2021"
    before = {case: values for case, values in signs.values_in.items() if not _POST_TREATMENT.search(case)}
    doubtful = cavities_in_doubt(convention, before)
    if doubtful and len(doubtful) == sum(4 in values for values in before.values()):
        return (
            f"case names say {convention.about}, but label 4 stands only in cases without 3 ({_few(doubtful)}), before "
            "treatment by their names, as enhancing tumour did until 2021 (then correct these)"
        )
    strange = _strange(convention, signs)
    found = {word.lower() for word in signs.suffixes}
    # One file under another synonym is somebody's habit; a whole set of another challenge's words is a sign.
    if strange and any(found <= _words(other) for other in CONVENTIONS.values()):
        return (
            f"case names say {convention.name} (channels {_listed(_words(convention))}), "
            f"but files are named {_listed(strange)}"
        )
    tumour = {name: value for name, value in signs.named.items() if name in TUMOUR_LABELS}
    stated = disagreements(tumour, convention.labels)  # names that are nobody's may mean the same in other words
    return f"case names say {convention.about}, but dataset.json says {stated[0]}" if stated else None


def cavities_in_doubt(convention: Convention, values_in: Mapping[str, Collection[int]]) -> list[str]:
    """Cases with a cavity and no enhancing tumour: so they may be, but a mask numbered as until 2021 looks the same."""
    cavity, enhancing = convention.labels.get("RC"), convention.labels.get("ET")
    if cavity is None:
        return []
    return sorted(case for case, values in values_in.items() if cavity in values and enhancing not in values)


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


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
        named = " or ".join(sorted(conventions_of([case]))) or "none that is known"
        counts[named] = counts.get(named, 0) + 1
    raise DataError(
        "the cases are of challenges that number their labels differently",
        where="; ".join(f"{named}: {number} cases" for named, number in sorted(counts.items())),
        why="one number would have two meanings",
        fix="give each challenge a folder of its own, and run init on one after the other",
        code="E_CONVENTION",
    )


def _question(why: str, signs: Signs, likely: Collection[str] = (), *, kind: type[DataError] = DataError) -> DataError:
    values = {v for v in signs.values if v}
    choices: dict[frozenset[tuple[str, int]], list[Convention]] = {}  # those that number alike are one answer
    for convention in sorted(CONVENTIONS.values(), key=lambda c: c.name not in likely):
        if values <= set(convention.labels.values()) and not disagreements(signs.named, convention.labels):
            choices.setdefault(frozenset(convention.labels.items()), []).append(convention)
    listed = "; ".join(
        f"{c[0].name} ({c[0].about.partition(': ')[2]}{', as ' + ', '.join(o.name for o in c[1:]) if c[1:] else ''})"
        for c in choices.values()
    )
    fix = "no --convention agrees with all of that; correct the files, or write a case list that names the labels"
    if listed:
        fix = f"which convention do the labels follow? Answer with --convention WORD: {listed}; none, where they are not of these"
    return kind(
        "what the labels mean is not certain",
        where=f"label values {_listed(signs.values)}",
        why=why,
        fix=fix,
        code="E_CONVENTION",
    )


def _listed(items: Collection[object]) -> str:
    return ", ".join(str(item) for item in sorted(items, key=str))
