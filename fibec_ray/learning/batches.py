"""A device's fixed batches: the same for every method, so that methods are compared on the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fibec_ray import seeds


def fixed_batches(seed: int, device: int, num_samples: int, batch_size: int) -> list[Tensor]:
    """Rows of each batch, (B,) int64: a seeded split of the device's samples, the last one maybe short."""
    rng = seeds.generator(seed, "batches", device)
    return list(torch.randperm(num_samples, generator=rng).split(batch_size))
