"""Sets of boxes are told as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.sources import find_dataset
from cmt_med.data.volumes.box_files import listed_boxes
from cmt_med.runs.recognition import data_set

VOC = "<annotation><filename>x.png</filename>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax></bndbox></object>"


def grey(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10)).save(path)


def test_voc(tmp_path: Path) -> None:
    for i in range(2):
        grey(tmp_path / f"set/JPEGImages/{i}.png")
        (tmp_path / "set/Annotations").mkdir(exist_ok=True)
        (tmp_path / f"set/Annotations/{i}.xml").write_text(
            VOC.format(OBJECT.format("cell") * 2 + OBJECT.format("dust") * i)
        )
    found = find_dataset(tmp_path / "set")
    assert found.boxes == {"cell": 4, "dust": 1}
    assert [case.name for case in found.cases] == ["0", "1"]
    manifest = data_set(tmp_path / "set")
    assert manifest.labels == {"background": 0, "cell": 1, "dust": 2}
    assert [case.boxes for case in manifest.cases] == [tmp_path / f"set/Annotations/{i}.xml" for i in range(2)]
    (tmp_path / "set/Annotations/1.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    (tmp_path / "set/Annotations/gone.xml").write_text(VOC.format(OBJECT.format("cell")))
    found = find_dataset(tmp_path / "set")
    assert [case.name for case in found.cases] == ["0"]  # of the others, each says why
    assert [(problem.case, problem.code) for problem in found.problems] == [("1", "E_MANIFEST"), ("gone", "E_MANIFEST")]
    assert "entities" in found.problems[0].message()
    assert "the image of its name is not there" in found.problems[1].message()
    assert found.boxes == {"cell": 2}  # of images that are there


def test_an_empty_folder_of_annotations(tmp_path: Path) -> None:
    grey(tmp_path / "set/JPEGImages/a.png")
    (tmp_path / "set/Annotations").mkdir()
    with pytest.raises(DataError, match="cannot be used") as raised:
        find_dataset(tmp_path / "set")
    assert "no file of boxes" in raised.value.why


def test_a_class_of_one_box_is_noted(tmp_path: Path) -> None:
    grey(tmp_path / "set/JPEGImages/a.png")
    (tmp_path / "set/Annotations").mkdir()
    many = OBJECT.format("cell") * 30
    for objects, noted in ((many, False), (many + OBJECT.format("cel"), True)):
        (tmp_path / "set/Annotations/a.xml").write_text(VOC.format(objects))
        assert any("of cel there is one box" in note for note in find_dataset(tmp_path / "set").notes) == noted


@pytest.mark.data
def test_blood_cells(real_data: Path) -> None:
    found = find_dataset(real_data / "blood_cells")
    assert found.boxes == {"RBC": 3350, "WBC": 301, "Platelets": 292}
    assert len(found.cases) == 292


def test_images_of_a_table_go_by_their_whole_names(tmp_path: Path) -> None:
    """Dots belong to a name; of two images of one name, nobody knows whose the boxes are: both are left out."""
    for name in ("scan.1.png", "scan.2.png", "a/same.png", "b/same.png"):
        grey(tmp_path / f"set/{name}")
    lines = ["image,class,xmin,ymin,xmax,ymax", "scan.1,cell,1,1,3,4", "scan,dust,0,0,2,2", "same.png,cell,1,1,2,2"]
    (tmp_path / "set/boxes.csv").write_text("\n".join(lines))
    found = find_dataset(tmp_path / "set")
    assert [case.name for case in found.cases] == ["scan.1", "scan.2"]
    first, second = (listed_boxes(tmp_path / "set/boxes.csv", next(iter(c.images.values()))[0]) for c in found.cases)
    assert ([box.class_name for box in first], second) == (["cell"], [])
    assert sorted(problem.case for problem in found.problems) == ["same", "scan"]
