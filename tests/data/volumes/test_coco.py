"""Annotations of COCO: boxes, and masks in all their forms as pycocotools has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.coco import boxes_of, is_coco, read_coco
from cmt_med.data.volumes.instances import load_instances, load_objects, objects_key
from cmt_med.data.volumes.sums import volume_sum
from tests.data.coco_made import annotation, coco_file, compressed, picture, uncompressed

SIZE = (10, 12)  # width, height


def case(folder: Path, annotations: list[dict[str, Any]], **content: Any) -> Case:
    """A case of one image with its annotations."""
    image = picture(folder / "a.png", SIZE)
    return Case("a", {"image": (image, None)}, instances=coco_file(folder / "coco.json", annotations, **content))


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_boxes(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "train/a.png"}, {"id": 2, "file_name": "val/a.png"}
    file = coco_file(
        tmp_path / "c.json", [annotation(4), annotation(5, 2, 8, bbox=[0, 0.5, 2, 2], iscrowd=1)], images=image
    )
    assert boxes_of(file, "train/a.png") == [("cell", 1.0, 1.0, 3.0, 4.0, False)]
    assert boxes_of(file, tmp_path / "val/a.png") == [("dust", 0.0, 0.5, 2.0, 2.0, True)]
    with pytest.raises(DataError, match=r"no images called 'b\.png'"):
        boxes_of(file, "b.png")
    with pytest.raises(DataError, match="2 images"):
        boxes_of(file, "a.png")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bbox": [1, 1, -3, 4]}, "annotation 4 has the box"),
        ({"bbox": [1, float("nan"), 3, 4]}, "annotation 4 has the box"),
        ({"bbox": [1, 1, 3]}, "annotation 4 has the box"),
        ({"category_id": 9}, "annotation 4 has the category_id 9"),
        ({"image_id": 3}, "annotation 4 has the image_id 3"),
        ({"image_id": [1]}, "annotation 4 has the image_id"),
    ],
)
def test_boxes_that_are_none(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    file = coco_file(tmp_path / "c.json", [annotation(4, **wrong)])
    with pytest.raises(DataError, match=said) as raised:
        boxes_of(file, "a.png")
    assert raised.value.code == "E_MANIFEST"


@pytest.mark.parametrize(
    "content",
    [
        {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]},
        {"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]},
        {"images": [{"id": 1, "file_name": 3}]},
        {"images": [{"id": 1, "file_name": "a", "width": -1, "height": 2}]},
        {"categories": [{"name": "x"}]},
    ],
)
def test_files_that_do_not_add_up(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(DataError) as raised:
        read_coco(coco_file(tmp_path / "c.json", [], **content))
    assert raised.value.code == "E_MANIFEST"


def test_other_json_is_not_coco(tmp_path: Path) -> None:
    for content in ("{}", "[]", "{", '{"images": [], "categories": {}}', '{"images": [1], "categories": []}'):
        (tmp_path / "x.json").write_text(content)
        assert not is_coco(tmp_path / "x.json")
    assert is_coco(coco_file(tmp_path / "x.json", None))  # a list of test images


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = coco_file(tmp_path / "c.json", [annotation(4)])
    assert len(boxes_of(file, "a.png")) == 1
    coco_file(file, [])
    assert boxes_of(file, "a.png") == []


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    """Two polygons, one with a concave corner between pixels, and both kinds of run lengths: none overlaps."""
    masks = [
        [[0.5, 0.5, 4.2, 1.1, 3.0, 5.7, 0.4, 4.0], [6.0, 0.0, 9.9, 0.0, 9.9, 3.3]],
        uncompressed(block(8, 0, 3, 3)),
        compressed(block(8, 5, 4, 5)),
        uncompressed(block(6, 0, 1, 1)),
    ]
    annotations = [annotation(10 + i, segmentation=mask) for i, mask in enumerate(masks)]
    size = [{"id": 1, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]}]
    found = case(tmp_path, annotations, images=size)
    numbers, grid = load_instances(found)
    assert numbers.shape == grid.shape == (*SIZE, 1)
    theirs = COCO(str(found.instances))
    for number, one in enumerate(annotations, 1):
        np.testing.assert_array_equal(number == numbers[..., 0].T, theirs.annToMask(one) > 0)
    assert set(np.unique(numbers)) == {0, 1, 2, 3, 4}


def test_run_lengths_of_pycocotools_add_up(tmp_path: Path) -> None:
    """Of many random masks, the sums that are checked before decoding are right."""
    rng = np.random.default_rng(0)
    masks = [rng.random(SIZE[::-1]) < share for share in rng.uniform(0, 1, 40)]
    for i, mask in enumerate(masks):
        numbers, _ = load_instances(case(tmp_path / str(i), [annotation(1, segmentation=compressed(mask))]))
        np.testing.assert_array_equal(numbers[..., 0].T > 0, mask)


def test_smaller_objects_lie_on_top(tmp_path: Path) -> None:
    small, large = block(2, 2, 2, 2), block(0, 0, 6, 6)
    found = load_objects(
        case(tmp_path, [annotation(i, segmentation=compressed(m)) for i, m in ((1, small), (2, large))])
    )
    np.testing.assert_array_equal(found.numbers[..., 0].T == 1, small)
    np.testing.assert_array_equal(found.numbers[..., 0].T == 2, large & ~small)
    assert found.covered == 4


def test_crowds_are_left_out(tmp_path: Path) -> None:
    crowd = annotation(1, segmentation=compressed(block(0, 0, 6, 6)), iscrowd=1)
    numbers, _ = load_instances(case(tmp_path, [crowd, annotation(2, segmentation=compressed(block(8, 0, 2, 2)))]))
    assert set(np.unique(numbers)) == {0, 1}
    assert numbers.sum() == 4


def test_an_image_without_annotations_has_no_objects(tmp_path: Path) -> None:
    numbers, _ = load_instances(case(tmp_path, []))
    assert not numbers.any()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, "has no 'segmentation'"),
        ([[0, 0, 1, 1]], "polygon that is none"),
        ([[0, 0, 1, 1, 2, "3"]], "polygon that is none"),
        ([[0, 0, 1, 1, 2, float("inf")]], "polygon that is none"),
        ([[0, 0, 1e9, 1, 2, 2]], "far outside"),
        ({"size": [12, 10], "counts": [0, 100000]}, "do not add up"),
        ({"size": [12, 10], "counts": [1, -1, 120]}, "do not add up"),
        ({"size": [12, 10], "counts": "PPYo1"}, "do not add up"),
        ({"size": [12, 10], "counts": "\u00ff"}, "do not add up"),
        ({"size": [1200, 1000], "counts": [1200000]}, "run lengths of"),
        ("text", "run lengths of"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, mask: object, said: str) -> None:
    with pytest.raises(DataError, match=f"annotation 4 has.*{said.removeprefix('has ')}") as raised:
        load_instances(case(tmp_path, [annotation(4, segmentation=mask)]))
    assert raised.value.code == "E_MANIFEST"
    assert "case a" in raised.value.where


def test_an_image_of_another_size(tmp_path: Path) -> None:
    size = [{"id": 1, "file_name": "a.png", "width": 20, "height": 24}]
    with pytest.raises(DataError, match="another size") as raised:
        load_instances(case(tmp_path, [], images=size))
    assert raised.value.code == "E_GRID"


def test_the_key_is_that_of_the_image_alone(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    whole = [annotation(1, segmentation=compressed(block(0, 0, 2, 2))), annotation(2, 2, bbox=[0, 0, 1, 1])]
    before = objects_key(case(tmp_path, whole, images=images))
    assert objects_key(case(tmp_path, whole[:1], images=images)) == before
    assert objects_key(case(tmp_path, whole[1:], images=images)) != before


def test_a_file_that_is_not_the_listed_one(tmp_path: Path) -> None:
    """The sum that a case list has of the annotations is checked."""
    found = case(tmp_path, [annotation(1, segmentation=compressed(block(0, 0, 2, 2)))])
    assert found.instances is not None
    summed = replace(found, sha256={found.instances: volume_sum(found.instances)})
    assert load_instances(summed)[0].any()
    coco_file(found.instances, [])
    with pytest.raises(DataError) as raised:
        load_instances(summed)
    assert raised.value.code == "E_HASH"
