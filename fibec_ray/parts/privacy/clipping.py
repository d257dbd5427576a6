"""Clipping of named tensors to a joint norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fibec_ray.tensors import Tensors


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """The L2 norm over all entries of all tensors, in float64."""
    return math.sqrt(math.fsum(float(value.double().square().sum()) for value in tensors.values()))


def clipped(tensors: Tensors, most: float | None) -> Tensors:
    """The tensors times min(1, most / norm). None: unchanged."""
    if most is None or (norm := norm_of(tensors)) <= most:
        return tensors
    return {name: value * (most / norm) for name, value in tensors.items()}
