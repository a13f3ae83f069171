"""``compare`` on reports of three methods, of folds and seeds, of one against itself, and on what cannot be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage, stats

from cmt_med.compare import compare
from cmt_med.evaluate import evaluate
from cmt_med.evaluation.metrics import case_metrics
from cmt_med.evaluation.overlap import EmptyRule
from cmt_med.evaluation.summary import bootstrap_interval
from cmt_med.launch.command import run_command
from cmt_med.reports.scores import write_metrics
from tests.evaluation.masks import ball
from tests.helpers import save

TARGETS = {"core": [1], "whole": [1, 2]}
SHAPE = (20, 20, 20)
CASES = tuple(range(16))


def label_map(radii: tuple[float, float], centre: Sequence[float]) -> np.ndarray:
    return np.where(ball(SHAPE, centre, radii[0]), 1, np.where(ball(SHAPE, centre, radii[1]), 2, 0)).astype(np.uint8)


def report(
    folder: Path, error: float, *, seed: int = 0, cases: Sequence[int] = CASES, rule: EmptyRule = "challenge",
    targets: dict[str, list[int]] = TARGETS, grow: float = 0.0, failed: Sequence[int] = (), depth: float = 2.0,
) -> str:  # fmt: skip
    """A report of predictions that are off by about ``error`` voxels; the references depend on the case alone."""
    scored = {}
    for case in cases:
        truth, noise = np.random.default_rng(case), np.random.default_rng([seed, case])
        radii = (truth.uniform(3, 4) + grow, truth.uniform(6, 8))
        centre = truth.uniform(9, 11, 3)
        off = centre + error * (1 + 0.3 * noise.uniform(-1, 1)) * np.array([1, 0, 0])
        pair = label_map((radii[0] + noise.uniform(-0.3, 0.3), radii[1]), off), label_map(radii, centre)
        scored[f"case{case:02d}"] = case_metrics(*pair, targets, spacing=(1, 1, depth), rule=rule)
    failures = [{"case": f"case{case:02d}", "code": "E_GRID", "what": ""} for case in failed]
    write_metrics(folder, scored, targets, rule=rule, failures=failures, extra={"notice": ""})
    return str(folder)


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert run_command(compare, [*arguments, "--output", str(tmp_path / "c")]) == 0
    return json.loads((tmp_path / "c/compare.json").read_text())


def dice(folder: str, target: str) -> np.ndarray:
    cases = json.loads((Path(folder) / "metrics.json").read_text())["cases"]
    return np.array([cases[case][target]["dice"] for case in sorted(cases)])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("three")
    return {
        "good": report(folder / "good", 0.3, seed=1),
        "fair": report(folder / "fair", 1.5, seed=2),
        "poor": report(folder / "poor/report", 3.0, seed=3),
    }


def test_three_reports(three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(tmp_path, *three.values())
    out = capsys.readouterr().out
    assert "Wilcoxon" in out
    assert [r["name"] for r in content["reports"]] == ["good", "fair", "poor"]
    assert len(content["tests"]) == 3 * len(TARGETS)
    for test in content["tests"]:
        a, b = (dice(three[test[side]], test["target"]) for side in ("first", "second"))
        assert test["p"] == float(stats.wilcoxon(a, b).pvalue)
        assert test["mean"] == pytest.approx((a - b).mean())
        assert (test["n"], test["winner"]) == (16, "first")
    ordered = sorted(content["tests"], key=lambda t: t["p"])
    assert ordered[0]["p_holm"] == pytest.approx(6 * ordered[0]["p"])
    over = {row["report"]: row for row in content["standings"] if row["target"] == "mean over targets"}
    assert [over[name]["rank"] for name in ("good", "fair", "poor")] == [1, 2, 3]
    assert over["good"]["first"] == 1
    assert set(content["cases"]) == {f"case{i:02d}" for i in CASES}


def test_distances_win_when_they_are_small(three: dict[str, str], tmp_path: Path) -> None:
    content = run(tmp_path, three["poor"], three["good"], "--metric", "hd95")
    assert {test["winner"] for test in content["tests"]} == {"second"}
    assert all(test["mean"] > 0 for test in content["tests"])
    assert content["metric"]["better"] == "lower"


def test_a_report_against_itself(three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(tmp_path, three["good"], three["good"])
    assert [r["name"] for r in content["reports"]] == ["good", "good (2)"]
    for test in content["tests"]:
        assert (test["p"], test["p_holm"], test["winner"], test["ties"]) == (1, 1, "", 16)
        assert (test["mean"], test["low"], test["high"]) == (0, 0, 0)
    assert all(row["first"] == 0.5 for row in content["standings"])
    assert "no case differs (p = 1 by convention)" in capsys.readouterr().out


def test_folds_are_put_together(three: dict[str, str], tmp_path: Path) -> None:
    folds = [report(tmp_path / f"fold{k}", 0.3, seed=1, cases=CASES[k::3]) for k in range(3)]
    content = run(tmp_path, "folds=" + ",".join(folds), three["good"], three["fair"])
    assert (content["reports"][0]["pooled"], content["reports"][0]["cases"]) == ("folds", 16)
    for test in content["tests"]:
        if test["second"] == "good":
            assert (test["ties"], test["p"]) == (16, 1)
        else:
            assert (test["n"], test["winner"]) == (16, "first")


def test_seeds_are_averaged_never_counted_as_cases(
    three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [report(tmp_path / f"seed{k}", 1.5, seed=10 + k) for k in range(3)]
    content = run(tmp_path, "ours=" + ",".join(seeds), three["fair"])
    assert (content["reports"][0]["pooled"], content["reports"][0]["cases"]) == ("seeds", 16)
    for test in content["tests"]:
        a = np.mean([dice(folder, test["target"]) for folder in seeds], axis=0)
        b = dice(three["fair"], test["target"])
        assert test["n"] == 16
        assert test["p"] == pytest.approx(float(stats.wilcoxon(a, b).pvalue))
        assert test["mean"] == pytest.approx((a - b).mean())
        means = [float(dice(folder, test["target"]).mean()) for folder in seeds]
        found = content["reports"][0]["seeds"][test["target"]]
        assert found["means"] == pytest.approx(means)
        assert found["std"] == pytest.approx(np.std(means, ddof=1))
        row = next(r for r in content["standings"] if (r["target"], r["report"]) == (test["target"], "ours"))
        assert row["mean"] == pytest.approx(np.mean(means))
        assert (row["low"], row["high"]) == bootstrap_interval(a.tolist())
    assert content["reports"][1]["seeds"] == {}
    out = capsys.readouterr().out
    assert f"standard deviation {content['reports'][0]['seeds']['core']['std']:.4f}" in out


def test_a_folder_is_no_seed_of_itself(three: dict[str, str], tmp_path: Path) -> None:
    arguments = [f"ours={three['fair']},{three['fair']}/", three["good"]]
    assert run_command(compare, arguments) == 64


def test_a_score_that_some_folds_lack_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [report(tmp_path / f"half{k}", 1.0, cases=CASES[8 * k : 8 * k + 8]) for k in range(2)]
    content = json.loads((tmp_path / "half0/metrics.json").read_text())
    for case in content["cases"].values():
        for row in case.values():
            row["lesion_dice"] = 0.5
    (tmp_path / "half0/metrics.json").write_text(json.dumps(content))
    whole = report(tmp_path / "whole", 2.0)
    assert run_command(compare, [f"ours={halves[0]},{halves[1]}", whole, "--metric", "lesion_dice"]) == 64
    assert "has no lesion_dice of case case08" in capsys.readouterr().err


def test_folds_of_two_seeds(three: dict[str, str], tmp_path: Path) -> None:
    parts = [
        report(tmp_path / f"s{seed}f{k}", 1.5, seed=seed, cases=CASES[k::2]) for seed in (20, 21) for k in range(2)
    ]
    content = run(tmp_path, "ours=" + ",".join(parts), three["fair"])
    assert (content["reports"][0]["pooled"], content["reports"][0]["cases"]) == ("folds of seeds", 16)
    assert content["reports"][0]["seeds"] == {}  # which fold is of which seed is not known


def test_the_averages_of_seeds_tie_despite_rounding(tmp_path: Path) -> None:
    one, two, three_ = (report(tmp_path / f"{k}", 1.5, seed=30 + k) for k in range(3))
    content = run(tmp_path, f"x={one},{two},{three_}", f"y={three_},{two},{one}")
    assert all((test["ties"], test["p"]) == (16, 1) for test in content["tests"])


def refused(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(compare, arguments) == code
    message = capsys.readouterr().err
    for part in ("where:", "why:", "fix:"):
        assert part in message
    assert "Traceback" not in message
    return message


def test_other_cases_are_refused_by_name(
    three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = report(tmp_path / "fewer", 1.5, cases=CASES[:14])
    message = refused([three["good"], fewer], 65, capsys)
    assert "E_CASES" in message
    assert "case14, case15" in message
    content = run(tmp_path, three["good"], fewer, "--common")
    assert len(content["cases"]) == 14
    assert [r["left_out"] for r in content["reports"]] == [2, 0]
    assert "2 others left out (--common)" in capsys.readouterr().out
    others = report(tmp_path / "others", 1.5, cases=[90, 91])
    assert "no case in common" in refused([three["good"], others, "--common"], 65, capsys)


def test_cases_that_were_not_scored_are_said(
    three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = report(tmp_path / "fewer", 1.5, cases=CASES[:14], failed=[14])
    message = refused([three["good"], fewer], 65, capsys)
    assert "case14 (not scored: E_GRID), case15" in message
    for others in ([three["good"], "--common"], [report(tmp_path / "other", 2.0, cases=CASES[:14])]):
        content = run(tmp_path, fewer, *others)
        assert [r["failed"] for r in content["reports"]] == [{"case14": "E_GRID"}, {}]
        assert "fewer: 14 cases, 1 not scored (case14 E_GRID)" in capsys.readouterr().out
    halves = [
        report(tmp_path / f"h{k}", 1.0, cases=CASES[:14][k::2], failed=[14 + k, *CASES[:14][1 - k :: 2][:k]])
        for k in (0, 1)
    ]
    content = run(tmp_path, "ours=" + ",".join(halves), fewer)  # what one fold failed at and the other scored is scored
    assert content["reports"][0]["failed"] == {"case14": "E_GRID", "case15": "E_GRID"}


def test_names_do_not_reach_the_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title = "\x1b]0;x\x07"
    folder = report(tmp_path / f"r{title}", 1.0, targets={f"core{title}": [1]}, failed=[90])
    content = json.loads((Path(folder) / "metrics.json").read_text())
    content["failures"] = [{"case": f"c{title}", "code": title}]
    (Path(folder) / "metrics.json").write_text(json.dumps(content | {"notice": title}))
    run(tmp_path, f"a{title}={folder}", folder)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "‹U+001B›]0;x‹U+0007›" in out


def test_what_cannot_be_compared(three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = three["good"]
    rule = report(tmp_path / "rule", 1.0, rule="nan")
    targets = report(tmp_path / "targets", 1.0, targets={"core": [1]})
    references = report(tmp_path / "references", 1.0, grow=1.0)
    spacing = report(tmp_path / "spacing", 1.0, depth=1.0)
    part = report(tmp_path / "part", 1.0, cases=CASES[:3])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/metrics.json").write_text('{"schema_version": 2, "cases": [')
    old = json.loads((Path(good) / "metrics.json").read_text()) | {"schema_version": 1, "empty_rule": "nan"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/metrics.json").write_text(json.dumps(old))
    for arguments, code, expected in (
        ([good, rule], 65, "E_RULE"),
        ([good, targets], 65, "whole only in one"),
        ([good, references], 65, "E_REFERENCE"),
        ([good, spacing], 65, "E_REFERENCE"),
        ([f"x={good},{rule}", good], 65, "E_RULE"),
        ([f"x={good},{part}", good], 65, "neither folds nor seeds"),
        ([good, str(tmp_path / "absent")], 65, "no metrics.json"),
        ([good, str(tmp_path / "broken")], 65, "damaged"),
        ([good, str(tmp_path / "old")], 65, "another version"),
        ([good], 64, "two or more"),
        ([good, good, "--metric", "nsd_7mm"], 64, "has no nsd_7mm"),
        ([good, good, "--metric", "volume_error_ml"], 64, "no better side"),
        ([good, good, "--metric", "beauty"], 64, "no such score"),
        ([good, good, "--output", "/proc/none"], 73, "/proc/none"),
    ):
        assert expected in refused(arguments, code, capsys), arguments


def half_empty(folder: Path, *, invents: bool, rule: EmptyRule) -> str:
    """A report of 20 cases, 10 without anything in the reference; the others are found, every second one moved."""
    nothing, there = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    there[3:7, 3:7, 3:7] = 1
    pairs = [(there if invents else nothing, nothing)] * 10 + [(there, there), (np.roll(there, 2, 0), there)] * 5
    scored = {
        f"case{i:02d}": case_metrics(*pair, {"t": [1]}, spacing=(1, 1, 1), rule=rule) for i, pair in enumerate(pairs)
    }
    write_metrics(folder, scored, {"t": [1]}, rule=rule, failures=[], extra={"notice": ""})
    return str(folder)


def test_inventions_are_never_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten inventions lose by the challenge's rule; by ``nan``, which has no difference there, nothing is compared."""
    reports = {
        (rule, invents): half_empty(tmp_path / f"{rule}{invents}", invents=invents, rule=rule)
        for rule in ("challenge", "nan", "skip")
        for invents in (False, True)
    }
    (test,) = run(tmp_path, reports["challenge", False], reports["challenge", True])["tests"]
    assert (test["n"], test["n_undefined"], test["mean"], test["winner"]) == (20, 0, 0.5, "first")
    clean, invents = reports["nan", False], reports["nan", True]
    for metric in ("dice", "iou", "precision", "nsd_1mm"):
        message = refused([clean, invents, "--metric", metric], 65, capsys)
        assert f"[E_UNDEFINED] {metric} of t" in message
        assert f"case case00: {invents} has it, {clean} does not" in message
    # what neither defines without a reference is left out, and said
    for metric, pair in (("hd95", (clean, invents)), ("dice", (reports["skip", False], reports["skip", True]))):
        capsys.readouterr()
        content = run(tmp_path, *pair, "--metric", metric)
        assert [(row["n"], row["n_undefined"]) for row in content["tests"] + content["standings"]] == [(10, 10)] * 3
        assert [line.split().count("10") for line in capsys.readouterr().out.splitlines() if line.startswith("t ")] == [
            2, 2, 2
        ]  # fmt: skip


def test_seeds_that_define_other_cases_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule in ("challenge", "nan"):
        seeds = [half_empty(tmp_path / f"{rule}{k}", invents=k == 0, rule=rule) for k in range(5)]
        other = half_empty(tmp_path / f"{rule}-other", invents=True, rule=rule)
        for order in (seeds, seeds[::-1]):
            arguments = ["ours=" + ",".join(order), other]
            if rule == "challenge":
                (test,) = run(tmp_path, *arguments)["tests"]
                assert test["mean"] == pytest.approx(0.4)
            else:
                assert f"{seeds[0]} has it" in refused(arguments, 65, capsys)
                assert run(tmp_path, *arguments, "--metric", "hd95")["tests"][0]["n"] == 10


def test_few_cases_say_that_they_are_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = (report(tmp_path / n, error, cases=CASES[:4]) for n, error in (("good", 0.3), ("poor", 3.0)))
    assert run_command(compare, [good, poor]) == 0
    assert "4 differing cases are too few" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()


# ---- real references, through the real commands


def predict(folder: Path, references: dict[str, Path], damage: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """Predictions that nobody inferred: each reference, damaged in a known way."""
    for number, (case, path) in enumerate(references.items()):
        image = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        save(folder / f"{case}.nii.gz", damage(labels, number).astype(np.uint8), image.affine)


def one_voxel_off(labels: np.ndarray, number: int) -> np.ndarray:
    return np.roll(labels, 1, axis=number % 3)


def grown(labels: np.ndarray, number: int) -> np.ndarray:
    """Each label grows by a voxel in every second case, and by two in the others; the higher one wins."""
    return np.asarray(ndimage.grey_dilation(labels, footprint=ball((5, 5, 5), (2, 2, 2), 1.1 + number % 2)))


def eaten_away(labels: np.ndarray, number: int) -> np.ndarray:
    """Two layers are lost, and what is left moves by 0 to 2 voxels."""
    kept = ndimage.binary_erosion(labels > 0, iterations=2)
    return np.roll(np.where(kept, labels, 0), number % 3, axis=0)


def column(report: Path, target: str, metric: str) -> np.ndarray:
    with (report / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["target"] == target]
    return np.array([float(row[metric]) for row in sorted(rows, key=lambda row: row["case"])])


@pytest.mark.data
@pytest.mark.parametrize("metric", ["dice", "hd95"])
def test_three_reports_on_real_references(hippocampus: dict[str, Path], tmp_path: Path, metric: str) -> None:
    content = run(tmp_path, *map(str, hippocampus.values()), "--metric", metric)
    assert len(content["cases"]) == 40
    assert len(content["tests"]) == 6
    tests = {(test["target"], test["first"], test["second"]): test for test in content["tests"]}
    p_values = {}
    for (target, first, second), test in tests.items():
        a, b = (column(hippocampus[name], target, metric) for name in (first, second))
        assert len(a) == len(b) == test["n"] == 40
        p_values[target, first, second] = float(stats.wilcoxon(a, b).pvalue)
        assert test["p"] == pytest.approx(p_values[target, first, second], rel=1e-9)
        difference = a.mean() - b.mean()
        assert test["mean"] == pytest.approx(difference, rel=1e-9)
        better = "first" if (difference > 0) == (metric == "dice") else "second"
        assert test["winner"] in ("", better)
    ordered = sorted(p_values, key=lambda key: p_values[key])
    largest = 0.0
    for rank, key in enumerate(ordered):  # Holm, step by step
        largest = max(largest, min(1.0, (6 - rank) * p_values[key]))
        assert tests[key]["p_holm"] == pytest.approx(largest, rel=1e-9)
        assert (tests[key]["winner"] != "") == (largest < 0.05)
    for target in ("anterior", "posterior"):  # the mildest damage wins over both others, whatever is measured
        for other in ("grown", "eaten"):
            assert tests[target, "shifted", other]["winner"] == "first"


@pytest.mark.data
def test_a_real_report_against_itself_finds_nothing(hippocampus: dict[str, Path], tmp_path: Path) -> None:
    for metric in ("dice", "hd95", "assd", "nsd_1mm"):
        content = run(tmp_path, str(hippocampus["grown"]), str(hippocampus["grown"]), "--metric", metric)
        for test in content["tests"]:
            assert (test["p"], test["p_holm"], test["winner"], test["ties"], test["mean"]) == (1, 1, "", 40, 0)


@pytest.fixture(scope="module")
def hippocampus(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of three predictions for the first 40 references, as ``evaluate`` writes them."""
    folder = tmp_path_factory.mktemp("hippocampus")
    data = real_data / "hippocampus"
    listed = json.loads((data / "dataset.json").read_text())["training"][:40]
    references = {Path(entry["label"]).name.removesuffix(".nii.gz"): data / entry["label"] for entry in listed}
    (folder / "references").mkdir()
    for case, path in references.items():
        (folder / f"references/{case}.nii.gz").symlink_to(path)
    for name, damage in (("shifted", one_voxel_off), ("grown", grown), ("eaten", eaten_away)):
        predict(folder / f"p-{name}", references, damage)
        arguments = ["--predictions", str(folder / f"p-{name}"), "--references", str(folder / "references")]
        labels = ["--labels", "anterior=1", "--labels", "posterior=2", "--output", str(folder / name)]
        assert run_command(evaluate, [*arguments, *labels]) == 0
    return {name: folder / name for name in ("shifted", "grown", "eaten")}
