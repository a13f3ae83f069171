"""Position tables at their own and at other sizes."""

from __future__ import annotations

import torch

from cmt_med.blocks.position import PositionTable


def test_the_table_itself_at_its_own_size() -> None:
    table = PositionTable(spatial_dims=2, heads=2, size=4, kv_stride=2)
    assert torch.equal(table((4, 4), (2, 2)), table.bias_table)


def test_other_sizes_keep_constants_and_order() -> None:
    table = PositionTable(spatial_dims=2, heads=1, size=8, kv_stride=2)
    with torch.no_grad():  # a ramp over the query's row plus a tenth of the key's column
        row = torch.arange(8.0).repeat_interleave(8)
        column = torch.arange(4.0).repeat(4)
        table.bias_table.copy_((row[:, None] + 0.1 * column[None, :])[None])
    bias = table((16, 5), (8, 3)).reshape(16, 5, 8, 3)
    assert (bias.diff(dim=0) > 0).float().mean() > 0.95
    assert (bias.diff(dim=3) > 0).all()
    assert bias.diff(dim=1).abs().max() < 1e-4
    assert bias.diff(dim=2).abs().max() < 1e-4


def test_a_volume_sums_plane_and_depth() -> None:
    torch.manual_seed(0)
    table = PositionTable(spatial_dims=3, heads=2, size=4, kv_stride=2)
    bias = table((4, 4, 4), (2, 2, 2)).reshape(2, 4, 16, 2, 4)
    assert table.depth_bias_table is not None
    assert torch.allclose(bias[1, 3, 5, 0, 2], table.bias_table[1, 5, 2] + table.depth_bias_table[1, 3, 0])
