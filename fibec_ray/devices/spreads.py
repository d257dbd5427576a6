"""Correlated log-normal factors on a device's compute, uplink and downlink."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fibec_ray import seeds


def factors(seed: int, device: int, spreads: Sequence[float], correlation: float) -> list[float]:
    """e^{s_i z_i} for each spread s_i, with z_i ~ N(0, 1), and `correlation` between every two of them.

    z_i = sqrt(c) z + sqrt(1 - c) e_i with independent standard normal z, e_i, so c is in [0, 1].
    """
    common, *own = seeds.numpy_generator(seed, "profile", device).standard_normal(1 + len(spreads))
    shared, rest = math.sqrt(correlation), math.sqrt(1 - correlation)
    return [math.exp(spread * (shared * common + rest * z)) for spread, z in zip(spreads, own, strict=True)]
