"""Figures about a device's work in the round log."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from fibec_ray.learning.records import _rank_correlation


@pytest.mark.parametrize("seed", range(20))
def test_rank_correlations_are_scipy_s_to_the_bit(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    size = 2 + seed * 7
    left = torch.randn(size, generator=rng)
    right = torch.randint(0, 2 + seed, (size,), generator=rng)  # with ties
    right[0], right[1] = 0, 1
    for one, other in ((left, right), (right, left), (left, left.exp()), (left, -left)):
        expected = spearmanr(one.double().numpy(), other.double().numpy()).statistic
        assert _rank_correlation(one, other) == expected


def test_unknown_and_constant_values_have_no_rank_correlation() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert _rank_correlation(values, None) is None
    assert _rank_correlation(values, torch.ones(3)) is None and _rank_correlation(torch.ones(3), values) is None
    assert _rank_correlation(values[:1], values[:1]) is None


def test_a_nan_makes_the_rank_correlation_nan() -> None:
    found = _rank_correlation(torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert found is not None and math.isnan(found)
