"""torch.compile and torch.export give what the network gives; in a file of its own, since compiling takes most of the time."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from tests.networks.test_contract import FAMILIES, OPTIONS, SIZES, SOAK, make

# Compiling a network takes minutes on one core, so that most have their turn in the soak; the step that is compiled in
# tests/training/test_steps.py is in 3D.
COMPILED = [(*FAMILIES[2], 2)] + (
    [(*FAMILIES[0], 3), (*FAMILIES[1], 2), (*FAMILIES[1], 3), (*FAMILIES[2], 3)] if SOAK else []
)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.parametrize(("name", "variant", "dims"), COMPILED)
def test_compile_equals_eager(name: str, variant: str, dims: int) -> None:
    more = {"depths": (1, 1, 1, 1)[: len(OPTIONS[name]["dims"])]} if "dims" in OPTIONS[name] else {}
    network = make(name, dims, variant, **more).eval()
    x = torch.randn(1, 2, *SIZES[dims][1])
    compiled = torch.compile(copy.deepcopy(network), dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), FAMILIES)
def test_export_equals_eager(name: str, variant: str, dims: int) -> None:
    network = make(name, dims, variant).eval()
    x = torch.randn(1, 2, *SIZES[dims][1])
    exported = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-4)
