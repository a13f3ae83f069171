"""The paper's networks: sizes, the authors' checkpoint layout, and inflation."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmt_med.base.errors import DataError, NetworkError
from cmt_med.networks import build_network
from cmt_med.networks.encoders.cmt import PAPER, Preset
from cmt_med.networks.weights.pretrained import inflate, load_official_cmt, load_pretrained

# The paper's table as measured on the authors' code: parameters in M with 1000 classes, GMAC at the native size.
TABLE = {"cmt_ti": (9.492, 0.639), "cmt_xs": (15.247, 1.547), "cmt_s": (26.256, 4.032), "cmt_b": (45.715, 9.317)}
KV = (8, 4, 2, 1)
HEADS = (1, 2, 4, 8)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_multiply_accumulates(name: str) -> None:
    network = build_network(name, spatial_dims=2, in_channels=3, num_classes=1000).eval()
    parameters, gmac = TABLE[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)
    size = PAPER[name].input_size
    # the counter knows no fused attention on a CPU, so attention is counted in its plain form
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


def official_layout(preset: Preset, size: int, classes: int = 1000) -> dict[str, Tensor]:
    """Random weights under the authors' names, written down from the layout's description."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        fan = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape) * fan**-0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0])

    def norm(name: str, width: int, *, batch: bool) -> None:
        state[f"{name}.weight"] = 1.0 + 0.1 * torch.randn(width)
        state[f"{name}.bias"] = 0.1 * torch.randn(width)
        if batch:
            state[f"{name}.running_mean"] = 0.1 * torch.randn(width)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for i in range(3):
        layer(f"stem_conv{i + 1}", preset.stem, 3 if i == 0 else preset.stem, 3, 3)
        norm(f"stem_norm{i + 1}", preset.stem, batch=True)
    before = preset.stem
    for stage, letter in enumerate("abcd"):
        dim, edge = preset.dims[stage], size // (4 * 2**stage)
        layer(f"patch_embed_{letter}.proj", dim, before, 2, 2)
        norm(f"patch_embed_{letter}.norm", dim, batch=False)
        state[f"relative_pos_{letter}"] = torch.randn(HEADS[stage], edge**2, (edge // KV[stage]) ** 2)
        hidden = int(dim * preset.ratio)
        for i in range(preset.depths[stage]):
            block = f"blocks_{letter}.{i}"
            norm(f"{block}.norm1", dim, batch=False)
            for part in ("q", "k", "v", "proj"):
                layer(f"{block}.attn.{part}", dim, dim)
            if KV[stage] > 1:
                layer(f"{block}.attn.sr.0", dim, 1, KV[stage], KV[stage])
                norm(f"{block}.attn.sr.1", dim, batch=True)
            norm(f"{block}.norm2", dim, batch=False)
            layer(f"{block}.mlp.conv1.0", hidden, dim, 1, 1)
            norm(f"{block}.mlp.conv1.2", hidden, batch=True)
            layer(f"{block}.mlp.proj", hidden, 1, 3, 3)
            norm(f"{block}.mlp.proj_bn", hidden, batch=True)
            layer(f"{block}.mlp.conv2.0", dim, hidden, 1, 1)
            norm(f"{block}.mlp.conv2.1", dim, batch=True)
            layer(f"{block}.proj", dim, 1, 3, 3)
        before = dim
    layer("_fc", 1280, before, 1, 1)
    norm("_bn", 1280, batch=True)
    layer("head", classes, 1280)
    return state


def official_forward(state: dict[str, Tensor], preset: Preset, x: Tensor) -> Tensor:
    """The paper's network, recomputed from its equations on the authors' names, in eval mode."""

    def affine(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def bn(name: str, y: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, *affine(name))

    def ln(name: str, tokens: Tensor, eps: float) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], *affine(name), eps)

    for i in range(3):
        x = F.conv2d(x, *affine(f"stem_conv{i + 1}"), stride=2 if i == 0 else 1, padding=1)
        x = bn(f"stem_norm{i + 1}", F.gelu(x))
    for stage, letter in enumerate("abcd"):
        x = F.conv2d(x, *affine(f"patch_embed_{letter}.proj"), stride=2)
        height, width = x.shape[2:]
        x = ln(f"patch_embed_{letter}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        x = x.transpose(1, 2).unflatten(2, (height, width))
        heads, k = HEADS[stage], KV[stage]
        for i in range(preset.depths[stage]):
            block = f"blocks_{letter}.{i}"
            x = x + F.conv2d(x, *affine(f"{block}.proj"), padding=1, groups=x.shape[1])
            tokens = x.flatten(2).transpose(1, 2)
            normed = ln(f"{block}.norm1", tokens, 1e-6)
            reduced = normed
            if k > 1:
                grid = normed.transpose(1, 2).unflatten(2, (height, width))
                grid = F.conv2d(grid, *affine(f"{block}.attn.sr.0"), stride=k, groups=x.shape[1])
                reduced = bn(f"{block}.attn.sr.1", grid).flatten(2).transpose(1, 2)
            q, key, v = (
                F.linear(t, *affine(f"{block}.attn.{part}")).unflatten(2, (heads, -1)).transpose(1, 2)
                for part, t in (("q", normed), ("k", reduced), ("v", reduced))
            )
            logits = q @ key.transpose(-1, -2) * q.shape[-1] ** -0.5 + state[f"relative_pos_{letter}"]
            mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
            tokens = tokens + F.linear(mixed, *affine(f"{block}.attn.proj"))
            y = ln(f"{block}.norm2", tokens, 1e-6).transpose(1, 2).unflatten(2, (height, width))
            y = bn(f"{block}.mlp.conv1.2", F.gelu(F.conv2d(y, *affine(f"{block}.mlp.conv1.0"))))
            y = y + F.conv2d(y, *affine(f"{block}.mlp.proj"), padding=1, groups=y.shape[1])
            y = bn(f"{block}.mlp.proj_bn", F.gelu(y))
            y = bn(f"{block}.mlp.conv2.1", F.conv2d(y, *affine(f"{block}.mlp.conv2.0")))
            x = tokens.transpose(1, 2).unflatten(2, (height, width)) + y
    x = bn("_bn", F.conv2d(x, *affine("_fc")))
    return F.linear((x * x.sigmoid()).mean((2, 3)), *affine("head"))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("other_size", [False, True])
@pytest.mark.parametrize("name", PAPER)
def test_official_logits(name: str, other_size: bool) -> None:
    preset = PAPER[name]
    size = 96 if other_size else preset.input_size
    state = official_layout(preset, size)
    network = load_official_cmt(state, name).eval()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert relative_error(network(x), official_forward(state, preset, x)) < 1e-4
        assert network(torch.randn(1, 3, 75, 130)).shape == (1, 1000)


def test_checkpoint_files_and_adapted_ends(tmp_path: Path) -> None:
    preset = PAPER["cmt_ti"]
    state = official_layout(preset, 160)
    torch.save({"model": state}, tmp_path / "cmt_ti.pth")
    x = torch.randn(1, 1, 160, 160)
    with torch.no_grad():
        wanted = load_official_cmt(state, "cmt_ti").eval()(x.repeat(1, 3, 1, 1))
        grey = load_official_cmt(tmp_path / "cmt_ti.pth", "cmt_ti", in_channels=1).eval()
        assert relative_error(grey(x), wanted) < 1e-4  # summed kernels on one channel are the kernels on three copies
        four = load_official_cmt(state, "cmt_ti", in_channels=4).eval()
        ones = [torch.ones(1, n, 160, 160) for n in (3, 4)]
        assert four(ones[1]).shape == (1, 1000)
        fewer = load_official_cmt(state, "cmt_ti", num_classes=5).eval()
        assert fewer(ones[0]).shape == (1, 5)
        alone = load_official_cmt(state, "cmt_ti", num_classes=None).eval()
        assert [tuple(grid.shape[1:]) for grid in alone(ones[0])] == [
            (16, 80, 80), (46, 40, 40), (92, 20, 20), (184, 10, 10), (368, 5, 5)]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "error", "where"),
    [
        (lambda s: s.pop("blocks_c.3.attn.q.bias"), NetworkError, "stages.2.3.attention.q.bias"),
        (lambda s: s.update({"blocks_e.0.proj.bias": torch.zeros(3)}), NetworkError, "blocks_e"),
        (lambda s: s.update({"_fc.weight": torch.zeros(1280, 99, 1, 1)}), NetworkError, "(1280, 99)"),
        (lambda s: s.pop("relative_pos_a"), NetworkError, "relative_pos_a"),
        (lambda s: s.pop("relative_pos_c"), NetworkError, "positions.2.bias_table"),
        (lambda s: s.pop("stem_conv1.weight"), NetworkError, "stem.convs.0.weight"),
        (lambda s: s.update({"epoch": 3}), DataError, "weights"),
    ],
)
def test_damaged_checkpoints_are_named(damage: Any, error: type[Exception], where: str) -> None:
    state: dict[str, Any] = official_layout(PAPER["cmt_ti"], 160)
    damage(state)
    with pytest.raises(error) as raised:
        load_official_cmt(state, "cmt_ti")
    assert where in str(raised.value)
    if where.startswith("_fc") or "(1280" in where:
        return  # the classifier's: an encoder does not look at it
    with pytest.raises(error) as raised:
        load_pretrained(build_network("cmt_unetr_ti", spatial_dims=2, in_channels=1, num_classes=2), state)
    assert where in str(raised.value)


def test_a_checkpoint_of_another_network_or_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="not a checkpoint of cmt_xs"):
        load_official_cmt(official_layout(PAPER["cmt_ti"], 160), "cmt_xs")
    (tmp_path / "x.pth").write_bytes(b"nothing")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors", tmp_path / "absent.pth"):
        with pytest.raises(DataError, match="E_WEIGHTS"):
            load_official_cmt(path, "cmt_ti")


@pytest.mark.parametrize("mode", ["centre", "average"])
@pytest.mark.parametrize("name", PAPER)
def test_inflated_features_of_a_depth_constant_volume(name: str, mode: str) -> None:
    state = official_layout(PAPER[name], 64)
    planar = load_official_cmt(state, name, num_classes=None).eval()
    solid = build_network(name, spatial_dims=3, in_channels=3, num_classes=None, input_size=64)
    inflate(planar.state_dict(), solid, mode=mode).eval()
    image = torch.randn(1, 3, 64, 96)
    depth = 32 if mode == "average" else 37
    with torch.no_grad():
        flat, deep = planar(image), solid(image.unsqueeze(2).expand(-1, -1, depth, -1, -1))
    for plane, grid in zip(flat, deep, strict=True):
        assert relative_error(grid, plane.unsqueeze(2).expand_as(grid)) < 1e-4


def test_inflated_logits_from_the_file_to_the_volume() -> None:
    state = official_layout(PAPER["cmt_ti"], 96)
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        wanted = load_official_cmt(state, "cmt_ti").eval()(image)
        got = load_official_cmt(state, "cmt_ti", spatial_dims=3).eval()(image.unsqueeze(2).repeat(1, 1, 32, 1, 1))
    assert relative_error(got, wanted) < 1e-4


SMALL: dict[str, Any] = {"in_channels": 2, "num_classes": 3, "stem_channels": 16, "dims": (16, 32, 48), "head_dim": 8,
                         "window": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cmt_unetr", {}),
        ("cmt_unetr", {"embedding": "dense", "skip": "concat"}),
        ("cmt_unetr", {"attention": ("window",) * 3, "full_channels": 0}),
        ("cmt_unetr", {"attention": ("global", "identity", "window"), "embedding": "grouped", "merging": "grouped"}),
        ("cmt_unetr", {"embedding": "linear", "merging": "patch", "skip": "fusion", "norm": "layer"}),
        ("cmt_unetr", {"embedding": "paper", "decoder": "mlp", "norm": "batch"}),
        ("cmt_unetr_pyramid", {"dims": (16, 32, 48, 64)}),
        ("cmt_unetr_ti", {"stem_channels": None, "dims": None, "head_dim": None, "window": None, "input_size": 64}),
    ],
)
@pytest.mark.parametrize(("mode", "depths"), [("centre", (17, 32)), ("average", (32,))])
def test_segmentation_networks_inflate_whole(
    name: str, options: dict[str, Any], mode: str, depths: tuple[int, ...]
) -> None:
    settings = {key: value for key, value in (SMALL | options).items() if value is not None}
    torch.manual_seed(0)
    planar = build_network(name, spatial_dims=2, **settings).eval()
    with torch.no_grad():
        for parameter in planar.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    solid = inflate(planar.state_dict(), build_network(name, spatial_dims=3, **settings), mode=mode).eval()
    padding = {"depth_padding": "replicate"} if mode == "average" else {}
    again = build_network(name, spatial_dims=3, **settings | padding).eval()
    again.load_state_dict(solid.state_dict())
    image = torch.randn(1, 2, 64, 48)
    with torch.no_grad():
        flat = planar(image)
        for depth in depths:
            volume = image.unsqueeze(2).repeat(1, 1, depth, 1, 1)
            for network in (solid, again):
                deep = network(volume)
                assert relative_error(deep, flat.unsqueeze(2).expand_as(deep)) < 1e-4


@pytest.mark.parametrize("dims", [2, 3])
def test_pretrained_encoder_of_a_segmentation_network(dims: int) -> None:
    state = official_layout(PAPER["cmt_ti"], 64)
    network = build_network("cmt_unetr_ti", spatial_dims=dims, in_channels=1, num_classes=2, input_size=64)
    before = copy.deepcopy(network.decoder.state_dict())
    load_pretrained(network, state).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        wanted = load_official_cmt(state, "cmt_ti", in_channels=1, num_classes=None).eval()(image)
        got = network.encoder(image if dims == 2 else image.unsqueeze(2).repeat(1, 1, 32, 1, 1))
    for plane, grid in zip(wanted, got, strict=True):
        assert relative_error(grid, plane if dims == 2 else plane.unsqueeze(2).expand_as(grid)) < 1e-4
    for key, tensor in network.decoder.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_pretrained_weights_at_another_size_and_for_another_network() -> None:
    state = official_layout(PAPER["cmt_ti"], 64)
    network = build_network("cmt_unetr_ti", spatial_dims=3, in_channels=4, num_classes=2, input_size=96)
    load_pretrained(network, state)
    assert network.encoder.positions[0].bias_table.shape == (1, 24 * 24, 9)
    with pytest.raises(NetworkError, match="no encoder that official weights fit"):
        load_pretrained(build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=2), state)
    with pytest.raises(NetworkError, match="inflated"):
        load_pretrained(build_network("cmt_unetr_s", spatial_dims=3, in_channels=1, num_classes=2), state)


def test_siblings_only() -> None:
    state = official_layout(PAPER["cmt_ti"], 64)
    other = build_network("cmt_xs", spatial_dims=3, in_channels=3, num_classes=1000, input_size=64)
    with pytest.raises(NetworkError, match=r"inflated|not this network's"):
        inflate(state, other)
    with pytest.raises(NetworkError, match="mean"):
        inflate(state, other, mode="mean")
    for different in ({"in_channels": 4}, {"num_classes": 2000}):  # twice the classes are no two planes of a cell
        settings = {"in_channels": 3, "num_classes": 1000, "input_size": 64} | different
        solid = build_network("cmt_ti", spatial_dims=3, **settings)
        before = copy.deepcopy(solid.state_dict())
        with pytest.raises(NetworkError, match="inflated"):
            inflate(state, solid)
        assert all(torch.equal(tensor, before[key]) for key, tensor in solid.state_dict().items())


def test_what_cannot_be_inflated_is_refused() -> None:
    planar = build_network("monai_segresnet", spatial_dims=2, in_channels=2, num_classes=3)
    volume = build_network("monai_segresnet", spatial_dims=3, in_channels=2, num_classes=3)
    with pytest.raises(NetworkError, match="averaging is for this package's networks"):
        inflate(planar.state_dict(), volume, mode="average")
    with pytest.raises(NetworkError, match="not for volumes"):
        inflate(planar.state_dict(), planar)
    with pytest.raises(NetworkError, match="are of volumes already"):
        inflate(volume.state_dict(), volume)
    with pytest.raises(NetworkError, match="no weights"):
        inflate(planar, volume)  # type: ignore[arg-type]


@pytest.mark.parametrize(("argument", "value"), [("in_channels", 0), ("in_channels", 2.5), ("in_channels", "3"),
                                                 ("num_classes", 0), ("num_classes", -3), ("num_classes", True)])  # fmt: skip
def test_numbers_of_channels_are_checked(argument: str, value: object) -> None:
    arguments: dict[str, Any] = {"in_channels": 3, "num_classes": 5} | {argument: value}
    for name in ("cmt_ti", "cmt_unetr", "monai_segresnet"):
        with pytest.raises(NetworkError, match=argument):
            build_network(name, spatial_dims=2, **arguments)
    with pytest.raises(NetworkError, match=argument):
        load_official_cmt({}, "cmt_ti", **arguments)


def test_a_switch_takes_no_words() -> None:
    with pytest.raises(NetworkError, match="checkpointing is a switch"):
        build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=1, checkpointing="false")
    with pytest.raises(NetworkError, match="deep_supervision is a switch"):
        build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=1, deep_supervision="yes")  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="ffn_ratio=-1"):
        build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=1, ffn_ratio=-1)


@pytest.mark.parametrize("attention", ["window", 3])
def test_stages_take_a_list(attention: object) -> None:
    with pytest.raises(NetworkError, match="attention="):
        build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=1, attention=attention)
    with pytest.raises(NetworkError, match="dims needs a value for each stage"):
        build_network(
            "cmt_unetr", spatial_dims=2, in_channels=1, num_classes=1, dims=(), depths=(), attention=(), kv_strides=()
        )
