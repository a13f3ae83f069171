"""One contract for every network, in 2D and 3D."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from cmt_med.errors import NetworkError
from cmt_med.networks import NETWORKS, build_network

SIZES = {2: [(32, 48), (37, 21), (5, 64)], 3: [(16, 32, 16), (17, 11, 23), (3, 20, 9)]}
SMALL = {"stem_channels": 8, "dims": (16, 24, 32), "head_dim": 8, "drop_path": 0.1}
KINDS = ("lightweight", "window", "global", "identity")
CASES = [(name, dims, kind, full) for name in NETWORKS for dims in (2, 3) for kind in KINDS for full in (0, 8)]


def make(name: str, dims: int, kind: str = "lightweight", full: int = 8, **more: object) -> nn.Module:
    torch.manual_seed(1)
    options = SMALL | {"attention": (kind,) * 3, "window": 3, "full_channels": full} | more
    network = build_network(name, spatial_dims=dims, in_channels=2, num_classes=3, **options)  # type: ignore[arg-type]
    with torch.no_grad():  # at initialisation two paths can agree by accident
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(("name", "dims", "kind", "full"), CASES)
def test_any_size_and_deterministic_eval(name: str, dims: int, kind: str, full: int) -> None:
    network = make(name, dims, kind, full).eval()
    for size in SIZES[dims]:
        x = torch.randn(2, 2, *size)
        with torch.no_grad():
            y = network(x)
            assert y.shape == (2, 3, *size)
            assert torch.isfinite(y).all()
            assert torch.equal(y, network(x))
            alone = torch.cat([network(x[:1]), network(x[1:])])
        torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "dims", "kind", "full"), CASES)
def test_every_parameter_gets_a_gradient(name: str, dims: int, kind: str, full: int) -> None:
    network = make(name, dims, kind, full, drop_path=0.0, deep_supervision=True).train()
    outputs = network(torch.randn(2, 2, *SIZES[dims][1]))
    assert isinstance(outputs, list)
    torch.stack([(y * torch.randn_like(y)).sum() for y in outputs]).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        if key.endswith("attention.kv.bias") or key.endswith("attention.qkv.bias"):
            continue  # softmax is unmoved by a key bias, a part of this vector
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_and_registration(name: str, dims: int) -> None:
    network = make(name, dims).eval()
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    other = build_network(name, spatial_dims=dims, in_channels=2, num_classes=3, **SMALL | {  # type: ignore[arg-type]
        "attention": ("lightweight",) * 3, "window": 3, "full_channels": 8})  # fmt: skip
    other.load_state_dict(torch.load(stream, weights_only=True), strict=True)
    x = torch.randn(1, 2, *SIZES[dims][1])
    with torch.no_grad():
        assert torch.equal(network(x), other.eval()(x))
    state = network.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values()]
    assert len(pointers) == len(set(pointers)), "a tensor is registered twice"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_deep_supervision_is_a_list_only_in_training(name: str, dims: int) -> None:
    x = torch.randn(1, 2, *(32,) * dims)
    assert isinstance(make(name, dims).train()(x), torch.Tensor)
    network = make(name, dims, deep_supervision=True)
    outputs = network.train()(x)
    assert [y.shape[2] for y in outputs] == [32, 8, 4]
    assert isinstance(network.eval()(x), torch.Tensor)


@pytest.mark.parametrize("dims", [2, 3])
def test_output_stays_channels_last(dims: int) -> None:
    fmt = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = make("cmt_unetr", dims).eval()
    grids: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(lambda _, inputs: grids.append(inputs[0]))
    with torch.no_grad():
        y = network(torch.randn(1, 2, *(24,) * dims))
    assert y.is_contiguous(memory_format=fmt)
    assert grids
    for grid in grids:
        assert grid.is_contiguous(memory_format=fmt), tuple(grid.shape)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"name": "cmt_unet"}, "cmt_unet"),
        ({"name": "cmt_unetr", "spatial_dims": 4}, "4"),
        ({"name": "cmt_unetr", "dimz": 3}, "dimz"),
        ({"name": "cmt_unetr", "depths": (1,)}, "depths has 1"),
        ({"name": "cmt_unetr", "norm": "group"}, "group"),
        ({"name": "cmt_unetr", "attention": ("x",) * 3}, "x"),
        ({"name": "cmt_unetr", "head_dim": 5}, "heads"),
    ],
)
def test_wrong_arguments_name_the_value(arguments: dict[str, object], where: str) -> None:
    arguments = {"spatial_dims": 3, "in_channels": 1, "num_classes": 2} | arguments
    with pytest.raises(NetworkError) as raised:
        build_network(**arguments)  # type: ignore[arg-type]
    assert where in str(raised.value)
