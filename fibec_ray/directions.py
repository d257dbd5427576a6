"""Random directions that every process can redraw from their numbers, for training by seeds (FedKSeed).

Shapes: K directions, d entries of all tensors together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.tensors import Tensors

COEFFICIENTS = "seeds.weight"
"""(1, K): how far the model has moved against each direction."""


def direction(number: int, like: Mapping[str, Tensor]) -> Tensors:
    """Direction z_j, standard normal, in the shapes of `like`; the same in every process."""
    return _split(_drawn(number, _size(like)), like)


def moved(values: Mapping[str, Tensor], coefficients: Tensor) -> Tensors:
    """The values minus sum_j a_j z_j. coefficients: a, (1, K). Directions with a_j = 0 cost nothing."""
    total = _split(_total(coefficients.flatten().numpy().tobytes(), _size(values)), values)
    return {name: value - total[name].to(value) for name, value in values.items()}


@lru_cache(maxsize=2)  # all devices of a round start from the same model
def _total(coefficients: bytes, size: int) -> Tensor:
    """sum_j a_j z_j, (d,), added in the order of j. Do not change the result in place."""
    total = torch.zeros(size)
    for j, a in enumerate(torch.frombuffer(bytearray(coefficients), dtype=torch.float32).tolist()):
        if a:
            total.add_(_drawn(j, size), alpha=a)
    return total


def _drawn(number: int, size: int) -> Tensor:
    return torch.randn(size, generator=seeds.generator(0, "direction", number))


def _size(like: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in like.values())


def _split(flat: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """Cut a vector (d,) into tensors, in the order of their names."""
    names = sorted(like)
    parts = flat.split([like[name].numel() for name in names])
    return {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}
