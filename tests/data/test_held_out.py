"""Rows that are held out for testing: seeded, the same share of each group, never a group's last training row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibec_ray.data.held_out import held_out
from fibec_ray.errors import DataError


def test_each_label_has_the_same_share() -> None:
    labels = np.array([0] * 100 + [1] * 50 + [2] * 10)
    train, test = held_out(labels, 0.2, 0)
    assert np.bincount(labels[test]).tolist() == [20, 10, 2]
    assert np.sort(np.concatenate([train, test])).tolist() == list(range(160))


def test_the_seed_decides() -> None:
    labels = np.arange(100) % 2
    one, two, other = (held_out(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == two == sorted(one) != other


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 3))
def test_every_group_keeps_a_training_row(groups: list[int], fraction: float, seed: int) -> None:
    count = len(set(groups))
    if len(groups) == count:
        with pytest.raises(DataError, match="no rows can be held out"):
            held_out(groups, fraction, seed)
        return
    train, test = held_out(groups, fraction, seed)
    assert {groups[row] for row in train} == set(groups)
    assert len(test) == min(max(1, round(fraction * len(groups))), len(groups) - count)
    assert sorted([*train, *test]) == list(range(len(groups)))
