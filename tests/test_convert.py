"""Data sets in the layouts of others: what is written is read again as the same cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.convert import convert
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import load_case
from cmt_med.launch.command import run_command
from cmt_med.runs.recognition import data_set
from tests.helpers import save


def original(folder: Path, values: tuple[int, ...] = (0, 1, 4), ending: str = ".nii.gz") -> Path:
    """Two patients, one with two scans, two channels, labels with a gap, on an oblique grid."""
    rng, entries = np.random.default_rng(0), []
    affine = np.array([[0.0, -1.5, 0.1, 5.0], [1.2, 0.0, 0.0, -3.0], [0.0, 0.15, 2.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    for i, patient in enumerate(("a", "a", "b")):
        for channel in ("t1", "flair"):
            save(folder / f"{i}_{channel}{ending}", rng.normal(size=(7, 6, 5)).astype(np.float32), affine)
        save(folder / f"{i}_seg{ending}", rng.choice(values, (7, 6, 5)).astype(np.uint8), affine)
        entries.append({"id": f"case_{i}", "group": patient, "fold": i % 2 if patient == "b" else 1, "label": f"{i}_seg{ending}",
                        "image": {"t1": f"{i}_t1{ending}", "flair": f"{i}_flair{ending}"}})  # fmt: skip
    labels = dict(zip(map(str, values), ("background", "edge", "core"), strict=True))
    content = {"modality": {"0": "t1", "1": "flair"}, "labels": labels, "training": entries}
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def arrays(path: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images, label maps as ranks of their values, and affines, of the cases in the order of their names."""
    found = data_set(path)
    ranks = {value: i for i, value in enumerate(sorted(found.labels.values()))}
    result = []
    for case in sorted(found.cases, key=lambda case: case.name):
        loaded = load_case(case, ["t1", "flair"], list(found.labels.values()), need_label=True)
        assert loaded.label is not None
        result.append((loaded.image, np.vectorize(ranks.get)(loaded.label), loaded.grid.affine))
    return result


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("to", ["nnunet", "msd", "bids"])
def test_there_and_back(tmp_path: Path, to: str, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = original(tmp_path / "d", ending=ending), tmp_path / "out"
    words = [str(source), "--to", to, "--output", str(output)]
    assert run_command(convert, words) == 0
    assert "3 cases written" in capsys.readouterr().out
    for mine, theirs in zip(arrays(output), arrays(source), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert np.allclose(one, other, rtol=0, atol=1e-6)
    found = data_set(output)
    assert sorted(found.labels)[1:] == ["core", "edge"]
    if to == "bids":
        assert [case.group for case in found.cases] == ["sub-a", "sub-a", "sub-b"]
    if to == "nnunet":
        assert [case.fold for case in found.cases] == [1, 1, 0]
        assert json.loads((output / "dataset.json").read_text())["labels"] == {"background": 0, "edge": 1, "core": 2}
    before = sorted(output.rglob("*"))
    assert run_command(convert, words) == 73
    assert sorted(output.rglob("*")) == before


def test_regions_are_lists(tmp_path: Path) -> None:
    source = original(tmp_path / "d")
    regions = [
        {"name": "whole", "labels": ["edge", "core"], "write": "edge"},
        {"name": "core", "labels": ["core"], "write": "core"},
    ]
    source.write_text(json.dumps(json.loads(source.read_text()) | {"regions": regions}))
    assert run_command(convert, [str(source), "--to", "nnunet", "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 2}
    assert content["regions_class_order"] == [1, 2]
    assert load_manifest(tmp_path / "out").regions is not None


@pytest.mark.parametrize(("to", "value"), [("nnunet", 2), ("msd", 7)])
def test_what_nobody_has_annotated(tmp_path: Path, to: str, value: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels 0 and 4 with 7 to be ignored: nnU-Net has 0, 1 and 2, of which the highest is ignored."""
    source = original(tmp_path / "d", values=(0, 4, 7))
    content = json.loads(source.read_text())
    source.write_text(json.dumps(content | {"labels": {"0": "background", "4": "edge"}, "ignore": 7}))
    words = [str(source), "--to", to, "--output", str(tmp_path / "out")]
    assert run_command(convert, words) == 0
    found, before = data_set(tmp_path / "out"), data_set(source)
    assert found.ignore == value
    assert list(found.labels) == ["background", "edge"]
    for one, other in zip(found.cases, before.cases, strict=True):
        new = load_case(one, ["t1"], [*found.labels.values(), value], need_label=True).label
        old = load_case(other, ["t1"], [0, 4, 7], need_label=True).label
        assert new is not None
        assert old is not None
        assert np.array_equal(new == value, old == 7)
        assert np.array_equal(new == found.labels["edge"], old == 4)
    assert run_command(convert, [str(source), "--to", "bids", "--output", str(tmp_path / "b")]) == 65
    assert "BIDS has no value" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_labels_that_a_case_does_not_annotate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layout that cannot say it would call them background."""
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    content["training"][1]["annotated"] = ["core"]
    source.write_text(json.dumps(content))
    for to in ("nnunet", "bids"):
        assert run_command(convert, [str(source), "--to", to, "--output", str(tmp_path / to)]) == 65
        assert "annotate some labels alone" in capsys.readouterr().err
        assert not (tmp_path / to).exists()
    assert run_command(convert, [str(source), "--to", "msd", "--output", str(tmp_path / "msd")]) == 0
    assert [case.annotated for case in data_set(tmp_path / "msd").cases] == [None, (4,), None]


def test_a_channel_that_a_case_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = original(tmp_path / "d")
    content = json.loads(source.read_text())
    del content["training"][1]["image"]["flair"]
    source.write_text(json.dumps(content))
    for to in ("nnunet", "msd", "bids"):
        assert run_command(convert, [str(source), "--to", to, "--output", str(tmp_path / to)]) == 65
        assert "[E_CHANNEL] channel flair is missing" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [False, True])
def test_pictures(tmp_path: Path, *, colour: bool) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        for folder, array in (
            ("images", rng.integers(0, 255, (9, 8, 3) if colour else (9, 8))),
            ("masks", rng.integers(0, 2, (9, 8)) * 255),
        ):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(
                tmp_path / "d" / folder / f"p{i}.{'tif' if folder == 'images' else 'png'}"
            )
    assert run_command(convert, [str(tmp_path / "d"), "--to", "nnunet", "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["file_ending"] == ".png"
    assert content["channel_names"] == ({"0": "R", "1": "G", "2": "B"} if colour else {"0": "image"})
    with Image.open(tmp_path / "d/images/p1.tif") as mine, Image.open(tmp_path / "out/imagesTr/p1_0000.png") as theirs:
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))
    with Image.open(tmp_path / "d/masks/p1.png") as mine, Image.open(tmp_path / "out/labelsTr/p1.png") as theirs:
        assert np.array_equal(np.asarray(mine) > 0, np.asarray(theirs) == 1)
    if not colour:  # shades of grey that are saved in colour are one channel of nnU-Net's all the same
        for i in range(3):
            with Image.open(tmp_path / f"d/images/p{i}.tif") as grey:
                grey.convert("RGB").save(tmp_path / f"d/images/p{i}.png")
            (tmp_path / f"d/images/p{i}.tif").unlink()
        assert run_command(convert, [str(tmp_path / "d"), "--to", "nnunet", "--output", str(tmp_path / "again")]) == 0
        with Image.open(tmp_path / "again/imagesTr/p1_0000.png") as theirs:
            assert theirs.mode == "L"
    assert run_command(convert, [str(tmp_path / "d"), "--to", "msd", "--output", str(tmp_path / "no")]) == 65
    assert not (tmp_path / "no").exists()


@pytest.mark.data
def test_volumes_of_one_channel(real_data: Path, tmp_path: Path) -> None:
    """Whose sequence nobody names: the label map is found beside it all the same."""
    whole = json.loads((real_data / "hippocampus/dataset.json").read_text())
    few = [
        {k: str(real_data.absolute() / "hippocampus" / v) for k, v in entry.items()} for entry in whole["training"][:3]
    ]
    (tmp_path / "list.json").write_text(json.dumps(whole | {"training": few, "test": []}))
    for to in ("nnunet", "msd", "bids"):
        assert run_command(convert, [str(tmp_path / "list.json"), "--to", to, "--output", str(tmp_path / to)]) == 0
        found = data_set(tmp_path / to)
        assert len(found.cases) == 3
        assert all(case.label is not None for case in found.cases)
        assert found.labels == {"background": 0, "anterior": 1, "posterior": 2}


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = original(tmp_path / "d")
    output = ["--output", str(tmp_path / "out")]
    assert run_command(convert, [str(source), "--to", "coco", *output]) == 64
    assert "nnunet, msd, bids" in capsys.readouterr().err
    (tmp_path / "d/1_seg.nii.gz").write_bytes(b"")
    assert run_command(convert, [str(source), "--to", "nnunet", *output]) == 65
    assert not (tmp_path / "out").exists()
