"""Draws from symmetric Dirichlet distributions, for any concentration, however small.

Where alpha is small, most shares are below the smallest positive float: their logarithms are around -1 / alpha. numpy's
draws are zero there, which loses the order of the small shares. We keep logarithms, in units of 1 / alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


MOST = 1e300
"""A concentration above it changes nothing: all shares are equal, to the last bit."""


@dataclass(frozen=True)
class Draws:
    """K draws of C shares."""

    shares: Floats
    """(K, C), each row sums to 1; the smallest may be 0"""
    logs: Floats
    """(K, C): scale * log(share), but for a constant of each row"""
    scale: float

    def among(self, row: int, left: NDArray[np.bool_]) -> Floats:
        """(C,) the shares of one draw over the largest that is `left`; 0 for those that are not."""
        logs = np.where(left, self.logs[row], -np.inf)
        return _exp(logs - logs.max(), self.scale)


def draw(rng: np.random.Generator, spare: np.random.Generator, alpha: float, size: int, count: int) -> Draws:
    """K = count draws from Dirichlet(alpha, ...) of C = size shares.

    They are numpy's where those are all positive. Else they are G_c / sum_c G_c of Gamma(alpha) variables in log space:
    log G_c = log H_c + log(U_c) / alpha, with H_c ~ Gamma(alpha + 1) and U_c uniform (Marsaglia and Tsang 2000).

    spare: for those in log space. Its U_c do not depend on alpha, so that shares are the more skewed the smaller alpha
    is.
    """
    alpha = min(alpha, MOST)
    shares = rng.dirichlet(np.full(size, alpha), size=count)
    if (shares > 0).all():
        return Draws(shares, np.log(shares), 1.0)
    log_uniforms = -spare.standard_exponential((count, size))
    scale = min(alpha, 1.0)
    logs = scale * np.log(spare.standard_gamma(alpha + 1, (count, size))) + log_uniforms * (scale / alpha)
    shares = _exp(logs - logs.max(axis=1, keepdims=True), scale)
    return Draws(shares / shares.sum(axis=1, keepdims=True), logs, scale)


def _exp(logs: Floats, scale: float) -> Floats:
    with np.errstate(over="ignore", under="ignore"):  # -1 / 1e-320 is -inf, and its exponential 0
        return np.exp(logs / scale)
