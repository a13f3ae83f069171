"""Boxes of cases: from files, around objects and parts of labels, on other grids, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_med.base.boxes import Boxes, iou
from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.box_files import listed_boxes
from cmt_med.data.volumes.boxes import boxes_key, load_boxes, on_grid
from cmt_med.data.volumes.grid import Grid
from tests.helpers import save

LABELS = {"background": 0, "cell": 1, "dust": 2}
GRID = Grid((20, 16, 1), np.eye(4))


def case(folder: Path, text: str, name: str = "x.xml") -> Case:
    (folder / name).write_text(text)
    return Case("c", {"image": (folder / "x.png", None)}, boxes=folder / name)


def voc(*objects: tuple[str, int, int, int, int], difficult: int = 0) -> str:
    parts = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>" for name, a, b, c, d in objects
    )  # fmt: skip
    return f"<annotation>{parts}</annotation>"


def test_voc_counts_from_one_and_includes_the_last(tmp_path: Path) -> None:
    found = load_boxes(case(tmp_path, voc(("cell", 1, 1, 20, 16), ("Dust", 5, 6, 5, 6))), LABELS, GRID)
    assert found.low.tolist() == [[0, 0, 0], [4, 5, 0]]
    assert found.high.tolist() == [[20, 16, 1], [5, 6, 1]]  # the whole image, and one pixel
    assert found.classes.tolist() == [1, 2]
    assert not found.ignored.any()
    assert load_boxes(case(tmp_path, voc(("cell", 2, 2, 4, 4), difficult=1), "y.xml"), LABELS, GRID).ignored.all()
    cut = load_boxes(case(tmp_path, voc(("cell", 0, 0, 21, 16)), "z.xml"), LABELS, GRID)  # counted from 0 by some tools
    assert (cut.low.tolist(), cut.high.tolist()) == ([[0, 0, 0]], [[20, 16, 1]])


@pytest.mark.parametrize(
    ("text", "name", "code", "said"),
    [
        (voc(("cell", 22, 3, 30, 5)), "x.xml", "E_LABEL", "sticks out"),
        (voc(("cell", 9, 3, 4, 5)), "x.xml", "E_LABEL", "before it"),
        (voc(("cell", 5, 3, 4, 5)), "x.xml", "E_LABEL", "is empty"),
        (voc(("other", 1, 3, 4, 5)), "x.xml", "E_LABEL", "unknown class"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "x.xml", "E_MANIFEST", "entities"),
        ('{"boxes": [{"class": "cell", "low": [1, 2]}]}', "x.json", "E_MANIFEST", "no low and high"),
        ('{"boxes": [{"class": "cell", "low": [1, 2], "high": [3, NaN]}]}', "x.json", "E_MANIFEST", "no number"),
        ("[1]", "x.json", "E_MANIFEST", "neither the list boxes"), ("a;b\n1;2", "x.csv", "E_MANIFEST", "its columns are a, b"),
        ("class,xmin,ymin,xmax,ymax\ncell,1,1,2,2", "x.csv", "E_MANIFEST", "which image"),
        ("image,xmin,ymin,xmax,ymax\nx.png,1,1,2,x", "x.csv", "E_MANIFEST", "line 2: ymax"),
        ("image,class,xmin,ymin,xmax,ymax\nx.png, ,1,1,2,2", "x.csv", "E_MANIFEST", "line 2 names no class"),
        ("image,xmin,ymin,xmax,ymax\n,1,1,2,2", "x.csv", "E_MANIFEST", "line 2 names no image"),
        ("", "x.txt", "E_MANIFEST", "ending"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, name: str, code: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        load_boxes(case(tmp_path, text, name), LABELS, GRID)
    assert raised.value.code == code
    assert said in raised.value.message()


def test_own_files_and_tables(tmp_path: Path) -> None:
    own = json.dumps({"boxes": [{"class": "dust", "low": [1.5, 2], "high": [4, 5.25], "score": 0.25, "ignored": True}]})
    found = load_boxes(case(tmp_path, own, "x.boxes.json"), LABELS, GRID)
    assert (found.low.tolist(), found.scores.tolist(), found.ignored.tolist()) == ([[1.5, 2, 0]], [0.25], [True])
    rows = "image,x,y,width,height,label\nx.png,1,2,3,4,cell\nother.png,0,0,1,1,dust\nx,5,5,1,1,dust"
    boxes = case(tmp_path, rows, "t.csv")
    assert [(box.class_name, box.low, box.high) for box in listed_boxes(tmp_path / "t.csv", Path("x.png"))] == [
        ("cell", (1.0, 2.0), (4.0, 6.0))
    ]
    first = boxes_key(boxes)
    (tmp_path / "t.csv").write_text(rows.replace("other.png,0,0,1,1", "other.png,0,0,2,1"))
    assert boxes_key(boxes) == first  # of another image
    (tmp_path / "t.csv").write_text(rows.replace("x.png,1,2,3,4", "x.png,1,2,3,5"))
    assert boxes_key(boxes) != first
    with pytest.raises(DataError, match="two axes"):
        load_boxes(case(tmp_path, voc(("cell", 1, 1, 4, 4))), LABELS, Grid((20, 16, 3), np.eye(4)))


def test_parts_of_labels_and_objects(tmp_path: Path) -> None:
    label = np.zeros((12, 10, 8), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    label[3:5, 3:5, 3:4] = 1  # they touch at a corner: one part
    label[8:9, 8:9, 5:6] = 1
    label[6:9, 2:4, 2:6] = 2
    numbers = np.uint16(label > 0) * 700
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    grid = Grid(label.shape, affine)
    save(tmp_path / "l.nii.gz", label, affine)
    save(tmp_path / "n.nii.gz", numbers, affine)
    one = Case("c", {"image": (tmp_path / "i.nii.gz", None)}, label=tmp_path / "l.nii.gz")
    found = load_boxes(one, LABELS, grid)
    assert sorted(zip(found.classes.tolist(), found.low.tolist(), found.high.tolist(), strict=True)) == [
        (1, [1, 1, 1], [5, 5, 4]), (1, [8, 8, 5], [9, 9, 6]), (2, [6, 2, 2], [9, 4, 6]),
    ]  # fmt: skip
    assert load_boxes(one, LABELS, grid, min_component_mm3=2.5).classes.tolist() == [1, 2]  # of one voxel, 2 mm³
    objects = Case("c", one.images, label=one.label, instances=tmp_path / "n.nii.gz")
    found = load_boxes(objects, {"background": 0, "object": 1}, grid)
    assert (found.low.tolist(), found.high.tolist()) == ([[1, 1, 1]], [[9, 9, 6]])
    with pytest.raises(DataError, match="no boxes"):
        load_boxes(Case("c", one.images), LABELS, grid)


@settings(max_examples=50, deadline=None)
@given(
    order=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3), seed=st.integers(0, 10_000),
    scale=st.floats(0.3, 3.0),
)  # fmt: skip
def test_a_box_is_the_same_place_on_another_grid(
    order: list[int], flips: tuple[bool, ...], seed: int, scale: float
) -> None:
    """Corners in mm by the matrix of either grid; and back."""
    rng = np.random.default_rng(seed)
    source = np.diag([*rng.uniform(0.5, 3, 3), 1.0])
    source[:3, 3] = rng.uniform(-50, 50, 3)
    turn = np.zeros((4, 4))
    for axis, other in enumerate(order):
        turn[other, axis] = (-1 if flips[axis] else 1) * scale
    turn[3, 3] = 1
    target = source @ turn
    target[:3, 3] += rng.uniform(-20, 20, 3)
    low = rng.uniform(0, 20, (3, 3))
    boxes = Boxes.of(low, low + rng.uniform(1, 8, (3, 3)), [1, 2, 1])
    moved = on_grid(boxes, source, target)
    for number in range(3):
        ours, theirs = (
            np.array(
                [
                    matrix @ [*(np.array(corner) - 0.5), 1]
                    for corner in itertools.product(*zip(b.low[number], b.high[number], strict=True))
                ]
            )
            for b, matrix in ((boxes, source), (moved, target))
        )
        np.testing.assert_allclose(ours.min(0), theirs.min(0), atol=1e-8)
        np.testing.assert_allclose(ours.max(0), theirs.max(0), atol=1e-8)
    back = on_grid(moved, target, source)
    np.testing.assert_allclose(np.diag(iou(boxes, back)), 1, atol=1e-9)
