"""Every layout from inspect to evaluate on the command line: a ball is learned, and what is written has the input's grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from skimage.measure import find_contours

from cmt_med.compare import compare
from cmt_med.convert import convert
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.gate import load_case
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from tests.data.coco_made import compressed
from tests.data.dicom_made import write_segmentation, write_series, write_structures

CASES, SIZE = 5, (16, 14, 12)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.25, 0, -30], [0, 0, 2.0, 11], [0, 0, 0, 1.0]])
CT = "1.2.840.10008.5.1.4.1.1.2"
SMALL = "stem_channels: 8, dims: [8, 16], depths: [1, 1], head_dim: 8, kv_strides: [2, 1]"
TINY = f"{{{SMALL}, attention: [lightweight, window], full_channels: 4}}"
TINY_CLASSIFIER = f"{{{SMALL}, attention: [identity, identity]}}"


def ball(i: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (CT numbers) and its label map: 1 a ball, 2 its upper half."""
    rng = np.random.default_rng(i)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), -1)
    centre = np.array(SIZE) / 2 + rng.uniform(-1, 1, 3)
    label = (np.linalg.norm(grid - centre, axis=-1) < 4).astype(np.uint8)
    label[..., int(centre[2]) :] *= 2
    return np.round(-300 + 200.0 * label + rng.normal(0, 20, SIZE)), label


def nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def volumes(folder: Path, image: str, label: str) -> None:
    """Pairs of NIfTI by patterns with ``{i}``."""
    for i in range(CASES):
        values, labels = ball(i)
        nifti(folder / image.format(i=i), values.astype(np.int16))
        nifti(folder / label.format(i=i), labels)


def written(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def decathlon(d: Path) -> Path:
    volumes(d, "imagesTr/c{i}.nii.gz", "labelsTr/c{i}.nii.gz")
    entries = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(CASES)]
    labels = {"0": "background", "1": "low", "2": "high"}
    written(d / "dataset.json", {"name": "balls", "modality": {"0": "CT"}, "labels": labels, "training": entries})
    return d


def datalist(d: Path) -> Path:
    """As MONAI's Auto3DSeg has them: folds, and no names of labels."""
    volumes(d, "a/c{i}.nii.gz", "b/c{i}.nii.gz")
    entries = [{"image": f"a/c{i}.nii.gz", "label": f"b/c{i}.nii.gz", "fold": i} for i in range(CASES)]
    written(d / "folds.json", {"training": entries, "testing": []})
    return d / "folds.json"


def nnunet_2(d: Path) -> Path:
    volumes(d, "imagesTr/c{i}_0000.nii.gz", "labelsTr/c{i}.nii.gz")
    labels = {"background": 0, "whole": [1, 2], "high": [2]}
    written(d / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [1, 2],
                                 "numTraining": CASES, "file_ending": ".nii.gz"})  # fmt: skip
    folds = [{"train": [f"c{j}" for j in range(CASES) if j != i], "val": [f"c{i}"]} for i in range(CASES)]
    written(d / "splits_final.json", folds)
    return d


def nnunet_1(d: Path) -> Path:
    volumes(d, "imagesTr/c{i}_0000.nii.gz", "labelsTr/c{i}.nii.gz")
    entries = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(CASES)]
    labels = {"0": "background", "1": "low", "2": "high"}
    written(d / "dataset.json", {"modality": {"0": "CT"}, "labels": labels, "training": entries, "test": []})
    return d


def bids(d: Path) -> Path:
    volumes(d, "sub-{i}/anat/sub-{i}_T1w.nii.gz", "derivatives/m/sub-{i}/anat/sub-{i}_dseg.nii.gz")
    written(d / "dataset_description.json", {"Name": "balls", "BIDSVersion": "1.9.0"})
    written(d / "derivatives/m/dseg.tsv", "index\tname\n1\tlow\n2\thigh\n")
    return d


def pairs(d: Path) -> Path:
    volumes(d, "images/c{i}.nii.gz", "masks/c{i}_mask.nii.gz")
    return d


def patients(d: Path) -> Path:
    volumes(d, "p{i}/ct.nii.gz", "p{i}/segmentation.nii.gz")
    return d


def splits(d: Path) -> Path:
    for i in range(CASES):
        split = "val" if i == 0 else "train"
        values, labels = ball(i)
        nifti(d / f"{split}/images/c{i}.nii.gz", values.astype(np.int16))
        nifti(d / f"{split}/labels/c{i}.nii.gz", labels)
    return d


def structures(d: Path) -> Path:
    for i in range(CASES):
        values, labels = ball(i)
        nifti(d / f"s{i}/ct.nii.gz", values.astype(np.int16))
        for k, name in ((1, "low"), (2, "high")):
            nifti(d / f"s{i}/segmentations/{name}.nii.gz", (labels == k).astype(np.uint8))
    return d


def table(d: Path) -> Path:
    volumes(d, "c{i}.nii.gz", "m{i}.nii.gz")
    lines = [f"c{i};scan c{i}.nii.gz;m{i}.nii.gz;p{i // 2}" for i in range(CASES)]
    for i in range(CASES):
        (d / f"c{i}.nii.gz").rename(d / f"scan c{i}.nii.gz")
    written(d / "list.csv", "\n".join(["id;image;label;patient", *lines]) + "\n")
    return d / "list.csv"


def dicom_seg(d: Path) -> Path:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    for i in range(CASES):
        values, labels = ball(i)
        slices = write_series(
            d / f"p{i}", values, lps, patient=f"p{i}", description="abdomen", storage="1.2.840.10008.5.1.4.1.1.2"
        )
        write_segmentation(d / f"p{i}/seg.dcm", slices, labels, {1: "Low", 2: "High"})
    return d


def dicom_rtstruct(d: Path) -> Path:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    square = np.array([[4, 4], [11, 4], [11, 9], [4, 9.0]])
    for i in range(CASES):
        values, _ = ball(i)
        slices = write_series(d / f"p{i}/ct", values, lps, patient=f"p{i}", description="abdomen", storage=CT)
        shapes = [np.c_[square, np.full(4, k), np.ones(4)] @ lps[:3].T for k in (4, 5, 6)]
        write_structures(d / f"p{i}/rt.dcm", slices, {"GTV": shapes})
    return d


def flat(i: int) -> tuple[np.ndarray, np.ndarray]:
    values, labels = ball(i)
    return np.clip((values[..., 5] + 400) / 3, 0, 255).astype(np.uint8), np.maximum(labels[..., 4], labels[..., 7])


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(d: Path) -> Path:
    for i in range(CASES):
        image, label = flat(i)
        png(d / f"images/{i}.png", image)
        png(d / f"masks/{i}.png", (label > 0).astype(np.uint8) * 255)
    return d


def pictures_with_masks_in_colour(d: Path) -> Path:
    for i in range(CASES):
        image, label = flat(i)
        png(d / f"images/{i}.png", image)
        png(d / f"labels/{i}.png", np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[label])
    return d


def pictures_with_a_mask_for_each_structure(d: Path) -> Path:
    for i in range(CASES):
        image, label = flat(i)
        png(d / f"images/{i}.png", image)
        for k, name in ((1, "low"), (2, "high")):
            png(d / f"masks/{name}/{i}.png", (label == k).astype(np.uint8) * 255)
    return d


def classes(d: Path) -> Path:
    for i in range(CASES * 2):
        image, _ = flat(i)
        png(d / f"{('plain', 'turned')[i % 2]}/{i}.png", image.T.copy() if i % 2 else image)
    return d


def outlined(label: np.ndarray) -> list[list[float]]:
    """The outline of a mask (height, width) as polygons, through the middles of its pixels."""
    contours = find_contours(np.pad(label > 0, 1).astype(float), 0.5)
    return [(contour[:, ::-1] - 1 + 0.5).ravel().tolist() for contour in contours]


def coco(d: Path, segmentation: Callable[[np.ndarray], Any]) -> Path:
    """As the images of a camera with objects; the last has none."""
    images, annotations = [], []
    for i in range(CASES):
        image, label = flat(i)
        label = label > 0
        png(d / f"images/{i}.png", image)
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": image.shape[1], "height": image.shape[0]})
        if i < CASES - 1:
            entry = {"id": i, "image_id": i + 1, "category_id": 1, "iscrowd": 0, "segmentation": segmentation(label)}
            annotations.append(entry)
    categories = [{"id": 1, "name": "ball"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    written(d / "annotations/instances_default.json", content)
    return d


def coco_polygons(d: Path) -> Path:
    return coco(d, outlined)


def coco_run_lengths(d: Path) -> Path:
    return coco(d, compressed)


def framed(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces of the ball in a picture (width, height)."""
    places = np.argwhere(label)
    return places.min(axis=0), places.max(axis=0) + 1


def boxes_voc(d: Path) -> Path:
    for i in range(CASES):
        image, label = flat(i)
        png(d / f"JPEGImages/p{i}.png", image)
        (x, y), (right, bottom) = framed(label.T)
        bounds = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        (d / "Annotations").mkdir(exist_ok=True)
        (d / f"Annotations/p{i}.xml").write_text(
            f"<annotation><object><name>ball</name><bndbox>{bounds}</bndbox></object></annotation>"
        )
    return d


def boxes_table(d: Path) -> Path:
    lines = ["image,class,xmin,ymin,xmax,ymax"]
    for i in range(CASES):
        image, label = flat(i)
        png(d / f"images/p{i}.png", image)
        low, high = framed(label.T)
        lines.append(",".join(map(str, (f"p{i}.png", "ball", *low, *high))))
    (d / "boxes.csv").write_text("\n".join(lines))
    return d


def boxes_coco(d: Path) -> Path:
    """COCO without outlines."""
    path = coco(d, compressed)
    file = d / "annotations/instances_default.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        runs = entry.pop("segmentation")
        entry["bbox"] = rle.toBbox(runs | {"counts": runs["counts"].encode()}).tolist()
    file.write_text(json.dumps(content))
    return path


VOLUMES = [
    decathlon,
    datalist,
    nnunet_1,
    nnunet_2,
    bids,
    pairs,
    patients,
    splits,
    structures,
    table,
    dicom_seg,
    dicom_rtstruct,
]
FLAT = [
    pictures,
    pictures_with_masks_in_colour,
    pictures_with_a_mask_for_each_structure,
    classes,
    coco_polygons,
    coco_run_lengths,
    boxes_voc,
    boxes_table,
    boxes_coco,
]
BOXES = [boxes_voc, boxes_table, boxes_coco]
OBJECTS = [coco_polygons, coco_run_lengths]


@pytest.mark.parametrize("make", [*VOLUMES, *FLAT], ids=lambda make: make.__name__)
def test_from_inspect_to_evaluate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "set")
    assert run_command(inspect, [str(path)]) == 0, capfd.readouterr()
    config = tmp_path / "my.yaml"
    answers = ["--convention", "none"] if make is bids else []
    assert run_command(init, [str(path), "--output", str(config), *answers]) == 0, capfd.readouterr()
    network = TINY_CLASSIFIER if make in (classes, *BOXES) else TINY
    assert ("\ntask: instances" in config.read_text()) == (make in OBJECTS)
    assert ("\ntask: detection" in config.read_text()) == (make in BOXES)
    size = "[16, 16]" if make in FLAT else "[16, 16, 8]"
    sets = ["train.epochs=2", f"train.patch_size={size}", "train.validate_every=1", f"network.options={network}",
            "data.workers=0", f"output={tmp_path / 'run'}"]  # fmt: skip
    assert run_command(train, ["--config", str(config), *(w for s in sets for w in ("--set", s))]) == 0, (
        capfd.readouterr()
    )
    assert (tmp_path / "run/report/report.html").is_file()
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    named_ct = (decathlon, nnunet_1, nnunet_2, patients, structures, dicom_seg, dicom_rtstruct)
    assert bool(card["preprocessing"].get("window")) == (make in named_ct)
    out = tmp_path / "out"
    words = ["--model", str(tmp_path / "run"), "--input", str(path), "--output", str(out)]
    assert run_command(infer, words) == 0, capfd.readouterr()
    scores = [
        "--predictions",
        str(out),
        "--references",
        str(config.with_suffix(".json")),
        "--output",
        str(tmp_path / "scores"),
    ]
    capfd.readouterr()
    assert run_command(evaluate, scores) == 0, capfd.readouterr()
    printed = capfd.readouterr().out
    trained = card["provenance"]["training_cases"]  # among the references, which the model has learned
    assert f"The model was trained on {trained} of these" in caplog.text
    assert f"The model was trained on {trained} of these" in (tmp_path / "scores/report.html").read_text()
    if make in (*OBJECTS, *BOXES, dicom_seg, dicom_rtstruct, patients):  # the folder has the references, too
        words = ["--predictions", str(out), "--references", str(path), "--output", str(tmp_path / "again")]
        assert run_command(evaluate, words) == 0, capfd.readouterr()
        same, other = (json.loads((tmp_path / f"{name}/metrics.json").read_text()) for name in ("scores", "again"))
        assert same["summary"] == other["summary"]
    manifest = load_manifest(config.with_suffix(".json"))
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert len(metrics["cases"]) == len(manifest.cases)
    assert len(metrics["trained_on"]) == trained < len(manifest.cases)
    assert "trained_on" not in metrics["run"]
    if "hd95" in metrics["metrics"]:  # pixels have no size
        unit = "px" if make in FLAT else "mm"
        assert [metrics["metrics"][name]["unit"] for name in ("hd95", "assd")] == [unit, unit]
        assert metrics["metrics"]["nsd_1mm"]["title"] == f"surface Dice at 1 {unit}"
        assert f"HD95 ({unit})" in (tmp_path / "scores/report.html").read_text()
        assert f"HD95 {unit} " in printed
        both = [str(tmp_path / "scores"), str(tmp_path / "run/report"), "--common"]
        assert run_command(compare, [*both, "--metric", "hd95"]) == 0
        assert f"HD95 {unit} " in capfd.readouterr().out
    for case in manifest.cases if make in VOLUMES else ():
        grid = load_case(case, list(manifest.channels)).grid
        image = nibabel.load(out / f"{case.name}.nii.gz")
        assert image.shape == grid.shape
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
    for case in manifest.cases if make in FLAT and make not in (classes, *BOXES) else ():
        size_in = Image.open(next(iter(case.images.values()))[0]).size
        assert Image.open(out / f"{case.name}.png").size == size_in


@pytest.mark.parametrize("make", [dicom_seg, structures, pictures_with_masks_in_colour], ids=lambda make: make.__name__)
@pytest.mark.parametrize("to", ["nnunet", "msd"])
def test_converted(tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[Path], Path], to: str) -> None:
    """What lies in formats of others is written as what it is: the same labels on the same grids."""
    path, output = make(tmp_path / "set"), tmp_path / "out"
    status = run_command(convert, [str(path), "--to", to, "--output", str(output)])
    if make in FLAT and to == "msd":  # which has volumes
        assert status == 65
        return
    assert status == 0, capfd.readouterr()
    assert run_command(init, [str(path), "--output", str(tmp_path / "a.yaml")]) == 0
    assert run_command(init, [str(output), "--output", str(tmp_path / "b.yaml")]) == 0, capfd.readouterr()
    one, other = (load_manifest(tmp_path / f"{name}.json") for name in "ab")
    assert len(one.cases) == len(other.cases) == CASES
    for mine, theirs in zip(
        sorted(one.cases, key=lambda c: c.name), sorted(other.cases, key=lambda c: c.name), strict=True
    ):
        a = load_case(mine, list(one.channels), list(one.labels.values()))
        b = load_case(theirs, list(other.channels), list(other.labels.values()))
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label > 0, b.label > 0)
        np.testing.assert_allclose(a.grid.affine, b.grid.affine, atol=1e-4)


def test_a_model_of_pictures_takes_no_volumes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both have one channel without a name; slices of a CT are no such pictures all the same."""
    path, config = pictures(tmp_path / "set"), tmp_path / "my.yaml"
    assert run_command(init, [str(path), "--output", str(config)]) == 0
    sets = ["train.epochs=1", "train.patch_size=[16, 16]", f"network.options={TINY}", "data.workers=0",
            f"output={tmp_path / 'run'}"]  # fmt: skip
    assert run_command(train, ["--config", str(config), *(w for s in sets for w in ("--set", s))]) == 0
    pairs(tmp_path / "volumes")
    words = [
        "--model",
        str(tmp_path / "run"),
        "--input",
        str(tmp_path / "volumes/images"),
        "--output",
        str(tmp_path / "out"),
    ]
    capfd.readouterr()
    assert run_command(infer, words) == 2  # the cases, one by one
    failures = json.loads((tmp_path / "out/failures.json").read_text())
    assert {(f["code"], f["what"]) for f in failures} == {
        ("E_NDIM", "the case is a volume, the model was trained on 2D images")
    }
    assert not list((tmp_path / "out").glob("*.nii.gz"))
