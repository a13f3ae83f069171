"""Signs of a data set's convention: taken where they agree, asked about where they do not."""

from __future__ import annotations

import pytest

from cmt_med.base.errors import ConfigError, DataError
from cmt_med.data.conventions.signs import Signs, recognise

CONTRADICTIONS = {
    "2021 names with the new numbering": (["BraTS2021_00001"], {"t1", "t1ce"}, {0, 1, 2, 3}, {}),
    "2023 names with the old numbering": (["BraTS-GLI-00001-000"], {"t1n", "t1c"}, {0, 1, 2, 4}, {}),
    "2021 names with 2023 channels": (["BraTS2021_00001"], {"t1n", "t1c"}, {0, 1, 2, 4}, {}),
    "2023 names with 2021 channels": (["BraTS-MEN-00001-000"], {"t1", "t1ce"}, {0, 1, 2, 3}, {}),
    "one mask of the whole": (["BraTS2021_00001"], {"t1"}, {0, 1}, {}),
    "two data sets": (["BraTS-MEN-00001-000", "BraTS-SSA-00001-000"], {"t1n"}, {0, 1, 2}, {}),
    "a stranger among them": (["BraTS2021_00001", "patient7"], {"t1"}, {0, 1, 2, 4}, {}),
    "unknown names": (["patient7"], {"t1", "t1ce"}, {0, 1, 2, 4}, {}),
    "a list that says otherwise": (["BRATS_001"], set(), {0, 1, 2, 3}, {"NCR": 1, "ED": 2, "ET": 3}),
    "a value of no year": (["BraTS2021_00001"], {"t1"}, {0, 1, 2, 4, 7}, {}),
}


@pytest.mark.parametrize("case", sorted(CONTRADICTIONS))
def test_contradicting_signs_are_a_question(case: str) -> None:
    names, suffixes, values, named = CONTRADICTIONS[case]
    with pytest.raises(DataError) as caught:
        recognise(Signs(names, suffixes, values, named))
    assert caught.value.code == "E_CONVENTION"
    assert "--convention" in caught.value.fix


@pytest.mark.parametrize("asked", [None, "brats2021", "brats2023", "msd"])
def test_no_word_answers_for_two_numberings(asked: str | None) -> None:
    signs = Signs(["BraTS2021_00001", "BraTS-GLI-00001-000", "BraTS2021_00002"], {"t1"}, {0, 1, 2}, {})
    with pytest.raises(DataError) as caught:
        recognise(signs, asked)
    assert caught.value.code == "E_CONVENTION"
    assert "brats2021: 2 cases" in caught.value.where
    assert "brats2023-gli or brats2024-gli: 1 cases" in caught.value.where
    assert "folder of its own" in caught.value.fix


def test_years_that_number_alike_need_one_word() -> None:
    signs = Signs(["Brats18_A_1", "BraTS19_B_1"], {"t1"}, {0, 1, 2, 4}, {})
    assert recognise(signs, "brats2019")[0].name == "brats2019"
    with pytest.raises(DataError) as caught:
        recognise(signs)
    # the years that case names speak of come first, and those that number alike are one answer
    assert caught.value.fix.partition("WORD: ")[2].startswith("brats2018 (1 NCR/NET, 2 ED, 4 ET, as brats2019, ")
    assert caught.value.fix.count("4 ET") == 2  # 2013's and theirs


def test_a_single_synonym_is_no_contradiction() -> None:
    signs = Signs(["BraTS2021_00001"], {"t1", "t1gd", "t2", "flair"}, {0, 1, 2, 4}, {})
    style, reasons = recognise(signs)
    assert style.name == "brats2021"
    assert "channels named t1gd by synonym" in reasons


def test_one_word_answers() -> None:
    signs = Signs(["patient7"], {"t1", "t1ce"}, {0, 1, 2, 4}, {})
    assert recognise(signs, "brats2021")[0].labels["ET"] == 4
    with pytest.raises(DataError) as caught:  # but labels that the answer does not know are never accepted
        recognise(signs, "brats2023")
    assert caught.value.code == "E_LABEL"
    with pytest.raises(ConfigError, match="no convention 'brats2022'"):
        recognise(signs, "brats2022")
    met = Signs(["BraTS-MET-00001-000"], {"t1n"}, {0, 1, 2, 3}, {})
    assert recognise(met, "brats2023")[0].name == "brats2023-met"
    assert recognise(Signs(["x"], {"t1n"}, {0, 1, 2, 3, 4}, {}), "brats2024")[0].name == "brats2024-gli"


GLI = {"BraTS-GLI-00001-000": {0, 1, 2, 3}, "BraTS-GLI-00002-000": {0, 1, 2, 3}}


def gli(values_in: dict[str, set[int]]) -> Signs:
    return Signs(list(values_in), {"t1n", "t1c"}, set().union(*values_in.values()), {}, values_in)


def test_one_mask_numbered_as_before_does_not_make_a_cavity() -> None:
    """Among cases of 2023, {1, 2, 4} is the numbering until 2021, or a cavity of 2024: asked for, and one word answers."""
    mixed = gli(GLI | {"BraTS-GLI-00003-000": {0, 1, 2, 4}})
    with pytest.raises(DataError) as caught:
        recognise(mixed)
    assert caught.value.code == "E_CONVENTION"
    assert "BraTS-GLI-00003-000" in caught.value.why
    assert "brats2024-gli" in caught.value.fix
    assert recognise(mixed, "brats2024")[0].name == "brats2024-gli"
    with pytest.raises(DataError) as refused:
        recognise(mixed, "brats2023")
    assert refused.value.code == "E_LABEL"
    assert "correct these" in caught.value.why
    plain = {"BraTS-GLI-00003-000": {0, 1, 2, 3, 4}}
    treated = {"BraTS-GLI-00004-101": {0, 1, 2, 4}, "BraTS-GLI-00005-100": {0, 1, 2, 3, 4}}
    for clear in (plain, treated, plain | treated | {"BraTS-GLI-00003-001": {0, 1, 2, 4}}):
        assert recognise(gli(GLI | clear))[0].name == "brats2024-gli"
    with pytest.raises(
        DataError, match="not certain"
    ):  # what is seen after treatment says nothing about those before it
        recognise(gli(GLI | treated | {"BraTS-GLI-00003-000": {0, 1, 2, 4}}))


def test_an_answer_does_not_overrule_what_is_known() -> None:
    """--convention is for what nothing else says; a word too many must not renumber a data set."""
    plain = Signs(["BraTS2021_00001"], {"t1", "t1ce"}, {0, 1, 2}, {})
    for word in ("brats2023-gli", "msd", "brats2024"):
        with pytest.raises(DataError) as caught:
            recognise(plain, word)
        assert caught.value.code == "E_CONVENTION"
        assert "leave the convention out" in caught.value.fix
    assert recognise(plain, "brats2018")[0].name == "brats2018"  # the same numbers
    listed = Signs(["case1"], {"t1"}, {0, 1, 2, 3}, {"background": 0, "NCR": 1, "ED": 2, "ET": 3})
    with pytest.raises(DataError) as caught:
        recognise(listed, "msd")
    assert "1 is NCR" in caught.value.why
    assert recognise(listed, "brats2023-ped")[0].labels["ED"] == 2
    with pytest.raises(DataError) as caught:  # a question offers no word that could not be the answer
        recognise(listed)
    assert "msd" not in caught.value.fix


def test_2024_without_a_cavity_is_told_by_its_time_points() -> None:
    values = {0, 1, 2, 3}
    assert recognise(Signs(["BraTS-GLI-02062-101"], {"t1n"}, values, {}))[0].name == "brats2024-gli"
    assert recognise(Signs(["BraTS-GLI-00002-001"], {"t1n"}, values, {}))[0].name == "brats2023-gli"


TUMOUR_2023 = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
RENAMED = {
    "1 is GTV by the names": (["BraTS-MEN-RT-0001-1"], {0, 1}, {}, "brats2023"),
    "3 is NET by the list": (["x"], {0, 1, 2, 3}, {"background": 0, "NCR": 1, "ED": 2, "NET": 3}, "brats2023-gli"),
    "1 is the liver": (["x"], {0, 1}, {"background": 0, "liver": 1}, "brats2021"),
    "1 is GTV by the list": (["x"], {0, 1}, {"background": 0, "GTV": 1}, "brats2021"),
    "3 is ET by the list's convention": (["x"], {0, 1, 2}, TUMOUR_2023, "msd"),
}


@pytest.mark.parametrize("case", sorted(RENAMED))
def test_no_answer_renames_a_number(case: str) -> None:
    names, values, named, asked = RENAMED[case]
    with pytest.raises(DataError) as caught:
        recognise(Signs(names, {"t1c"}, values, named), asked, origin="somewhere")
    assert caught.value.code == "E_CONVENTION"
    assert caught.value.where == "somewhere"


def test_a_core_without_parts_has_two_names() -> None:
    one = Signs(["x"], {"t1"}, {0, 1, 2, 4}, {"background": 0, "NET": 1, "ED": 2, "ET": 4})
    assert recognise(one, "brats2021")[0].labels["NCR"] == 1
    with pytest.raises(DataError):  # in the numbering that has both, 1 is the other one
        recognise(one, "brats2013")
