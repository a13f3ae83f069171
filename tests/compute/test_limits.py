"""The cap on a case's time reaches it wherever it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmt_med.base.errors import DataError
from cmt_med.compute import limits as limits
from cmt_med.compute.limits import Limits, bounded
from cmt_med.data.volumes.sums import content_key


def _assert_stopped(after: float, work: Callable[[], object]) -> None:
    def case() -> None:
        with bounded(Limits(minutes=after / 60), "the-case"):
            work()
            time.sleep(20)

    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        case()
    assert (caught.value.code, caught.value.where) == ("E_TIMEOUT", "the-case")
    assert time.monotonic() - begun < 10


def test_time_is_up_while_an_input_is_summed(tmp_path: Path) -> None:
    """Of what cannot be read, the sum is a word; what was only slow must not be taken for that."""
    large = tmp_path / "large.nii"
    with large.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 34)  # a hole: no disk is used, but summing takes many seconds
    _assert_stopped(0.3, lambda: content_key(large))


def test_time_is_up_in_code_that_suppresses_errors() -> None:
    def deaf() -> None:
        with contextlib.suppress(Exception):
            time.sleep(20)

    _assert_stopped(0.2, deaf)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_case_that_goes_on_is_stopped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised while an object is destroyed."""
    monkeypatch.setattr(limits, "_AGAIN", 0.2)

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.5)

    _assert_stopped(0.1, lambda: Slow() and None)


def test_nothing_comes_late() -> None:
    with bounded(Limits(minutes=0.1 / 60), "the-case"):
        pass
    time.sleep(0.3)
