"""Case lists and splits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_med.base.errors import CmtError, ConfigError, DataError
from cmt_med.config.schema import Region, Split
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import canonical_channel
from cmt_med.data.conventions.regions import region_values
from cmt_med.data.manifest import load_manifest, manifest_content
from cmt_med.data.splits import split_cases

REGIONS = [
    Region(name="WT", labels=["NCR", "NET", "ED", "ET"], write="ED"),
    Region(name="TC", labels=["NCR", "NET", "ET"], write="NCR"),
    Region(name="ET", labels=["ET"], write="ET"),
]


def write(tmp_path: Path, **content: object) -> Path:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "x"}} | content))
    return path


def test_msd_layout(real_data: Path) -> None:
    manifest = load_manifest(real_data / "brats_crops" / "dataset.json")
    assert manifest.channels == ("flair", "t1", "t1ce", "t2")
    assert manifest.labels == {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
    assert manifest.cases[0].images["t1ce"][1] == 2
    assert region_values(REGIONS, manifest.labels) == [("WT", [2, 1, 3], 1), ("TC", [2, 3], 2), ("ET", [3], 3)]


def test_regions_by_name_in_other_numberings() -> None:
    brats2021 = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
    assert region_values(REGIONS, brats2021) == [("WT", [1, 2, 4], 2), ("TC", [1, 4], 1), ("ET", [4], 4)]
    brats2013 = {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4}
    assert region_values(REGIONS, brats2013)[1] == ("TC", [1, 3, 4], 1)
    with pytest.raises(ConfigError, match="ET"):
        region_values(REGIONS, {"background": 0, "NCR": 1, "ED": 2})
    with pytest.raises(ConfigError, match="non-enhancing = 3"):  # would be learned and scored as background
        region_values(REGIONS, {"background": 0, "NCR": 1, "ED": 2, "non-enhancing": 3, "ET": 4})
    with pytest.raises(ConfigError, match="liver"):
        region_values([Region(name="L", labels=["liver"], write="liver")], brats2021)


@pytest.mark.parametrize(("name", "canonical"), [("T1w", "t1"), ("t1n", "t1"), ("T1Gd", "t1ce"), ("t1c", "t1ce"),
    ("T2w", "t2"), ("t2f", "flair"), ("FLAIR", "flair"), ("CT", "ct")])  # fmt: skip
def test_channel_synonyms(name: str, canonical: str) -> None:
    assert canonical_channel(name) == canonical


def test_files_by_channel_and_by_order(tmp_path: Path) -> None:
    named = {"image": {"T1Gd": "a.nii", "t1n": "b.nii"}, "label": "l.nii", "id": "p", "group": "g", "fold": 2}
    listed = {"image": ["x/c.nii", "d.nii"], "label": "m.nii"}
    manifest = load_manifest(write(tmp_path, modality={"0": "t1", "1": "t1ce"}, training=[named, listed]))
    first, second = manifest.cases
    assert first.images == {"t1ce": (tmp_path / "a.nii", None), "t1": (tmp_path / "b.nii", None)}
    assert (first.group, first.fold) == ("g", 2)
    assert second.name == "c"
    assert second.images["t1"] == (tmp_path / "x/c.nii", None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "'training' is missing"),
        ({"training": [{}]}, "training[0] has no image"),
        ({"training": [{"image": "a.nii"}, {"image": "b/a.nii"}]}, "stands twice"),
        ({"training": [{"image": "a.nii", "id": "../../etc"}]}, "case name"),
        ({"training": [{"image": ["a.nii"]}], "modality": {"0": "x", "1": "y"}}, "1 files"),
        ({"training": [], "modality": {"0": "t1c", "1": "t1gd"}}, "mean the same"),
        ({"training": [], "labels": {"1": "x"}}, "value 0"),
        ({"training": [], "labels": {"0": "b", "x": "y"}}, "integers"),
        ({"training": [{"image": 3}]}, "file is expected"),
        ({"training": [{"image": "a.nii", "fold": "x"}]}, "fold"),
        ({"training": [{"image": "a.nii", "lable": "b.nii"}]}, "did you mean 'label'"),
        ({"training": [{"image": "a.nii", "id": "x"}, {"image": "a.nii", "id": "y"}]}, "the same files"),
        ({"training": [{"image": "a.nii", "label": "l.nii", "sha256": {"L.nii": "0" * 64}}]}, "a sum for 'L.nii'"),
        ({"training": [], "labels": {"0": "b", "1" * 5000: "x"}}, "has the value"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: dict[str, object], expected: str) -> None:
    with pytest.raises(CmtError) as raised:
        load_manifest(write(tmp_path, **content))
    assert expected in str(raised.value)
    assert raised.value.exit_code == 65


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"training": [{"image": "a.nii"}], "training": [{"image": "b.nii"}]}', "training"),
        ('{"training": [{"image": "a.nii", "label": "l.nii", "label": "m.nii"}]}', "label"),
        ('{"training": [{"image": {"t1": "a.nii", "t1": "b.nii"}}]}', "t1"),
        ('{"training": [], "labels": {"0": "background", "1": "x", "1": "y"}}', "1"),
    ],
)
def test_keys_that_stand_twice_are_refused(tmp_path: Path, text: str, key: str) -> None:
    """JSON's readers keep the last of them: the first set of cases would vanish without a word."""
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(DataError) as raised:
        load_manifest(tmp_path / "d.json")
    assert raised.value.code == "E_MANIFEST"
    assert f"the key {key!r} stands twice" in raised.value.what
    assert "keep one" in raised.value.fix


def test_a_list_of_its_cases_names_them_as_they_were(tmp_path: Path) -> None:
    """Also where files are links to objects that are named by their content, as git-annex has them."""
    entry = {"image": "p1.nii.gz", "label": "p1_seg.nii.gz", "sha256": {"p1_seg.nii.gz": "0" * 64}}
    for name in ("p1.nii.gz", "p1_seg.nii.gz"):
        (tmp_path / name).symlink_to(f"objects/SHA256-s840--{name[2:4]}")
    manifest = load_manifest(write(tmp_path, training=[entry]))
    (tmp_path / "copy.json").write_text(json.dumps(manifest_content(manifest, manifest.cases)))
    assert load_manifest(tmp_path / "copy.json").cases == manifest.cases


def test_a_value_that_nobody_has_annotated(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, ignore=255, colours={"#00ff00": 1, "#ffffff": 255}, training=["a.png"]))
    assert manifest.ignore == manifest.cases[0].ignore == 255
    assert manifest.labels == {"background": 0, "x": 1}
    (tmp_path / "copy.json").write_text(json.dumps(manifest_content(manifest, manifest.cases)))
    again = load_manifest(tmp_path / "copy.json")
    assert (again.ignore, again.cases, again.colours) == (255, manifest.cases, manifest.colours)


def test_labels_that_a_case_annotates(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "Liver", "2": "spleen", "5": "kidney"}
    entries = [
        {"image": "a.nii", "annotated": ["liver", "kidney"]},
        "b.nii",
        {"image": "c.nii", "annotated": ["background", "Liver"]},
    ]
    manifest = load_manifest(
        write(tmp_path, labels=labels, training=entries, test=[{"image": "d.nii", "annotated": ["spleen"]}])
    )
    assert [case.annotated for case in (*manifest.cases, *manifest.test)] == [(1, 5), None, (1,), (2,)]
    assert [manifest.cases[0].annotates(values) for values in ((), (1,), (1, 5), (0, 1), (2,), (1, 2))] == [
        True
    ] * 4 + [False] * 2
    assert manifest.cases[1].annotates((1, 2, 5))
    content = manifest_content(manifest, manifest.cases)
    assert [entry.get("annotated") for entry in content["training"]] == [["liver", "kidney"], None, ["liver"]]
    (tmp_path / "copy.json").write_text(json.dumps(content))
    assert [case.annotated for case in load_manifest(tmp_path / "copy.json").cases] == [(1, 5), None, (1,)]


@pytest.mark.parametrize("annotated", [["x", "y"], [], ["background"], "x", [1], {"x": 1}])
def test_labels_that_no_case_can_annotate(tmp_path: Path, annotated: object) -> None:
    with pytest.raises(DataError, match=r"E_MANIFEST.*training\[1\]"):
        load_manifest(write(tmp_path, training=["a.nii", {"image": "b.nii", "annotated": annotated}]))


@pytest.mark.parametrize(
    ("content", "said"),
    [({"ignore": value}, f"'ignore' is {value!r}") for value in (0, 1, 256, "7", True)]
    + [({"labels": {"0": "background", "3": "ignore"}}, "a label is called 'ignore'")],
)
def test_a_value_that_cannot_be_ignored(tmp_path: Path, content: dict[str, object], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_manifest(write(tmp_path, training=["a.nii"], **content))
    assert said in caught.value.what
    assert caught.value.code == "E_MANIFEST"


@pytest.mark.parametrize(
    ("convention", "labels", "said"),
    [
        ("brats2021", {"0": "background", "1": "NCR", "2": "ED", "3": "ET"}, "3 is ET"),
        ("msd", {"0": "background", "1": "NCR", "2": "ED", "3": "ET"}, "1 is NCR"),
        ("brats2023-gli", {"0": "background", "1": "GTV"}, "1 is GTV"),
        ("brats2022", {"0": "background"}, "no convention 'brats2022'"),
        (2021, {"0": "background"}, "no convention 2021"),
    ],
)
def test_a_convention_that_the_labels_contradict(
    tmp_path: Path, convention: object, labels: dict[str, str], said: str
) -> None:
    path = write(tmp_path, training=[], labels=labels, convention=convention)
    with pytest.raises(DataError) as raised:
        load_manifest(path)
    assert raised.value.code == "E_MANIFEST"
    assert said in raised.value.what
    assert load_manifest(write(tmp_path, training=[], convention=None)).convention == ""


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    for name in ("fifo.json", "missing.json", "."):
        with pytest.raises(CmtError) as raised:
            load_manifest(tmp_path / name)
        assert raised.value.code == "E_IO"


def test_not_json(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(CmtError, match="not JSON"):
        load_manifest(tmp_path / "d.json")


@given(
    groups=st.lists(st.integers(0, 8), min_size=4, max_size=30),
    by=st.sampled_from(["random", "last", "fold"]),
    seed=st.integers(0, 5),
)
def test_patients_are_never_split(groups: list[int], by: str, seed: int) -> None:
    cases = [Case(f"c{i:02d}", {}, group=f"g{g}") for i, g in enumerate(groups)]
    amount = {} if by == "fold" else {"fraction": 0.3}
    split = Split(by=by, folds=2, **amount)  # type: ignore[arg-type]
    if len(set(groups)) < 2:
        with pytest.raises(ConfigError, match="empty"):
            split_cases(cases, split, seed)
        return
    try:
        training, validation = split_cases(cases, split, seed)
    except ConfigError:
        return  # one patient with most of the cases
    assert {c.group for c in training}.isdisjoint(c.group for c in validation)
    assert sorted(c.name for c in training + validation) == [c.name for c in cases]
    assert split_cases(cases[::-1], split, seed)[1] == validation  # the order of the list does not matter


def test_last_and_folds() -> None:
    cases = [Case(f"c{i}", {}, group=f"c{i}") for i in range(10)]
    assert [c.name for c in split_cases(cases, Split(by="last", count=3), 0)[1]] == ["c7", "c8", "c9"]
    held = [c.name for f in range(5) for c in split_cases(cases, Split(by="fold", fold=f), 0)[1]]
    assert sorted(held) == [c.name for c in cases]
    mixed = [Case("a", {}, group="p", fold=0), Case("b", {}, group="p", fold=1), Case("c", {}, group="q", fold=1)]
    with pytest.raises(ConfigError, match="several folds"):
        split_cases(mixed, Split(by="fold", fold=0), 0)
