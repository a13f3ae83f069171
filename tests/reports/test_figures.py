"""The numbers that figures draw, by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from cmt_med.reports.figures import (
    agreement,
    bland_altman,
    curve_points,
    distributions,
    drawn_scores,
    reliability,
    training_curves,
)

VOLUMES = {"a": (10.0, 12.0), "b": (20.0, 19.0), "c": (30.0, 35.0), "d": (0.0, 2.0)}  # mL, reference and prediction
CASES = {
    name: {"core": {"reference_ml": reference, "predicted_ml": predicted, "dice": dice, "hd95": hd95}}
    for (name, (reference, predicted)), dice, hd95 in zip(
        VOLUMES.items(), (0.9, None, 0.5, 0.7), (1.0, math.nan, None, 4.0), strict=True
    )
}


def test_bland_altman_by_hand() -> None:
    found = agreement(CASES, "core")
    assert found.means.tolist() == [11.0, 19.5, 32.5, 1.0]
    assert found.differences.tolist() == [2.0, -1.0, 5.0, 2.0]
    assert found.bias == 2.0
    spread = math.sqrt((0 + 9 + 9 + 0) / 3)
    assert found.limits == pytest.approx((2 - 1.96 * spread, 2 + 1.96 * spread))


def test_volumes_of_cases_that_annotate_the_target() -> None:
    nothing = {"core": dict.fromkeys(("reference_voxels", *CASES["a"]["core"]), None)}
    assert agreement(CASES | {"partial": nothing}, "core").bias == agreement(CASES, "core").bias
    assert math.isnan(agreement({"partial": nothing}, "core").bias)
    assert bland_altman({"partial": nothing}, ["core"]) is not None


def test_two_cases_have_no_limits_of_agreement() -> None:
    found = agreement({name: CASES[name] for name in "ab"}, "core")
    assert found.bias == 0.5
    assert found.limits is None


def test_a_row_has_a_point_for_every_case_with_a_score() -> None:
    assert drawn_scores(CASES, "core", "dice") == [0.9, 0.5, 0.7]
    assert drawn_scores(CASES, "core", "hd95") == [1.0, 4.0]
    assert drawn_scores(CASES, "core", "assd") == []


def test_training_curves_of_one_and_of_folds() -> None:
    rows = [
        {"seconds": 60, "loss": 1.0, "dice": None},
        {"seconds": 120, "loss": 0.5, "dice": 0.25},
        {"seconds": 130, "event": "resumed"},
    ]
    assert {k: v.tolist() for k, v in curve_points(rows, "loss").items()} == {"": [[1, 2], [1, 0.5]]}
    assert {k: v.tolist() for k, v in curve_points(rows, "dice").items()} == {"": [[2], [0.25]]}
    folds = [row | {"fold": fold} for fold in (0, 1) for row in rows]
    assert {k: v.tolist() for k, v in curve_points(folds, "loss").items()} == {
        "fold 0": [[1, 2], [1, 0.5]], "fold 1": [[1, 2], [1, 0.5]],
    }  # fmt: skip
    assert training_curves([]) is None


def test_what_there_is_not_is_not_drawn() -> None:
    assert distributions({}, ["core"], {"dice": "Dice"}) is None
    assert bland_altman({}, ["core"]) is None
    assert reliability({}) is None


def test_points_lie_where_the_numbers_are() -> None:
    picture = distributions({"a": CASES["a"]}, ["core"], {"dice": "Dice"})
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGBA"))
    drawn = (pixels[..., 3] > 100) & (pixels[..., 0] > 200) & (pixels[..., 2] < 90)  # the row's orange
    grey = np.flatnonzero(((pixels[..., 3] > 200) & (pixels[..., 0] < 90)).sum(axis=0) > pixels.shape[0] / 2)
    left, right = grey.min(), grey.max()  # the frame, whose axis goes from -0.03 to 1.03
    at = (np.flatnonzero(drawn.any(axis=0)).mean() - left) / (right - left) * 1.06 - 0.03
    assert at == pytest.approx(0.9, abs=0.01)
