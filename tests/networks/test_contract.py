"""One contract for every network, in 2D and 3D."""

from __future__ import annotations

import io
import math
import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmt_med.base.errors import NetworkError
from cmt_med.networks import CLASSIFIERS, DETECTORS, MASK_NETWORKS, NETWORKS, build_network

SETS = (*DETECTORS, *MASK_NETWORKS)
SOAK = bool(os.environ.get("CMT_SOAK"))
SIZES = {2: [(32, 48), (37, 21), (5, 64)], 3: [(16, 32, 16), (17, 11, 23), (3, 20, 9)]}
TINY: dict[str, Any] = {"stem_channels": 8, "dims": (16, 24, 32), "head_dim": 8, "window": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "cmt_ti": {"input_size": 64},
    "cmt_xs": {"input_size": 64},
    "cmt_s": {"input_size": 64},
    "cmt_b": {"input_size": 64},
    "cmt_classifier": TINY,
    "cmt_detector": TINY,
    "cmt_retinanet": TINY | {"channels": 16, "most": 10},
    "cmt_detr": TINY | {"channels": 16, "heads": 2, "queries": 12},
    "cmt_mask_queries": TINY | {"channels": 16, "heads": 2, "queries": 12},
    "cmt_unetr": TINY,
    "cmt_unetr_pyramid": TINY | {"dims": (16, 24, 32, 40)},
    "cmt_unetr_ti": {"input_size": 64},
    "cmt_unetr_xs": {"input_size": 64},
    "cmt_unetr_s": {"input_size": 64},
    "cmt_unetr_b": {"input_size": 64},
    "monai_swin_unetr": {"feature_size": 12},
    "monai_swin_unetr_v2": {"feature_size": 12},
    "monai_unetr": {"img_size": 64, "feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4},
    "monai_segresnet": {"init_filters": 8},
    "monai_dynunet": {"filters": (8, 16, 24, 32)},
    "monai_mednext": {"variant": "S"},
    "monai_densenet": {"init_features": 8, "growth_rate": 8, "block_config": (2, 2, 2, 2)},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"attention": ("window",) * 3},
    "global": {"attention": ("global",) * 3},
    "identity": {"attention": ("identity",) * 3},
    "half resolution": {"full_channels": 0},
    "dense": {"embedding": "dense"},
    "grouped": {"embedding": "grouped", "merging": "grouped"},
    "paper's embedding": {"embedding": "paper", "merging": "patch"},
    "linear": {"embedding": "linear", "norm": "layer"},
    "concat": {"skip": "concat"},
    "fusion": {"skip": "fusion"},
    "mlp": {"decoder": "mlp"},
    "mlp at half resolution": {"decoder": "mlp", "full_channels": 0, "norm": "batch"},
}
EVERY = [(name, "as preset") for name in NETWORKS] + [("cmt_unetr", variant) for variant in VARIANTS]
# The larger networks of the paper differ from cmt_ti in numbers alone: all of them have their turn in the soak.
LARGE = re.compile(r"cmt_(unetr_)?(xs|s|b)$")
USUAL = [(name, variant) for name, variant in EVERY if SOAK or not LARGE.match(name)]
OURS = [(name, variant) for name, variant in USUAL if name.startswith("cmt_")]
FAMILIES = [("cmt_ti", "as preset"), ("cmt_unetr_pyramid", "as preset"), ("cmt_unetr", "mlp")]

# What peers cannot do, and why; a peer that is not named here keeps the whole contract.
BOUNDED_SIZE = {
    "monai_unetr": "UNETR's position embedding belongs to the size it was built for; larger images are refused"
}
REGISTERED_TWICE = {"monai_dynunet": "DynUNet keeps its blocks as attributes and again in a nested skip list"}
DEEP_SUPERVISION = {"monai_dynunet", "monai_mednext"}

# Zero by construction: softmax over keys is unmoved by a key bias (the first half of kv, the middle third of qkv), and a
# norm over positions takes away a bias right before it, also one that reaches it through a linear layer or a sum alone.
KEY_BIAS = re.compile(r"(attention|layers\.\d)\.(kv|qkv)\.bias$")
BIAS_BEFORE_NORM = {
    "cmt_unetr": re.compile(
        r"stem\.(embed|conv)\.bias|stem\.embed\.project\.bias|\.conv[12]\.bias|shortcut\.bias|stem\.convs\.\d\.bias"
    ),
    "mlp": re.compile(r"stem\.(embed|conv)\.bias|stages\.2\.1\.feed_forward\.(norm|project)\.bias|decoder\.levels"),
    "paper": re.compile(
        r"attention\.reduce\.0\.bias|feed_forward\.(norm2|project)\.bias|stages\.3\.\d\.feed_forward\.norm3\.bias|head\.conv\.bias|conv\.conv[12]\.bias"
    ),
}


def settings(name: str, variant: str) -> dict[str, Any]:
    return OPTIONS[name] | VARIANTS.get(variant, {})


def make(name: str, dims: int, variant: str = "as preset", **more: Any) -> nn.Module:
    torch.manual_seed(1)
    network = build_network(name, spatial_dims=dims, in_channels=2, num_classes=3, **settings(name, variant) | more)
    with torch.no_grad():  # at initialisation two paths can agree by accident
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean().clamp(0.05, 1.0))
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network


def expected_shape(name: str, size: tuple[int, ...]) -> tuple[int, ...]:
    maps = [math.ceil(n / 4) for n in size]
    if name == "cmt_detr":
        return (2, min(12, math.prod(maps)), 3 + 2 * len(size))
    if name == "cmt_mask_queries":
        return (2, min(12, math.prod(maps)), 3 + 2 * len(size) + math.prod(math.ceil(n / 2) for n in size))
    if name == "cmt_retinanet":
        return (2, 10, 3 + 2 * len(size))
    if name == "cmt_detector":
        return (2, 3 + 2 * len(size), *maps)
    return (2, 3) if name in CLASSIFIERS else (2, 3, *size)


def as_list(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_any_size_and_deterministic_eval(name: str, variant: str, dims: int) -> None:
    network = make(name, dims, variant).eval()
    odd = SIZES[dims][1:2]  # peers are MONAI's, whose tests look at sizes; here one tells whether the contract holds
    for size in SIZES[dims] if SOAK or not (LARGE.match(name) or name.startswith("monai_")) else odd:
        x = torch.randn(2, 2, *size)
        with torch.no_grad():
            y = network(x)
            assert y.shape == expected_shape(name, size)
            assert torch.isfinite(y).all()
            assert y.std() > 0
            assert torch.equal(y, network(x))
            alone = torch.cat([network(x[:1]), network(x[1:])])
        scale = float(y.abs().max())
        torch.testing.assert_close(y / scale, alone / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), OURS)
def test_every_parameter_gets_a_gradient(name: str, variant: str, dims: int) -> None:
    more: dict[str, Any] = (
        {"dropout": 0.0} if name in CLASSIFIERS else {} if name in SETS else {"deep_supervision": True}
    )
    network = make(name, dims, variant, drop_path=0.0, **more).double().train()
    size = (
        (32, 64) if dims == 2 else (33, 9, 33)
    )  # two keys at least along depth and plane, or queries would have no gradient
    hints: tuple[Tensor, ...] = ()
    if name in ("cmt_detr", "cmt_mask_queries"):  # RetinaNet samples anchors, which may be of some grids alone
        hints = (torch.tensor([[[2.0] * dims + [8.0] * dims] * 3] * 2), torch.tensor([[0, 1, -1], [2, 0, 1]]))
    outputs = as_list(network(torch.randn(2, 2, *size, dtype=torch.float64), *hints))
    torch.stack([(y * torch.randn_like(y)).sum() for y in outputs]).sum().backward()
    kind = "mlp" if "mlp" in variant else "paper" if "input_size" in OPTIONS[name] else "cmt_unetr"
    largest = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        grad = parameter.grad
        if KEY_BIAS.search(key):
            part = grad.chunk(3 if "qkv" in key else 2)
            assert part[-1].abs().max() > 1e-9 * largest, key
        elif not (key.endswith("bias") and BIAS_BEFORE_NORM[kind].search(key)):
            assert grad.abs().max() > 1e-9 * largest, key


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), USUAL)
def test_round_trip_and_registration(name: str, variant: str, dims: int) -> None:
    network = make(name, dims, variant).eval()
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    other = build_network(name, spatial_dims=dims, in_channels=2, num_classes=3, **settings(name, variant))
    other.load_state_dict(torch.load(stream, weights_only=True), strict=True)
    x = torch.randn(1, 2, *SIZES[dims][1])
    with torch.no_grad():
        assert torch.equal(network(x), other.eval()(x))
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values()]
    assert (len(pointers) == len(set(pointers))) == (name not in REGISTERED_TWICE)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "name", [name for name, variant in USUAL if name not in (*CLASSIFIERS, *SETS) and variant == "as preset"]
)
def test_deep_supervision_is_a_list_only_in_training(name: str, dims: int) -> None:
    x = torch.randn(1, 2, *(64,) * dims)
    assert isinstance(make(name, dims).train()(x), Tensor)
    if name.startswith("monai_") and name not in DEEP_SUPERVISION:
        with pytest.raises(NetworkError, match="no deep supervision"):
            make(name, dims, deep_supervision=True)
        return
    network = make(name, dims, deep_supervision=True)
    outputs = network.train()(x)
    assert isinstance(outputs, list)
    assert len(outputs) >= 2
    assert outputs[0].shape[2:] == x.shape[2:]
    if name.startswith("cmt_"):
        assert [y.shape[2] for y in outputs] == [64, 16, 8]
    assert isinstance(network.eval()(x), Tensor)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), FAMILIES)
def test_checkpointing_equals_eager(name: str, variant: str, dims: int) -> None:
    eager = make(name, dims, variant).train()
    recomputing = make(name, dims, variant, checkpointing=True).train()
    recomputing.load_state_dict(eager.state_dict())
    x = torch.randn(2, 2, *SIZES[dims][0])
    gradients = []
    for network in (eager, recomputing):
        torch.manual_seed(5)  # stochastic depth and dropout draw the same
        y = network(x)
        y.square().mean().backward()
        # buffers too: a recomputed BatchNorm must not count the batch a second time
        gradients.append([y.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "variant"), FAMILIES)
def test_bf16_autocast_stays_close(name: str, variant: str, dims: int) -> None:
    network = make(name, dims, variant).eval()
    x = torch.randn(1, 2, *SIZES[dims][0])
    with torch.no_grad():
        wanted = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = network(x).float()
    error = float((got - wanted).norm() / wanted.norm())
    assert 0 < error < 0.1  # bf16 has 8 bits; zero would mean that autocast did nothing


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["cmt_unetr", "cmt_unetr_pyramid", "cmt_unetr_ti"])
def test_output_stays_channels_last(name: str, dims: int) -> None:
    fmt = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = make(name, dims).eval()
    grids: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(lambda _, inputs: grids.append(inputs[0]))
    with torch.no_grad():
        y = network(torch.randn(1, 2, *(64,) * dims))
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
        ({"name": "cmt_unetr", "embedding": "convs"}, "convs"),
        ({"name": "cmt_unetr", "merging": "convs"}, "convs"),
        ({"name": "cmt_unetr", "decoder": "unet"}, "unet"),
        ({"name": "cmt_unetr", "skip": "add"}, "add"),
        ({"name": "cmt_unetr", "skip": "fusion", "stem_channels": 6}, "channels=6"),
        ({"name": "cmt_unetr", "num_classes": None}, "number of classes"),
        ({"name": "cmt_s", "deep_supervision": True}, "deep_supervision"),
        ({"name": "cmt_s", "input_size": 100}, "100"),
        ({"name": "cmt_s", "depth_padding": "wrap"}, "wrap"),
        ({"name": "monai_unetr", "hidden_size": 50}, "hidden_size"),
    ],
)
def test_wrong_arguments_name_the_value(arguments: dict[str, object], where: str) -> None:
    arguments = {"spatial_dims": 3, "in_channels": 1, "num_classes": 2} | arguments
    with pytest.raises(NetworkError) as raised:
        build_network(**arguments)  # type: ignore[arg-type]
    assert where in str(raised.value)


def test_a_fixed_size_is_named_when_it_is_too_small() -> None:
    with pytest.raises(NetworkError, match=r"\(65, 64\).*\(64, 64\)|size \(65, 64\)"):
        make("monai_unetr", 2)(torch.randn(1, 2, 65, 64))


def test_what_is_bounded_in_size_says_so() -> None:
    for name in NETWORKS:
        network = make(name, 2, "as preset").eval()
        x = torch.randn(1, 2, 70, 33)
        if name not in BOUNDED_SIZE:
            assert network(x).shape[-2:] == (70, 33) or name in (*CLASSIFIERS, *SETS)
            continue
        with pytest.raises(NetworkError, match="64"):
            network(x)


def test_grouped_layers_have_groups() -> None:
    network = build_network(
        "cmt_unetr_pyramid", spatial_dims=2, in_channels=1, num_classes=2, stem_channels=44, dims=(64, 96, 160, 256)
    )
    groups = [part.groups for part in network.encoder.stem.modules() if isinstance(part, nn.Conv2d)]
    assert groups == [4, 4, 4]  # 44 has no divisor 5
    assert [merge.conv.groups for merge in network.encoder.merges] == [2, 4, 4, 8]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"drop_path": 1.0}, "drop_path"),
        ({"head_dim": 0}, "head_dim"),
        ({"window": 0}, "window"),
        ({"depths": (0, 0, 0)}, "depths"),
        ({"kv_strides": (4, 2, 0)}, "kv_strides"),
        ({"full_channels": -1}, "full_channels"),
        ({"decoder": "mlp", "skip": "fusion"}, "skip"),
        ({"decoder": "mlp", "skip": "nonsense"}, "skip"),
        ({"depth_padding": "reflect"}, "depth_padding"),
    ],
)
def test_settings_that_could_only_fail_later_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(NetworkError, match=where):
        build_network("cmt_unetr", spatial_dims=3, in_channels=1, num_classes=2, **TINY | options)


def test_a_single_position_is_refused_before_batch_norm_does() -> None:
    network = build_network("cmt_unetr_ti", spatial_dims=2, in_channels=1, num_classes=2, input_size=32).train()
    with pytest.raises(NetworkError, match="larger patches"):
        network(torch.randn(1, 1, 32, 20))
    assert network(torch.randn(2, 1, 32, 20)).shape == (2, 2, 32, 20)


def test_deep_supervision_of_a_single_stage_is_a_list_of_one() -> None:
    options = {"dims": (16,), "depths": (1,), "attention": ("global",), "kv_strides": (1,), "stem_channels": 8}
    network = build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=2, deep_supervision=True, **options)
    found = network.train()(torch.randn(1, 1, 16, 16))
    assert isinstance(found, list)
    assert len(found) == 1


@pytest.mark.fault(31)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["cmt_unetr", "cmt_ti", "monai_segresnet"])
def test_inputs_of_another_kind(name: str, dims: int) -> None:
    """Said with the shapes, and not by a matrix product somewhere inside."""
    network = build_network(name, spatial_dims=dims, in_channels=2, num_classes=3).eval()
    image = torch.zeros(1, 2, *[32] * dims)
    for wrong, part in (
        (image.numpy(), "ndarray"), ([image], "list"), (image[0], str(tuple(image[0].shape))), (image[None], "shape"),
        (image[:, :1], str(tuple(image[:, :1].shape))), (torch.cat([image, image], 1), "shape"), (image[:0], "shape"),
        (image[..., :0], "shape"), (image.double(), "float64"), (image.long(), "int64"), (image.bool(), "bool"),
    ):  # fmt: skip
        with pytest.raises(NetworkError) as raised:
            network(wrong)
        assert part in raised.value.where
        assert raised.value.why
        assert raised.value.fix
    with pytest.raises(NetworkError, match="takes one tensor"):
        network(image, image)
    assert network(image).shape[:2] == (1, 3)
