"""Scores of boxes against pycocotools, and against counting by hand."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
from pycocotools import coco
from pycocotools.cocoeval import COCOeval

from cmt_med.base.boxes import Boxes, iou
from cmt_med.evaluation.boxes import (
    FALSE_POSITIVES,
    THRESHOLDS,
    Ranking,
    average_precision,
    froc,
    intervals,
    match,
    mean_precision,
    ranking,
)

HALF = THRESHOLDS.index(0.5)


def random_image(rng: np.random.Generator, classes: int) -> tuple[Boxes, Boxes]:
    """Found boxes and references, of which many overlap; some references are ignored, some scores are equal."""
    count = int(rng.integers(0, 7))
    low = rng.integers(0, 30, (count, 2)).astype(float)
    size = rng.integers(2, 20, (count, 2)).astype(float)
    references = Boxes.of(low, low + size, rng.integers(1, classes + 1, count), None, rng.random(count) < 0.15, dims=2)
    near = [i for i in range(count) for _ in range(int(rng.integers(0, 3)))]
    moved = low[near] + rng.integers(-4, 5, (len(near), 2))
    other = rng.integers(0, 4)
    lows = np.concatenate([moved, rng.integers(0, 30, (other, 2)).astype(float)])
    sizes = np.concatenate(
        [size[near] + rng.integers(-1, 2, (len(near), 2)), rng.integers(2, 20, (other, 2)).astype(float)]
    )
    named = np.concatenate([references.classes[near], rng.integers(1, classes + 1, other)])
    scores = rng.integers(1, 10, len(named)) / 10
    return Boxes.of(lows, lows + sizes, named, scores, dims=2), references


def coco_precision(images: list[tuple[Boxes, Boxes]], classes: int) -> np.ndarray[Any, Any]:
    """AP of pycocotools by threshold and class; -1 without a reference."""
    listed: dict[str, Any] = {
        "images": [{"id": i + 1} for i in range(len(images))],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(classes)],
        "annotations": [],
    }
    answers = []
    for number, (found, references) in enumerate(images, 1):
        for low, size, value, crowd in zip(
            references.low, references.sizes, references.classes, references.ignored, strict=True
        ):
            listed["annotations"].append({
                "id": len(listed["annotations"]) + 1, "image_id": number, "category_id": int(value), "iscrowd": int(crowd),
                "bbox": [*low.tolist(), *size.tolist()], "area": float(size.prod()),
            })  # fmt: skip
        for low, size, value, score in zip(found.low, found.sizes, found.classes, found.scores, strict=True):
            answers.append({
                "image_id": number, "category_id": int(value), "score": float(score),
                "bbox": [*low.tolist(), *size.tolist()],
            })  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = listed
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(answers) if answers else coco.COCO(), "bbox")
        if not answers:
            judge.cocoDt.dataset = {**listed, "annotations": []}
            judge.cocoDt.createIndex()
        judge.params.iouThrs = np.array(THRESHOLDS)
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [100]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # (T, R, K)
    return np.asarray(precision.mean(axis=1))


def by_class(images: list[tuple[Boxes, Boxes]], classes: int) -> dict[str, Ranking]:
    return {
        str(value): ranking([
            [match(found[found.classes == value], references[references.classes == value])] for found, references in images
        ]) for value in range(1, classes + 1)
    }  # fmt: skip


def test_average_precision_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes = int(rng.integers(1, 4))
        images = [random_image(rng, classes) for _ in range(int(rng.integers(1, 6)))]
        theirs = coco_precision(images, classes)
        for number, ranked in enumerate(by_class(images, classes).values()):
            for t in range(len(THRESHOLDS)):
                ours, wanted = average_precision(ranked, t), theirs[t, number]
                assert math.isnan(ours) if wanted == -1 else ours == pytest.approx(wanted, abs=1e-9)


def test_froc_counts_by_hand() -> None:
    """Every bound on the scores in turn, counted in loops."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        images = [random_image(rng, 1) for _ in range(int(rng.integers(1, 5)))]
        matches = [match(found, references) for found, references in images]
        total = sum(m.references for m in matches)
        wanted = []
        for rate in FALSE_POSITIVES:
            best = 0.0
            for bound in sorted({float(s) for m in matches for s in m.scores}):
                tp = sum(int(h) for m in matches for s, h in zip(m.scores, m.hits[HALF], strict=True) if s >= bound)
                fp = sum(
                    int(not h and not i)
                    for m in matches
                    for s, h, i in zip(m.scores, m.hits[HALF], m.ignored[HALF], strict=True)
                    if s >= bound
                )
                if total and fp / len(images) <= rate:
                    best = max(best, tp / total)
            wanted.append(best if total else math.nan)
        np.testing.assert_allclose(froc(ranking([[m] for m in matches]), HALF), wanted, equal_nan=True)


def test_by_hand() -> None:
    """Two references; the best box finds one, the second nothing, the third the other: precisions 1 and 2/3."""
    references = Boxes.of([[0, 0, 0], [20, 0, 0]], [[10, 10, 10], [30, 10, 10]], [1, 1])
    found = Boxes.of(
        [[0, 0, 0], [50, 0, 0], [20, 0, 0]], [[10, 10, 10], [60, 10, 10], [30, 10, 5]], [1, 1, 1], [0.9, 0.8, 0.7]
    )
    ranked = ranking([[match(found, references)]])
    assert iou(found, references)[2, 1] == 0.5
    assert average_precision(ranked, HALF) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert froc(ranked, HALF) == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert average_precision(ranked, THRESHOLDS.index(0.55)) == pytest.approx(51 / 101)


def test_weights_are_repeated_images() -> None:
    rng = np.random.default_rng(2)
    images = [random_image(rng, 2) for _ in range(4)]
    weights = np.array([2.0, 0.0, 1.0, 3.0])
    repeated = [images[0]] * 2 + [images[2]] + [images[3]] * 3
    for t in (0, HALF):
        assert mean_precision(by_class(images, 2), [t], weights) == pytest.approx(
            mean_precision(by_class(repeated, 2), [t])
        )
        one, other = by_class(images, 2)["1"], by_class(repeated, 2)["1"]
        np.testing.assert_allclose(froc(one, t, weights), froc(other, t))


def test_intervals_are_over_patients() -> None:
    values = np.array([1.0, 1.0, 0.0])
    found = intervals(["a", "a", "b"], lambda weights: [float(weights @ values / weights.sum()), float("nan")], 2)
    assert found[0] == (0.0, 1.0)
    assert all(map(math.isnan, found[1]))
    assert all(math.isnan(bound) for pair in intervals(["a", "a"], lambda weights: [1.0], 1) for bound in pair)


def test_nothing() -> None:
    empty = Boxes.of([], [], [])
    ranked = ranking([[match(empty, empty)]])
    assert math.isnan(average_precision(ranked, HALF))
    assert all(map(math.isnan, froc(ranked, HALF)))
