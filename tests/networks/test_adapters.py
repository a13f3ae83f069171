"""Low-rank adapters of a pretrained encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmt_med.base.errors import NetworkError
from cmt_med.networks import build_network
from cmt_med.networks.weights.adapters import add_adapters, merged, trained_parameters

TINY: dict[str, Any] = {"stem_channels": 8, "dims": (16, 24), "depths": (1, 1), "head_dim": 8,
                        "attention": ("lightweight", "global"), "kv_strides": (2, 1)}  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["cmt_unetr", "cmt_classifier", "cmt_detector", "cmt_detr", "cmt_ti"])
def test_only_adapters_and_heads_learn_and_merging_changes_nothing(name: str, dims: int) -> None:
    torch.manual_seed(0)
    options = (
        {"input_size": 64} if name == "cmt_ti" else TINY | ({"drop_path": 0.0} if name != "cmt_classifier" else {})
    )
    arguments: dict[str, Any] = {"spatial_dims": dims, "in_channels": 2, "num_classes": 3, **options}
    network, plain = build_network(name, **arguments), build_network(name, **arguments)
    plain.load_state_dict(network.state_dict())
    image = torch.randn(2, 2, *(32,) * dims)
    with torch.no_grad():
        before = network.eval()(image)
    add_adapters(network, 4)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), before)  # they begin with nothing
    learned, every = trained_parameters(network)
    encoder = network.encoder if hasattr(network, "encoder") else network.backbone
    own = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in own) < 0.6 * sum(p.numel() for p in encoder.parameters())
    assert learned < every
    frozen = {key: value.clone() for key, value in network.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step, only one side of the product has a gradient
        optimizer.zero_grad()
        network.eval()(image).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, dict(network.named_parameters())[key]) for key, value in frozen.items())
    with torch.no_grad():
        after = network.eval()(image)
    assert not torch.allclose(after, before)
    plain.load_state_dict(
        merged(network, {key: value.clone() for key, value in network.state_dict().items()}), strict=True
    )
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(image), after, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "rank"), [("monai_segresnet", 4), ("cmt_unetr", 4096)])
def test_nothing_to_adapt(name: str, rank: int) -> None:
    network = build_network(name, spatial_dims=2, in_channels=1, num_classes=2)
    with pytest.raises(NetworkError, match="nothing to adapt"):
        add_adapters(network, rank)
