"""What a folder of predictions says about itself: read once, and refused where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.data.sources.predicted import RunRecord, read_run

GOOD = {"model": "m", "labels": {"background": 0, "ball": 1}, "targets": {"ball": [1]}, "cases": ["a"], "failed": []}


def test_what_infer_writes_is_kept(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    content = GOOD | {"notice": "", "settings": {"overlap": 0.5}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    run = read_run(tmp_path)
    assert run is not None
    assert run.model_dump(exclude_unset=True) == content
    assert RunRecord().model_dump(exclude_unset=True) == {}


DAMAGED = [
    "", "[]", "3", "null", '{"targets"', '{"targets": 3}', '{"targets": {"t": 1}}', '{"targets": {"t": ["1"]}}',
    '{"labels": 3}', '{"labels": ["a"]}', '{"labels": {"a": null}}', '{"labels": {"a": 1.5}}', '{"failed": 3}',
    '{"failed": [3]}', '{"cases": "a"}', '{"notice": 3}', '{"model": []}', "[" * 100_000, "\xff",
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damage_is_an_error_of_the_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read_run(tmp_path)
    assert caught.value.code == "E_RUN"
    assert caught.value.where == str(tmp_path / "run.json")
