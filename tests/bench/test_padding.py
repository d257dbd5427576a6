"""Shares of padding, by hand."""

from __future__ import annotations

import torch
from conftest import shard_of

from fibec_ray.bench.padding import in_order, sorted_, waste


def test_waste_by_hand() -> None:
    """Lengths 1, 3, 1, 3 in batches of two: 2 of 6 in each batch; sorted none; to four tokens 8 of 16."""
    shard = shard_of([[5], [5, 6, 7], [5], [5, 6, 7]])
    assert waste(in_order([shard], 2)) == 1 - 8 / 12
    assert waste(sorted_([shard], 2)) == 0
    assert waste(in_order([shard], 2), 4) == 0.5
    assert waste([(shard, torch.tensor([1])), (shard, torch.tensor([0, 1]))]) == 1 - 7 / 9
