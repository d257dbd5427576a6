"""Epsilon of repeated Gaussian mechanisms, by Google's `dp-accounting`, and the noise for a target epsilon.

z is the standard deviation of the noise in units of C, the largest norm of what one device or sample adds to a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fibec_ray.errors import ConfigError

PRECISION = 1e-3
"""Relative precision of the noise that `noise_for` finds; the true value is at most this much below it."""
ORDERS = (1.25, 1.5, 1.75, *range(2, 13), 14, 16, 20, 24, 32, 48, 64)
"""Of the Renyi divergences that the fixed-size accountant minimises over; with delta 1e-5 enough above epsilon 0.2."""
INTERVAL = 1e-3
"""Width of the bins of a privacy loss distribution; epsilon is too large by less than this much."""


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ConfigError(
            "method.privacy: epsilon is computed by dp-accounting, which is not installed; run pip install "
            "'fibec_ray[privacy]', or set method.privacy.noise=0 for clipping without a guarantee"
        ) from error
    return dp_accounting


def gaussian(noise: float, delta: float, count: int) -> float:
    """Epsilon of `count` Gaussian mechanisms in a row, each on all data.

    They compose to one mechanism with z / sqrt(count). Exact: Balle and Wang, ICML 2018, theorem 8.
    """
    return float(_library().get_epsilon_gaussian(noise / math.sqrt(count), delta))


def poisson(noise: float, probability: float, delta: float, count: int) -> float:
    """Epsilon of `count` rounds in which each device takes part independently with this probability.

    By privacy loss distributions (Koskela et al., AISTATS 2020; Doroshenko et al., PETS 2022). Neighbours: one device
    is added or removed.
    """
    if probability >= 1:
        return gaussian(noise, delta, count)
    loss = _loss_of_a_round(noise, probability)
    return float((loss if count == 1 else loss.self_compose(count)).get_epsilon_for_delta(delta))


def fixed_size(noise: float, num_devices: int, cohort_size: int, delta: float, count: int) -> float:
    """Epsilon of `count` rounds with `cohort_size` devices each, drawn uniformly without replacement.

    By Renyi divergences (Wang, Balle and Kasiviswanathan, AISTATS 2019, theorem 27). Neighbours: one device is replaced
    by another, which moves the sum by up to 2 C. If all devices take part in each round nothing is drawn. Then
    neighbours are: one device sends zero instead of its update.
    """
    if cohort_size >= num_devices:
        return gaussian(noise, delta, count)
    library = _library()
    divergences = count * _divergences_of_a_round(noise, num_devices, cohort_size)
    return float(library.rdp.compute_epsilon(ORDERS, divergences, delta)[0])


def noise_for(target: float, epsilon: Callable[[float], float]) -> float:
    """The smallest noise whose epsilon is at most the target, up to PRECISION. epsilon: falls as the noise grows."""

    # Takes half a second to import; only runs with a target need it.
    from scipy.optimize import brentq

    def gap(logarithm: float) -> float:
        return math.log(max(epsilon(math.exp(logarithm)), 1e-12) / target)

    high = 0.0
    while gap(high) > 0:
        high += 1
    low = high - 1
    while gap(low) <= 0:
        low, high = low - 1, low
    return math.exp(float(brentq(gap, low, high, xtol=PRECISION / 2)) + PRECISION / 2)


@lru_cache(maxsize=256)
def _loss_of_a_round(noise: float, probability: float) -> Any:
    distribution = _library().pld.privacy_loss_distribution
    return distribution.from_gaussian_mechanism(
        noise, sampling_prob=probability, value_discretization_interval=INTERVAL
    )


@lru_cache(maxsize=256)
def _divergences_of_a_round(noise: float, num_devices: int, cohort_size: int) -> Any:
    library = _library()
    accountant = library.rdp.RdpAccountant(ORDERS, library.NeighboringRelation.REPLACE_ONE)
    one = library.GaussianDpEvent(noise / 2)  # in units of the sensitivity, 2 C
    accountant.compose(library.SampledWithoutReplacementDpEvent(num_devices, cohort_size, one))
    return accountant._rdp
