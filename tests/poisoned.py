"""An aggregator whose extras are not finite for the device with the fewest samples: what a sound server refuses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors


class Poisoned(Aggregator):
    kind: Literal["poisoned"] = "poisoned"
    smallest: int

    def evidence_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        return {"x": torch.tensor([float("nan")])} if shard.num_samples == self.smallest else {}


def victim_of(federation: Federation) -> tuple[int, int]:
    """The device with the fewest samples, and how many it has. Fails unless it is the only one with so few."""
    sizes = federation.num_train(range(federation.num_devices))
    assert sizes.count(min(sizes)) == 1
    return sizes.index(min(sizes)), min(sizes)
