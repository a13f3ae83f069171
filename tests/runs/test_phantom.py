"""Synthetic data are made where a config asks for them, and never where a case list is merely missing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cmt_med.config.schema import Experiment
from cmt_med.data.phantom import make_phantom
from cmt_med.runs.prepare import ensure_phantom


def experiment(path: Path, *, phantom: bool) -> Experiment:
    data = {"manifest": str(path), "channels": ["t1"], "phantom": phantom}
    return Experiment.model_validate(
        {"name": "x", "output": "x", "data": data, "train": {"epochs": 1, "patch_size": [8, 8, 8]}}
    )


@pytest.mark.parametrize("name", ["brats_phantom.json", "mine.json"])
def test_made_where_it_is_asked_for(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_med.runs.prepare.make_phantom", partial(make_phantom, heads=2, spacing=8.0))
    path = tmp_path / name
    ensure_phantom(experiment(path, phantom=False), [])
    ensure_phantom(experiment(path, phantom=True), [f"data.manifest={path}"])
    assert not list(tmp_path.iterdir()), "nobody has asked, or the path may be a slip of the pen"
    ensure_phantom(experiment(path, phantom=True), ["train.epochs=2"])
    assert path.is_file()
    assert (tmp_path / path.stem).is_dir()
