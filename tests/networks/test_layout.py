"""Memory layout: channels-last from the image to the logits, and no slow kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmt_med.networks import build_network

KINDS = ("lightweight", "window", "global", "identity")


class Conversions(TorchDispatchMode):
    """Counts operations that turn a volume from the default layout into channels-last or back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        source = args[0] if args else None
        if isinstance(source, Tensor) and isinstance(result, Tensor) and source.shape == result.shape:
            layouts = {_layout(source), _layout(result)}
            if source.ndim == 5 and layouts == {"default", "channels-last"}:
                self.found.append(f"{func} {tuple(source.shape)}")
        return result


def _layout(x: Tensor) -> str:
    default, last = x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last_3d)
    return "" if default == last else "default" if default else "channels-last"


def network(kind: str, **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(
        "cmt_unetr", spatial_dims=3, in_channels=4, num_classes=3, attention=(kind,) * 3, **more
    ).eval()


@pytest.mark.parametrize(
    "more", [{}, {"skip": "concat"}, {"skip": "fusion", "embedding": "grouped"}, {"decoder": "mlp"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_conversion_at_the_entrance(kind: str, more: dict[str, Any]) -> None:
    model = network(kind, **more)
    with torch.no_grad(), Conversions() as seen:
        model(torch.randn(1, 4, 48, 48, 48))
    assert len(seen.found) == 1, seen.found
    assert "(1, 4, 48, 48, 48)" in seen.found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_slow_convolution(kind: str) -> None:
    model = network(kind)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        model(torch.randn(1, 4, 40, 32, 48))
    names = {event.key for event in profile.key_averages()}
    assert not {name for name in names if "slow_conv" in name}
    assert "aten::mkldnn_convolution" in names
