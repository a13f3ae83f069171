"""A small model with fixed random weights: its mask depends on every voxel around, and needs no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cmt_med.config.schema import Inference
from cmt_med.inference.model import ModelCard, save_model
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.networks import build_network

NETWORK: dict[str, Any] = {
    "name": "cmt_unetr", "spatial_dims": 3, "in_channels": 2, "num_classes": 3, "stem_channels": 8, "dims": [8, 16],
    "depths": [1, 1], "head_dim": 8, "attention": ["lightweight", "window"], "kv_strides": [2, 1], "full_channels": 4,
    "drop_path": 0.0,
}  # fmt: skip


LABELS = ("one", "two")


def random_model(*, spacing: list[float] | None = None, **inference: Any) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    """Channels a and b; labels one and two."""
    torch.manual_seed(0)
    network = build_network(**NETWORK).eval()
    with torch.no_grad():  # all labels are found about equally often
        logits = network(torch.randn(1, 2, 16, 16, 16))
        bias = [p for name, p in network.named_parameters() if name.endswith("bias") and p.shape == (3,)][-1]
        bias -= logits.median(4)[0].median(3)[0].median(2)[0][0]
    card = ModelCard(
        name="random", network=NETWORK, channels=["a", "b"], labels={"background": 0, "one": 1, "two": 2}, regions=None,
        preprocessing={"spacing": spacing, "crop_foreground": False, "normalise": "image", "clip": None,
                       "foreground_channel": False},
        slice_axes=[], mirrored_axes=[], window=[16, 16, 16], patch=[8, 8, 8], inference=Inference(**inference),
        provenance={}, validation=None,
    )  # fmt: skip
    return card, network.state_dict()


def random_ensemble(**settings: Any) -> Ensemble:
    """The model, ready for cases."""
    card, weights = random_model(**settings)
    network = build_network(**card.network)
    network.load_state_dict(weights)
    return Ensemble([Predictor(network, card, torch.device("cpu"))])


def save_random_model(folder: Path) -> Path:
    """The model as ``infer --model`` takes it."""
    save_model(folder, *random_model())
    return folder
