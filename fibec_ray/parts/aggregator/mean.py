"""The neutral aggregator: the weighted mean of the updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

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
    weights: Literal["samples", "uniform"] = Field(
        "samples", description="weight of a device: samples, n_k; uniform, equal for all, as in SCAFFOLD"
    )
    needs: ClassVar[tuple[Need, ...]] = ()

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        by_samples = self.weights == "samples"
        return weighted_mean((update.num_samples if by_samples else 1, update.delta) for update in updates), state
