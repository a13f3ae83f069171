"""Boxes from init to report, in 2D and 3D, from files of boxes and from masks, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from cmt_med.compare import compare
from cmt_med.convert import convert
from cmt_med.data.manifest import load_manifest
from cmt_med.data.volumes.boxes import load_boxes
from cmt_med.data.volumes.gate import load_case
from cmt_med.evaluate import evaluate
from cmt_med.infer import infer
from cmt_med.init import init
from cmt_med.inspect import inspect
from cmt_med.launch.command import run_command
from cmt_med.train import train
from cmt_med.view import view
from tests.helpers import save

SMALL = "{stem_channels: 8, dims: [16, 32], depths: [1, 1], head_dim: 8, stride: 4," \
        " attention: [lightweight, lightweight], kv_strides: [2, 1]}"  # fmt: skip
QUICK = [
    f"network.options={SMALL}",
    "optimizer.lr=1e-2",
    "data.workers=0",
    "augmentation.blur=0.0",
    "train.batch_size=4",
]
CLASSES = ("dark", "light")
Rows = list[tuple[str, list[int], list[int]]]


def scene(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], Rows]:
    """An image with dark and light blocks apart from each other, and their classes and faces."""
    image = rng.normal(0, 5, shape).astype(np.float32) + 120
    rows: Rows = []
    for _ in range(40):
        size = [int(rng.integers(7, 13)) if n > 12 else n for n in shape]
        low = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, size, strict=True)]
        high = [a + s for a, s in zip(low, size, strict=True)]
        if any(all(a < d + 2 and c < b + 2 for a, b, c, d in zip(low, high, o, p, strict=True)) for _, o, p in rows):
            continue
        number = int(rng.integers(2))
        image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] += (-90, 90)[number]
        rows.append((CLASSES[number], low, high))
        if len(rows) == 4:
            break
    return image, rows


def rng_image(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)


def grey(path: Path, image: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image.T, 0, 255).astype(np.uint8)).save(path)


def voc(folder: Path, count: int, seed: int = 0, shape: tuple[int, int] = (64, 48)) -> Path:
    rng = np.random.default_rng(seed)
    (folder / "Annotations").mkdir(parents=True)
    for i in range(count):
        image, rows = scene(rng, shape)
        grey(folder / f"JPEGImages/p{i}.png", image)
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{low[0] + 1}</xmin><ymin>{low[1] + 1}</ymin>"
            f"<xmax>{high[0]}</xmax><ymax>{high[1]}</ymax></bndbox></object>" for name, low, high in rows
        )  # fmt: skip
        (folder / f"Annotations/p{i}.xml").write_text(
            f"<annotation><filename>p{i}.png</filename>{objects}</annotation>"
        )
    return folder


def table(folder: Path, count: int, edges: bool) -> Path:
    rng = np.random.default_rng(0)
    lines = ["image,class,x,y,width,height" if edges else "filename;label;xmin;ymin;xmax;ymax"]
    for i in range(count):
        image, rows = scene(rng, (64, 48))
        grey(folder / f"images/p{i}.png", image)
        for name, low, high in rows:
            faces = [*low, *(b - a for a, b in zip(low, high, strict=True))] if edges else [*low, *high]
            lines.append(
                ("," if edges else ";").join(map(str, (f"p{i}.png" if edges else f"images/p{i}.png", name, *faces)))
            )
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder


def coco(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, object]]] = {
        "images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }  # fmt: skip
    for i in range(count):
        image, rows = scene(rng, (64, 48))
        grey(folder / f"images/p{i}.png", image)
        content["images"].append({"id": i, "file_name": f"p{i}.png", "width": 64, "height": 48})
        for name, low, high in rows:
            box = [*low, *(b - a for a, b in zip(low, high, strict=True))]
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": i, "category_id": CLASSES.index(name), "bbox": box}
            )
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def run(command: object, *arguments: object, sets: list[str] | None = None) -> int:
    options = [part for one in sets or [] for part in ("--set", one)]
    return run_command(command, [*map(str, arguments), *options])  # type: ignore[arg-type]


def test_formats_hold_the_same_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pascal VOC, tables with faces and with edges, and COCO: the same classes and the same faces of each image."""
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "voc", 4)
    table(tmp_path / "faces", 4, edges=False)
    table(tmp_path / "edges", 4, edges=True)
    coco(tmp_path / "coco", 4)
    rng = np.random.default_rng(0)
    wanted = [sorted(scene(rng, (64, 48))[1]) for _ in range(4)]
    for name in ("voc", "faces", "edges", "coco", "edges/boxes.csv", "coco/annotations.json"):
        output = f"{name.replace('/', '_').partition('.')[0]}.yaml"
        assert run(init, name, "--output", output) == 0
        manifest = load_manifest(tmp_path / output.replace(".yaml", ".json"))
        assert manifest.labels == {"background": 0, "dark": 1, "light": 2}
        assert [case.name for case in manifest.cases] == [f"p{i}" for i in range(4)]
        for case, rows in zip(manifest.cases, wanted, strict=True):
            found = load_boxes(case, manifest.labels, load_case(case, ["image"]).grid)
            listed = zip(found.classes.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
            assert sorted((CLASSES[v - 1], [*map(int, a[:2])], [*map(int, b[:2])]) for v, a, b in listed) == rows
            assert (found.low[:, 2] == 0).all()
            assert (found.high[:, 2] == 1).all()


def test_boxes_become_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pycocotools reads what convert writes, and so do we: the same boxes."""
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "d", 4)
    assert run(convert, "d", "--to", "coco", "--output", "c") == 0
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(tmp_path / "c/annotations/instances.json"))
    for name in ("d", "c"):
        assert run(init, name, "--output", f"{name}.yaml") == 0
    one, other = (load_manifest(tmp_path / f"{name}.json") for name in "dc")
    assert one.labels == other.labels
    for a, b in zip(one.cases, other.cases, strict=True):
        first, second = (load_boxes(c, one.labels, load_case(c, ["image"]).grid) for c in (a, b))
        assert first.low.tolist() == second.low.tolist()
        assert first.high.tolist() == second.high.tolist()
        assert first.classes.tolist() == second.classes.tolist()
        listed = theirs.loadAnns(theirs.getAnnIds(theirs.getImgIds()[one.cases.index(a)]))
        assert [item["bbox"][:2] for item in listed] == first.low[:, :2].tolist()
    assert run(convert, "d", "--to", "nnunet", "--output", "n") == 65


def test_from_pictures_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "d", 20)
    assert run(init, "d", "--output", "my.yaml") == 0
    assert "20 cases, 20 with boxes" in capsys.readouterr().out
    config = (tmp_path / "my.yaml").read_text()
    assert "task: detection" in config
    assert "cmt_detector" in config
    assert run(train, "--config", "my.yaml", "--dry-run", sets=QUICK) == 0
    sets = [*QUICK, "train.epochs=60", "train.validate_every=30"]
    assert run(train, "--config", "my.yaml", sets=sets) == 0
    assert "AP at IoU 0.5" in capsys.readouterr().out
    card = json.loads((tmp_path / "runs/my/model/model.json").read_text())
    assert (card["task"], card["detection"]["overlap"]) == ("detection", 0.5)
    new = voc(tmp_path / "new", 4, seed=1, shape=(100, 90))  # in windows
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p") == 0
    rows = list(csv.DictReader((tmp_path / "p/boxes.csv").open()))
    content = json.loads((tmp_path / "p/p0.boxes.json").read_text())
    first = [row for row in rows if row["case"] == "p0"]
    assert len(first) == len(content["boxes"]) > 0
    assert [float(first[0][key]) for key in ("xmin", "ymin")] == content["boxes"][0]["low"]
    assert first[0]["zmin"] == first[0]["xmin_mm"] == ""
    assert content["shape"] == [100, 90, 1]
    assert run(evaluate, "--predictions", "p", "--references", new, "--output", "r") == 0
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert metrics["summary"]["all_classes"]["ap50"]["value"] > 0.6
    page = (tmp_path / "r/report.html").read_text()
    assert "data:image/png" in page
    assert "FROC" in page
    assert (
        run(infer, "--model", "runs/my", "--model", "runs/my", "--input", new, "--output", "q", "--tta", "flips") == 0
    )
    assert run(evaluate, "--predictions", "q", "--references", new, "--output", "s") == 0
    again = json.loads((tmp_path / "s/metrics.json").read_text())
    assert again["summary"]["all_classes"]["ap50"]["value"] > 0.6
    assert run(compare, "r", "s") == 0
    grey(tmp_path / "blank/b.png", np.full((64, 48), 130, np.float32))
    assert run(infer, "--model", "runs/my", "--input", "blank", "--output", "b") == 0
    assert json.loads((tmp_path / "b/b.boxes.json").read_text())["boxes"] == []
    save(tmp_path / "volume/v.nii.gz", rng_image((20, 20, 9)))
    assert run(infer, "--model", "runs/my", "--input", "volume", "--output", "v") == 2
    assert json.loads((tmp_path / "v/failures.json").read_text())[0]["code"] == "E_NDIM"
    before = (tmp_path / "p/p0.boxes.json").stat().st_mtime_ns
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p") == 0  # kept
    assert (tmp_path / "p/p0.boxes.json").stat().st_mtime_ns == before
    few = ["detection.min_score=0.9", "detection.most=1"]
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p", sets=few) == 0
    assert len(list(csv.DictReader((tmp_path / "p/boxes.csv").open()))) <= 4
    assert run(view, "p") == 65
    capsys.readouterr()
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p", sets=["detection.min_scor=0.9"]) == 64
    assert "min_score" in capsys.readouterr().err
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p", "--convention", "msd") == 64


@pytest.mark.parametrize("network", ["cmt_detr", "cmt_retinanet"])
def test_other_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "d", 24)
    assert run(init, "d", "--output", "my.yaml") == 0
    more = "queries: 8, layers: 2, channels: 32" if network == "cmt_detr" else "channels: 16, anchor_edges: [2, 3]"
    sets = [f"network.name={network}", f"network.options={SMALL[:-1]}, {more}}}", *QUICK[1:], "optimizer.lr=3e-3"]
    assert run(train, "--config", "my.yaml", "--dry-run", sets=sets) == 0
    long = [*sets, "train.epochs=60", "train.validate_every=60"]
    assert run(train, "--config", "my.yaml", "--threads", "1", sets=long) == 0
    metrics = json.loads((tmp_path / "runs/my/report/metrics.json").read_text())
    assert metrics["summary"]["all_classes"]["ap50"]["value"] > 0.5
    new = voc(tmp_path / "new", 4, seed=1, shape=(100, 90))
    assert run(infer, "--model", "runs/my", "--input", new, "--output", "p", "--tta", "flips") == 0
    assert run(evaluate, "--predictions", "p", "--references", new, "--output", "r") == 0


def test_volumes_with_masks_and_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes around the connected parts of label maps, in voxels of the image and in mm, in a turned and stretched volume."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    affine = np.array([[-1.0, 0, 0, 40], [0, 1.0, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])
    for i in range(6):
        image, rows = scene(rng, (36, 32, 20))
        label = np.zeros(image.shape, np.uint8)
        for name, low, high in rows:
            label[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1 + CLASSES.index(name)
        save(tmp_path / f"d/images/v{i}.nii.gz", image, affine)
        save(tmp_path / f"d/labels/v{i}.nii.gz", label, affine)
    assert run(init, "d", "--output", "my.yaml", "--task", "detection") == 0
    assert "task: detection" in (tmp_path / "my.yaml").read_text()
    manifest = load_manifest(tmp_path / "my.json")
    sets = [*QUICK, "train.epochs=40", "train.validate_every=20", "folds=2", "train.patches_per_case=2",
            "train.patch_size=[32, 32, 16]", "data.spacing=[1, 1, 2]", "train.batch_size=2"]  # fmt: skip
    assert run(train, "--config", "my.yaml", "--fold", "0", sets=sets) == 0
    assert run(train, "--config", "my.yaml", sets=sets) == 0  # fold 0 is finished
    metrics = json.loads((tmp_path / "runs/my/report/metrics.json").read_text())
    assert set(metrics["cases"]) == {f"v{i}" for i in range(6)}
    assert run(infer, "--model", "runs/my", "--input", "d/images", "--output", "p") == 0
    assert run(evaluate, "--predictions", "p", "--references", "my.json", "--output", "r") == 0
    scored = json.loads((tmp_path / "r/metrics.json").read_text())
    assert scored["summary"]["all_classes"]["ap10"]["value"] > 0.6
    assert scored["summary"]["references"] == sum(
        len(load_boxes(case, manifest.labels, load_case(case, ["image"]).grid)) for case in manifest.cases
    )
    flat = [*sets[:-4], "network.spatial_dims=2", "train.patch_size=[32, 32]", "data.slice_axis=2", "output=runs/flat"]
    assert run(train, "--config", "my.yaml", sets=flat) == 64  # boxes of slices would be none of the objects
    assert not (tmp_path / "runs/flat/model").exists()
    row = json.loads((tmp_path / "p/v0.boxes.json").read_text())["boxes"][0]
    low, high = np.array(row["low"]), np.array(row["high"])
    assert row["low_mm"] == pytest.approx([40.5 - high[0], low[1] - 7.5, 2 * low[2] + 2], abs=1e-2)
    assert row["high_mm"] == pytest.approx([40.5 - low[0], high[1] - 7.5, 2 * high[2] + 2], abs=1e-2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("<xmax>", "<xmax>9"), "sticks out of the image"),
        (("<xmin>", "<xmin>-9"), "sticks out of the image"),
        (("<name>dark", "<name>other"), "unknown class"),
        (("<xmin>", "<xmin>6"), "ends before it begins"),
        (("<ymin>", "<ymin>?"), "no number"),
        (("</bndbox>", "</box>"), "cannot be used"),
        (("<bndbox>", "<nothing/></object><object><bndbox>"), "has no bndbox"),
    ],
    ids=["outside", "before", "class", "inverted", "number", "broken", "empty"],
)
def test_bad_boxes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "d", 4)
    assert run(init, "d", "--output", "my.yaml") == 0
    file = next(p for p in sorted((tmp_path / "d/Annotations").iterdir()) if change[0] in p.read_text())
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(change[0], change[1], 1))
    assert run(inspect, "d") == (0 if said == "unknown class" else 2)  # which classes there are, a list says
    capsys.readouterr()
    assert run(train, "--config", "my.yaml", sets=[*QUICK, "train.epochs=1"]) == 65
    shown = capsys.readouterr().err
    assert said in shown
    assert file.name in shown
    assert not (tmp_path / "runs/my/model").exists()


def test_settings_are_of_their_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    voc(tmp_path / "d", 4)
    assert run(init, "d", "--output", "my.yaml") == 0
    for sets, said in (
        (["network.name=cmt_unetr", "network.options={}"], "this network finds no boxes"),
        (["task=segmentation"], "this network finds boxes"),
        (["inference.threshold=0.3"], "detection.min_score"),
        (["train.loss=dice_focal"], "loss of label maps"),
        (["task=instances", "network.name=cmt_unetr", "detection.overlap=0.3"], "needs task: detection"),
        (["network.options={stride: 3}"], "no such stride"),
    ):
        capsys.readouterr()
        assert run(train, "--config", "my.yaml", sets=[*QUICK[1:], "train.epochs=1", *sets]) == 64, sets
        assert said in capsys.readouterr().err
