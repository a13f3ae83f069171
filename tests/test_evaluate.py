"""``evaluate`` with its scores, rules and options, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.sums import volume_sum
from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.reports.sources import find_source
from cmt_med.reports.volumes import load_shown
from tests.helpers import save

SPACING = np.diag([2.0, 1.0, 1.0, 1.0])


def cube(low: int | None) -> np.ndarray:
    """A cube of 4³ voxels of 2 mm³ at ``low``; none for None."""
    volume = np.zeros((16, 16, 16), np.uint8)
    if low is not None:
        volume[low : low + 4, 4:8, 4:8] = 1
    return volume


def run(folder: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], *options: str) -> int:
    for case, (predicted, reference) in pairs.items():
        save(folder / f"p/{case}.nii.gz", predicted, SPACING)
        save(folder / f"r/{case}.nii.gz", reference, SPACING)
    base = ["--predictions", str(folder / "p"), "--references", str(folder / "r"), "--output", str(folder / "o")]
    return run_command(evaluate, [*base, "--labels", "ball=1", *options])


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "o/metrics.json").read_text())


FOUR = {
    "found": (cube(4), cube(4)), "moved": (cube(5), cube(4)), "missed": (cube(None), cube(4)),
    "false": (cube(4), cube(None)), "empty": (cube(None), cube(None)),
}  # fmt: skip


def test_every_score_is_written_and_summarised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, FOUR, "--tolerance", "1", "--tolerance", "2.5", "--lesion-wise", "met") == 0
    out = capsys.readouterr().out
    assert "HD95 mm" in out
    assert "ball: 3 lesions, 2 detected, 1 missed, 1 false positives" in out
    found = metrics(tmp_path)
    assert (found["schema_version"], found["empty_rule"], found["tolerances_mm"]) == (2, "diagonal", [1, 2.5])
    assert found["lesion_rule"] == {"name": "met", "dilation": 1, "min_voxels": 2}
    moved = found["cases"]["moved"]["ball"]
    assert (moved["dice"], moved["hd95"], moved["nsd_2.5mm"]) == (0.75, 2.0, 1.0)
    assert moved["reference_ml"] == pytest.approx(0.128)
    row = found["summary"]["ball"]
    assert (row["n_empty"], row["n_missed"], row["n_false_positive"]) == (2, 1, 1)
    assert row["mean"] == pytest.approx((1 + 0.75 + 0 + 0 + 1) / 5)
    assert row["metrics"]["hd95"]["mean"] == pytest.approx((0 + 2 + 2 * np.hypot(32, np.hypot(16, 16))) / 5)
    for name in row["metrics"]:
        assert found["metrics"][name]["title"]
        assert {"mean", "median", "std", "low", "high", "n", "n_empty", "n_missed", "n_false_positive"} <= set(
            row["metrics"][name]
        )
    with (tmp_path / "o/metrics.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [line["case"] for line in table] == sorted(FOUR)
    assert list(table[0])[:7] == [
        "case", "target", "dice", "reference_voxels", "predicted_voxels", "reference_ml", "predicted_ml",
    ]  # fmt: skip
    assert set(found["metrics"]) < set(table[0])


@pytest.mark.parametrize(("rule", "mean", "n"), [("nan", 1.75 / 4, 4), ("skip", 1.75 / 3, 3)])
def test_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, mean: float, n: int) -> None:
    assert run(tmp_path, FOUR, "--empty", rule) == 0
    row = metrics(tmp_path)["summary"]["ball"]
    assert (row["mean"], row["n"], row["n_empty"], row["n_missed"]) == (pytest.approx(mean), n, 2, 1)
    assert metrics(tmp_path)["cases"]["empty"]["ball"]["dice"] is None
    assert metrics(tmp_path)["lesion_rule"] is None
    assert f"rule {rule}: empty reference" in capsys.readouterr().out


def test_what_is_no_score_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = cube(4).astype(np.float32)
    bad[0, 0, 0] = np.nan
    half = cube(4).astype(np.float32)
    half[0, 0, 0] = 0.4
    pairs = {
        "good": (cube(4), cube(4)), "nan": (bad, cube(4)), "fraction": (half, cube(4)),
        "shape": (cube(4)[:-1], cube(4)), "reference": (cube(4), bad),
    }  # fmt: skip
    save(tmp_path / "p/place.nii.gz", cube(4), np.diag([1.0, 1.0, 1.0, 1.0]))
    save(tmp_path / "r/place.nii.gz", cube(4), SPACING)
    (tmp_path / "r/absent.nii.gz").write_bytes((tmp_path / "r/place.nii.gz").read_bytes())
    assert run(tmp_path, pairs) == 2
    codes = {failure["case"]: failure["code"] for failure in json.loads((tmp_path / "o/failures.json").read_text())}
    assert codes == {
        "nan": "E_NONFINITE", "fraction": "E_LABEL", "shape": "E_GRID", "reference": "E_NONFINITE", "place": "E_GRID",
        "absent": "E_MISSING",
    }  # fmt: skip
    assert list(metrics(tmp_path)["cases"]) == ["good"]
    summary = metrics(tmp_path)["summary"]
    assert (summary["ball"]["n"], summary["ball"]["n_failed"], summary["mean"]["n_failed"]) == (1, 6, 6)
    head, *table = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("target", "ball", "mean"))
    ]
    assert head.endswith("not scored")
    assert all(line.split()[-1] == "6" for line in table)


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\tx", "\rx", "\x1b]0;x\x07ET", "\u202eTE"])
def test_names_are_text_in_the_terminal_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """No name moves the cursor, sets a title, turns a line around or is computed by a spreadsheet."""
    case, target = name, name.replace("=", "@")  # what stands before = is the name
    assert run(tmp_path, {case: (cube(4), cube(5))}, "--labels", f"{target}=1", "--lesion-wise", "met") == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", capsys.readouterr().out)
    with (tmp_path / "o/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    quote = "'" if name[0] in "=+-@\t\r" else ""
    assert [(row["case"], row["target"]) for row in rows][-1] == (quote + case, quote + target)
    assert target in metrics(tmp_path)["cases"][case]


def test_labels_that_the_model_does_not_write_are_an_error(tmp_path: Path) -> None:
    strange = cube(4)
    strange[0, 0, 0] = 7
    (tmp_path / "p").mkdir()
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1}}))
    assert run(tmp_path, {"good": (cube(4), cube(4)), "strange": (strange, cube(4))}) == 2
    (failure,) = json.loads((tmp_path / "o/failures.json").read_text())
    assert (failure["case"], failure["code"]) == ("strange", "E_LABEL")


def test_references_in_other_numbers_are_an_error_not_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of label maps of 2021 (ET is 4) beside predictions in the numbers of 2023 (ET is 3)."""
    predicted = np.zeros((16, 16, 16), np.uint8)
    predicted[2:12, 2:12, 2:12], predicted[4:8, 4:8, 4:8] = 2, 3
    for case in ("one", "two"):
        save(tmp_path / f"p/{case}.nii.gz", predicted)
        save(tmp_path / f"r/{case}.nii.gz", np.where(predicted == 3, 4, predicted).astype(np.uint8))
    run = {"labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3}, "targets": {"WT": [1, 2, 3], "ET": [3]}}
    (tmp_path / "p/run.json").write_text(json.dumps(run))
    options = [
        "--predictions",
        str(tmp_path / "p"),
        "--references",
        str(tmp_path / "r"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert run_command(evaluate, options) == 2
    failures = json.loads((tmp_path / "o/failures.json").read_text())
    assert [(f["case"], f["code"], f["where"].endswith("r/" + f["case"] + ".nii.gz")) for f in failures] == [
        ("one", "E_LABEL", True), ("two", "E_LABEL", True),
    ]  # fmt: skip
    assert metrics(tmp_path)["cases"] == {}
    # who names the values says that they hold on both sides, whatever else the references have
    assert run_command(evaluate, [*options, "--labels", "edema=2"]) == 0
    assert metrics(tmp_path)["summary"]["edema"]["mean"] == 1


@pytest.mark.parametrize("labels", [[], ["--labels", "ball=1"]])
@pytest.mark.parametrize(
    "text",
    ['{"targets": 3}', '{"targets": {"ball": [1]}, "labels": 3}', '{"targets": {"ball": [1]}, "failed": 3}', "[]"],
)
def test_a_damaged_run_is_an_error_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, labels: list[str]
) -> None:
    assert run(tmp_path, {"found": (cube(4), cube(4))}) == 0
    (tmp_path / "p/run.json").write_text(text)
    options = [
        "--predictions",
        str(tmp_path / "p"),
        "--references",
        str(tmp_path / "r"),
        "--output",
        str(tmp_path / "o"),
    ]
    capsys.readouterr()
    assert run_command(evaluate, [*options, *labels]) == 65
    message = capsys.readouterr().err
    assert "[E_RUN] run.json is damaged" in message
    for part in ("where:", "why:", "fix:"):
        assert part in message


def test_targets_without_labels_cannot_be_put_into_a_case_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = brats_list(tmp_path, OLD)
    options = ["--predictions", str(tmp_path / "p"), "--references", str(path), "--output", str(tmp_path / "o")]
    (tmp_path / "p/run.json").write_text(json.dumps({"targets": OLD_TARGETS}))
    assert run_command(evaluate, options) == 65
    assert "E_RUN" in capsys.readouterr().err
    (tmp_path / "p/run.json").write_text("{}")
    assert run_command(evaluate, options) == 64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--empty", "drop"], "diagonal or challenge or nan or skip"),
        (["--lesion-wise", "glioma"], "gli or ped"),
        (["--tolerance", "0"], "tolerance"),
        (["--tolerance", "nan"], "tolerance"),
        (["--tolerance", "1", "--tolerance", "1.0000001"], "nsd_1mm"),
    ],
)
def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert run(tmp_path, {"found": (cube(4), cube(4))}, *options) == 64
    message = capsys.readouterr().err
    for part in (expected, "where:", "why:", "fix:"):
        assert part in message
    assert not (tmp_path / "o").exists()


def brats_list(folder: Path, labels: dict[str, int]) -> Path:
    """Two cases of four cubes, each of its own label, as a case list in the numbers given."""
    entries = []
    for case in ("one", "two"):
        reference = np.zeros((24, 12, 12), np.uint8)
        for i, value in enumerate(value for value in labels.values() if value):
            reference[4 * i + 1 : 4 * i + 4, 4:8, 4:8] = value
        save(folder / f"r/{case}.nii.gz", reference)
        save(folder / f"p/{case}.nii.gz", reference)
        entries.append({"id": case, "image": {"t1": f"r/{case}.nii.gz"}, "label": f"r/{case}.nii.gz"})
    content = {
        "name": "x",
        "modality": {"0": "t1"},
        "labels": {str(v): n for n, v in labels.items()},
        "training": entries,
    }
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


OLD = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
OLD_TARGETS = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
NEW = {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
NEW_TARGETS = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
YEARS = {
    # a 2013 model that writes 2021's numbers: necrosis and core without enhancement share one, so neither is known by itself
    "2013 on 2021": (OLD | {"NET": 1}, OLD_TARGETS | {"NET": [1]}, OLD, {"WT", "TC", "ET"}),
    # a model that knows no cavity on a list that has one: in 2024, too, it belongs to no region but its own
    "2023 on 2024 with a cavity": (NEW, NEW_TARGETS, NEW | {"RC": 4}, {"WT", "TC", "ET"}),
    # the list tells parts apart that the model does not: predictions are compared as a whole
    "2023 with a cavity on 2023 without": (
        NEW | {"RC": 4},
        NEW_TARGETS | {"RC": [4]},
        NEW,
        {"WT", "TC", "ET"},
    ),
}


@pytest.mark.parametrize("years", sorted(YEARS))
def test_what_equals_the_references_scores_one_in_every_numbering(
    years: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels, targets, listed, scored = YEARS[years]
    path = brats_list(tmp_path, listed)
    for case in ("one", "two"):  # the model finds what it knows
        known = np.asarray(nib.load(tmp_path / f"r/{case}.nii.gz").dataobj)
        save(tmp_path / f"p/{case}.nii.gz", np.where(np.isin(known, list(labels.values())), known, 0).astype(np.uint8))
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": labels, "targets": targets}))
    options = ["--predictions", str(tmp_path / "p"), "--references", str(path), "--output", str(tmp_path / "o")]
    assert run_command(evaluate, options) == 0
    summary = metrics(tmp_path)["summary"]
    assert {name: summary[name]["mean"] for name in scored} == dict.fromkeys(scored, 1.0)
    assert set(summary) - {"mean"} == scored
    assert metrics(tmp_path)["cases"]["one"]["WT"]["reference_voxels"] == 3 * 48
    said = [r.getMessage() for r in caplog.records if "not scored" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("NET is" if "NET" in targets else "RC is")


def test_half_of_what_the_references_call_one_is_no_score(tmp_path: Path) -> None:
    """A model of classes that tells NCR from NET, on references that call both NCR: neither of the two can be scored."""
    path = brats_list(tmp_path, OLD)
    labels = {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4}
    targets = {name: [value] for name, value in labels.items() if value} | {"core": [1, 3], "rim": [3]}
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": labels, "targets": targets}))
    for case in ("one", "two"):  # half of the core is the one, half the other
        core = np.asarray(nib.load(tmp_path / f"r/{case}.nii.gz").dataobj).copy()
        core[:, :6][core[:, :6] == 1] = 3
        save(tmp_path / f"p/{case}.nii.gz", core)
    options = ["--predictions", str(tmp_path / "p"), "--references", str(path), "--output", str(tmp_path / "o")]
    assert run_command(evaluate, options) == 0
    summary = metrics(tmp_path)["summary"]
    assert {name: row["mean"] for name, row in summary.items()} == {"ED": 1.0, "ET": 1.0, "core": 1.0, "mean": 1.0}


def test_references_of_another_kind_are_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = brats_list(tmp_path, {"background": 0, "GTV": 1})
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": {"background": 0, "RC": 1}, "targets": {"RC": [1]}}))
    options = ["--predictions", str(tmp_path / "p"), "--references", str(path), "--output", str(tmp_path / "o")]
    assert run_command(evaluate, options) == 65
    assert "E_LABEL" in capsys.readouterr().err
    path = brats_list(tmp_path, {"background": 0, "RC": 1})
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": NEW, "targets": NEW_TARGETS}))
    assert run_command(evaluate, options) == 65
    assert "no label that the model knows" in capsys.readouterr().err


def test_a_model_without_net_counts_it_to_the_core(tmp_path: Path) -> None:
    path = brats_list(tmp_path, {"background": 0, "NCR": 1, "ED": 2, "NET": 3, "ET": 4})
    for case in ("one", "two"):  # the model of 2021 calls both parts 1
        core = np.asarray(nib.load(tmp_path / f"r/{case}.nii.gz").dataobj)
        save(tmp_path / f"p/{case}.nii.gz", np.where(core == 3, 1, core).astype(np.uint8))
    (tmp_path / "p/run.json").write_text(json.dumps({"labels": OLD, "targets": OLD_TARGETS}))
    options = ["--predictions", str(tmp_path / "p"), "--references", str(path), "--output", str(tmp_path / "o")]
    assert run_command(evaluate, options) == 0
    assert [metrics(tmp_path)["summary"][name]["mean"] for name in OLD_TARGETS] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("labels", ["x=²", "x=", "x=1,", "=1", "x=1 2", "ball=2", "x=123456"])
def test_labels_that_are_no_labels(tmp_path: Path, labels: str) -> None:
    assert run(tmp_path, {"found": (cube(4), cube(4))}, "--labels", labels) == 64
    assert not (tmp_path / "o").exists()


def test_a_target_that_is_nowhere_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(tmp_path, {"found": (cube(4), cube(4))}, "--labels", "rim=30") == 0
    assert "rim is in no reference and no prediction (label 30)" in [r.getMessage() for r in caplog.records]


def test_a_report_does_not_overwrite_what_infer_wrote(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/failures.json").write_text("[]")
    assert run(tmp_path, {"found": (cube(4), cube(4))}, "--output", str(tmp_path / "p")) == 64
    assert (tmp_path / "p/failures.json").read_text() == "[]"


def test_references_as_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label maps in folders of their own are found as init finds them; where there are none, it is said."""
    save(tmp_path / "download/c1/c1_seg.nii.gz", cube(4), SPACING)
    assert run(tmp_path, {"c1": (cube(4), cube(4))}, "--references", str(tmp_path / "download")) == 0
    assert metrics(tmp_path)["cases"]["c1"]["ball"]["dice"] == 1.0
    (tmp_path / "download/c1/c1_seg.nii.gz").rename(tmp_path / "download/c1/c1_ct.nii.gz")
    assert run(tmp_path, {"c1": (cube(4), cube(4))}, "--references", str(tmp_path / "download")) == 65
    assert "case list" in capsys.readouterr().err


def test_a_table_of_references_leads_to_a_case_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cases.csv").write_text("id,seg\na,r/a.nii.gz\n")
    assert run(tmp_path, {"a": (cube(4), cube(4))}, "--references", str(tmp_path / "cases.csv")) == 65
    assert "cmt-med init TABLE.csv" in capsys.readouterr().err


def test_references_are_held_against_the_sums_of_their_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores and pictures of a reference that was replaced since would be those of another one."""
    save(tmp_path / "p/x.nii.gz", cube(4), SPACING)
    save(tmp_path / "p/y.nii.gz", cube(4), SPACING)
    listed = []
    for name in "xy":
        save(tmp_path / f"{name}_image.nii.gz", cube(4).astype(np.float32), SPACING)
        save(tmp_path / f"{name}_label.nii.gz", cube(4), SPACING)
        sums = {file: volume_sum(tmp_path / file) for file in (f"{name}_image.nii.gz", f"{name}_label.nii.gz")}
        listed.append({"id": name, "image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz", "sha256": sums})
    labels = {"0": "background", "1": "ball"}
    (tmp_path / "list.json").write_text(json.dumps({"modality": {"0": "a"}, "labels": labels, "training": listed}))
    base = ["--predictions", str(tmp_path / "p"), "--references", str(tmp_path / "list.json"), "--labels", "ball=1"]
    assert run_command(evaluate, [*base, "--output", str(tmp_path / "o")]) == 0
    assert len(metrics(tmp_path)["cases"]) == 2
    save(tmp_path / "y_label.nii.gz", cube(6), SPACING)
    assert run_command(evaluate, [*base, "--output", str(tmp_path / "o2")]) == 2
    failures = json.loads((tmp_path / "o2/failures.json").read_text())
    assert [(failure["case"], failure["code"]) for failure in failures] == [("y", "E_HASH")]
    shown = {case.name: case for case in find_source(tmp_path / "o").listing.cases}  # of the first report
    load_shown(shown["x"], {"ball": [1]}, {"ball": [1]})
    with pytest.raises(DataError, match="E_HASH"):
        load_shown(shown["y"], {"ball": [1]}, {"ball": [1]})
    capsys.readouterr()


@pytest.mark.fault(30)
@pytest.mark.parametrize("convention", ["brats2021", ""])
def test_the_rule_of_the_challenge_is_for_its_data_alone(
    tmp_path: Path, convention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missed membrane is not 373.13 mm away; nor does a paragraph on that end a table where nothing is empty."""
    label = {"brats2021": "ET", "": "membrane"}[convention]
    for name, predicted, reference in (("found", cube(5), cube(4)), ("missed", cube(None), cube(4))):
        save(tmp_path / f"p/{name}.nii.gz", predicted * np.uint8(4), SPACING)
        save(tmp_path / f"r/{name}.nii.gz", reference * np.uint8(4), SPACING)
    run_json = {"labels": {"background": 0, label: 4}, "targets": {label: [4]}, "convention": convention}
    (tmp_path / "p/run.json").write_text(json.dumps(run_json))
    base = ["--references", str(tmp_path / "r"), "--output", str(tmp_path / "o"), "--predictions", str(tmp_path / "p")]
    assert run_command(evaluate, base) == 0
    penalty = 373.13 if convention else np.hypot(32, np.hypot(16, 16))
    assert metrics(tmp_path)["cases"]["missed"][label]["hd95"] == pytest.approx(penalty)
    assert metrics(tmp_path)["empty_rule"] == ("challenge" if convention else "diagonal")
    said = capsys.readouterr().out
    assert ("373.13" in said) == bool(convention)
    assert "\nrule " in said
    for folder in "pr":
        (tmp_path / folder / "missed.nii.gz").unlink()
    assert run_command(evaluate, base) == 0
    assert "\nrule " not in capsys.readouterr().out


def numbered(pairs: dict[str, tuple[list[int], list[int]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions and references with a slab of each value, at places that go by the values' order."""

    def volume(values: list[int]) -> np.ndarray:
        made = np.zeros((16, 16, 16), np.uint8)
        for place, value in enumerate(values):
            made[2 + 4 * place : 5 + 4 * place, 4:8, 4:8] = value
        return made

    return {case: (volume(predicted), volume(reference)) for case, (predicted, reference) in pairs.items()}


@pytest.mark.fault(11)
def test_predictions_under_another_number_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ET is 4 in the references and 3 in what is scored: its Dice was 0, and nothing said why."""
    pairs = numbered({"a": ([1, 2, 3], [1, 2, 4]), "b": ([1, 2, 3], [1, 2, 4])})
    assert run(tmp_path, pairs, "--labels", "ET=4") == 65
    said = capsys.readouterr().err
    assert "[E_LABEL]" in said
    assert "the file has 0, 1, 2, 3" in said
    assert "--labels" in said
    assert not (tmp_path / "o/metrics.json").exists()


@pytest.mark.fault(11)
def test_only_cases_with_a_strange_number_fail(tmp_path: Path) -> None:
    pairs = numbered({"a": ([1, 2, 3], [1, 2, 4]), "b": ([1, 2, 4], [1, 2, 4])})
    assert run(tmp_path, pairs, "--labels", "ET=4") == 2
    (failure,) = metrics(tmp_path)["failures"]
    assert (failure["case"], failure["code"]) == ("a", "E_LABEL")
    assert metrics(tmp_path)["cases"]["b"]["ET"]["dice"] == 1


@pytest.mark.fault(11)
def test_a_part_of_the_labels_can_be_scored(tmp_path: Path) -> None:
    """Organs 2 and 3 are in predictions and references, though 3 is not in every reference that has it predicted."""
    pairs = numbered({"a": ([1, 2, 3], [1, 2]), "b": ([1, 2, 3], [1, 2, 3])})
    assert run(tmp_path, pairs) == 0
    assert metrics(tmp_path)["summary"]["ball"]["mean"] == 1
