"""Means, intervals, paired differences and their tests; the only statistics of the analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit  # Student's t and its inverse; scipy.stats takes a second to load

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """Mean of one number over seeds, with its confidence interval."""

    value: float
    half_width: float | None
    """of the CONFIDENCE interval by Student's t with count - 1 degrees; None for a single seed"""
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Mean | None:
        """The mean of some values with its interval; None without values."""
        return Mean(fmean(values), half_width(values), len(values)) if values else None


@dataclass(frozen=True)
class Paired:
    """Differences of scores, variant minus reference, over the seeds that both have finished."""

    mean: float
    half_width: float | None
    """of the CONFIDENCE interval of the mean by Student's t with num_pairs - 1 degrees; None for a single pair"""
    num_pairs: int
    p: float | None = None
    """two-sided paired t test: how often equal methods would differ at least this much; None for a single pair"""

    @staticmethod
    def of(differences: Sequence[float]) -> Paired | None:
        """The mean of paired differences with interval and p value; None without differences."""
        if not differences:
            return None
        return Paired(fmean(differences), half_width(differences), len(differences), p_value(differences))

    @property
    def matters(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.mean) > self.half_width


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the mean's CONFIDENCE interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * _standard_error(values)


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided paired t test against a mean of 0; None for fewer than two. Equal differences: 0, or 1 if all are 0."""
    if len(differences) < 2:
        return None
    mean, error = fmean(differences), _standard_error(differences)
    if error == 0:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for multiple tests (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1, is never below a smaller one's, and is at most 1.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """Geometric mean of positive numbers; None without any."""
    return math.exp(fmean(math.log(ratio) for ratio in ratios)) if ratios else None


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))
