"""The neutral aggregator: the weighted mean of the updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import DeviceUpdate


class Mean(Aggregator):
    """FedAvg (McMahan et al., AISTATS 2017): delta = sum_k n_k delta_k / sum_k n_k over the round's updates.

    One device: its own delta. Ranks that a device of lower rank lacks count as a delta of 0.
    """

    kind: Literal["mean"] = "mean"
    weights: Literal["samples", "batches", "uniform"] = Field(
        "samples",
        description="weight of a device: samples, n_k; batches, ceil(n_k / B) with B local.batch_size; uniform, equal "
        "for all, as in SCAFFOLD",
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("weights",) if self.weights == "batches" else ()

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        return weighted_mean((self._weight(update), update.delta) for update in updates), state

    def _weight(self, update: DeviceUpdate) -> int:
        if self.weights == "samples":
            return update.num_samples
        return update.num_batches if self.weights == "batches" else 1
