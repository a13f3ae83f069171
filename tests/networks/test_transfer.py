"""Starting from other weights: the account is exact, and each tensor is what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmt_med.base.errors import NetworkError
from cmt_med.networks import DETECTORS, MASK_NETWORKS, NETWORKS, build_network
from cmt_med.networks.weights.frozen import freeze_encoder, levels_above
from cmt_med.networks.weights.transfer import ChannelMap, transfer
from tests.networks.test_contract import LARGE, OPTIONS


def make(name: str, dims: int, channels: int, classes: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = build_network(name, spatial_dims=dims, in_channels=channels, num_classes=classes, **OPTIONS[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if not LARGE.match(name)])
def test_every_name_is_accounted_for_once(name: str, dims: int) -> None:
    there, here = make(name, dims, 2, 3, 0), make(name, dims, 2, 4, 1)
    before = {key: value.clone() for key, value in here.state_dict().items()}
    account = transfer(here, there.state_dict() | {"stranger.weight": torch.zeros(2)})
    own = here.state_dict()
    assert sorted([*account.matched, *account.adapted, *account.skipped, *account.missing]) == sorted(own)
    assert account.left_over == ["stranger.weight"]
    assert account.missing == []
    for key, value in own.items():
        expected = there.state_dict()[key] if key in account.taken else before[key]
        assert torch.equal(value, expected), key
    heads = {key for key, value in own.items() if value.shape != there.state_dict()[key].shape}
    assert set(account.skipped) == heads
    assert heads, "another number of classes must show somewhere"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [("cmt_unetr", {}), ("cmt_unetr", {"embedding": "dense"}), ("cmt_unetr", {"embedding": "grouped"}), ("cmt_unetr_ti", {}),
     ("cmt_unetr", {"embedding": "paper"}), ("cmt_unetr_pyramid", {})],
)  # fmt: skip
def test_channels_by_name_give_the_same_output(name: str, dims: int, options: dict[str, Any]) -> None:
    """A network of (b, a) that starts from one of (a, b) says of a swapped image what that one says of the image."""

    def of(channels: int, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(
            name, spatial_dims=dims, in_channels=channels, num_classes=3, **OPTIONS[name] | options
        ).eval()

    there = of(2, 0)
    image = torch.randn(1, 2, *(32,) * dims)
    swapped = of(2, 1)
    account = transfer(swapped, there.state_dict(), ChannelMap.by_name(["b", "a"], ["a", "b"], dims))
    assert account.skipped == {}
    assert account.adapted
    assert all("channel" in how for how in account.adapted.values())
    with torch.no_grad():
        torch.testing.assert_close(swapped(image.flip(1)), there(image), rtol=1e-4, atol=1e-5)
        # A third channel gets the mean of the two kernels: zeros in it change nothing.
        wider = of(3, 2)
        transfer(wider, there.state_dict(), ChannelMap.by_name(["a", "new", "b"], ["a", "b"], dims))
        zeros = torch.zeros_like(image[:, :1])
        torch.testing.assert_close(
            wider(torch.cat([image[:, :1], zeros, image[:, 1:]], 1)), there(image), rtol=1e-4, atol=1e-5
        )
        # One channel that is the mean of two: as if both were given half of it.
        narrow = of(1, 3)
        transfer(narrow, there.state_dict(), ChannelMap.by_name(["new"], ["a", "b"], dims))
        one = image[:, :1]
        torch.testing.assert_close(narrow(one), there(torch.cat([one, one], 1) / 2), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_started_from() -> None:
    network = make("cmt_unetr", 2, 1, 2, 0)
    with pytest.raises(NetworkError, match="none of the weights fits"):
        transfer(network, make("monai_segresnet", 2, 1, 2, 0).state_dict())
    broken = network.state_dict() | {"encoder.stem.embed.weight": torch.full((8, 4), float("nan"))}
    with pytest.raises(NetworkError, match="not finite"):
        transfer(network, broken)


def test_levels_of_the_encoder() -> None:
    network = make("cmt_unetr", 3, 1, 2, 0)
    levels = levels_above(network)
    assert levels.keys() == {name for name, _ in network.named_parameters()}
    by_prefix = {name.split(".")[0] + "." + ".".join(name.split(".")[1:3]): level for name, level in levels.items()}
    assert by_prefix["encoder.stages.2"] == 1
    assert by_prefix["encoder.stages.0"] == 3
    assert by_prefix["encoder.merges.0"] == 3
    assert {level for name, level in levels.items() if name.startswith("decoder.")} == {0}
    assert {level for name, level in levels.items() if name.startswith("encoder.stem.")} == {4}


@pytest.mark.parametrize("name", ["monai_segresnet", "monai_densenet"])
def test_networks_without_an_encoder_are_refused(name: str) -> None:
    network = make(name, 2, 1, 2, 0)
    with pytest.raises(NetworkError, match="no encoder"):
        freeze_encoder(network)
    with pytest.raises(NetworkError, match="no stages"):
        levels_above(network)


@pytest.mark.parametrize("name", [*DETECTORS, *MASK_NETWORKS, "cmt_classifier"])
def test_every_head_starts_from_the_encoder_of_another(name: str) -> None:
    """And but for the classifier from the decoder's blocks, too: names are the same."""
    sizes = {key: OPTIONS["cmt_unetr"][key] for key in ("stem_channels", "dims", "head_dim", "window")}
    there = build_network("cmt_unetr", spatial_dims=2, in_channels=1, num_classes=3, **sizes)
    here = build_network(name, spatial_dims=2, in_channels=1, num_classes=2, **sizes)
    account = transfer(here, there.state_dict())
    encoder = {key for key in here.state_dict() if key.startswith("encoder.")}
    assert encoder
    assert encoder <= set(account.matched)
    assert any(key.startswith("decoder.ups.") for key in account.matched) == (name != "cmt_classifier")
