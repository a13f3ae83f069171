"""Shared by all tests: where real data lies, a private cache, and few threads."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, named by ``CMT_TEST_DATA``."""
    folder = os.environ.get("CMT_TEST_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("CMT_REQUIRE_DATA"):
        pytest.fail(f"CMT_TEST_DATA={folder!r} is not a folder, and here no such test may skip")
    pytest.skip("needs real data: set CMT_TEST_DATA to a folder with hippocampus/, brats_crops/, ...")


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CMT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if os.environ.get("PYTEST_XDIST_WORKER"):  # a worker for each core: threads would only wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(2)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_collected_twice() -> Iterator[None]:
    """What a module leaves behind (compiled graphs, caches of libraries) is never looked at again by the garbage collector.

    A worker lives for a thousand tests, and grows to some gigabytes: a training at its end took 283 s, alone 90 s.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether the full counts are asked for (`make soak`)."""
    return bool(os.environ.get("CMT_SOAK"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for real data is selected by ``-m data``."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
