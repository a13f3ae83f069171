"""Cross-scale fusion against its formula, and at the start."""

from __future__ import annotations

import torch

from cmt_med.blocks.fusion import CrossScaleFusion


def test_starts_as_the_plain_sum() -> None:
    torch.manual_seed(0)
    layer = CrossScaleFusion(channels=8, levels=3, heads=2)
    levels = [torch.randn(2, 8, 4, 5) for _ in range(3)]
    torch.testing.assert_close(layer(levels), levels[0] + levels[1] + levels[2])


def test_equals_the_formula_location_by_location() -> None:
    torch.manual_seed(0)
    layer = CrossScaleFusion(channels=6, levels=3, heads=2, key_dim=3).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    levels = [torch.randn(1, 6, 2, 3, 2, dtype=torch.float64) for _ in range(3)]
    got = layer(levels)
    for place in [(0, 0, 0), (1, 2, 1), (0, 1, 1)]:
        vectors = [level[(0, slice(None), *place)] for level in levels]
        query = layer.query.weight @ vectors[0] + layer.query.bias
        for head in range(2):
            rows = slice(3 * head, 3 * head + 3)
            scores = torch.stack(
                [
                    query[rows] @ (layer.key.weight @ v)[rows] / 3**0.5 + layer.level_bias[i, head]
                    for i, v in enumerate(vectors)
                ]
            )
            part = slice(3 * head, 3 * head + 3)
            wanted = 3 * sum(w * v[part] for w, v in zip(scores.softmax(0), vectors, strict=True))
            torch.testing.assert_close(got[(0, part, *place)], wanted)
