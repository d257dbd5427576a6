"""The neutral aggregator: the mean weighted by shard size. The contract of all aggregators."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import ClientUpdate, LocalModel, Shard


class Aggregator(Part):
    """FedAvg (McMahan et al., AISTATS 2017): delta = sum_k n_k delta_k / sum_k n_k over the round's updates.

    Device half: `evidence`. Server half: `start`, `combine`. Updates come in cohort order, one at a time, and are
    summed in float64, so the result does not depend on which actor finished first.
    """

    kind: str = "mean"

    def evidence(self, model: LocalModel, shard: Shard, names: Collection[str]) -> Tensors:
        """What else the server needs from a device, computed at the broadcast point before local training."""
        return {}

    def start(self, shared: Tensors) -> Tensors:
        """The server's state before round 0."""
        return {}

    def combine(self, state: Tensors, updates: Iterable[ClientUpdate]) -> tuple[Tensors, Tensors]:
        """The step that the shared tensors take (empty if there were no updates), and the new state."""
        return weighted_mean((update.num_samples, update.delta) for update in updates), state
