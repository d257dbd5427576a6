"""The contract of all aggregators; as it stands, the mean weighted by shard size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.part import Need, Part, Passes
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Aggregator(Part):
    """FedAvg (McMahan et al., AISTATS 2017): delta = sum_k n_k delta_k / sum_k n_k over the round's updates.

    Device half: `extras_before`, `extras_after`. Server half: `start`, `expected_extras`, `fault`, `combine`.
    Updates come in cohort order, one at a time, and are summed in float64: the result does not depend on which actor
    finished first.
    """

    costs = {"extras_before": ("expected_extras", "passes"), "extras_after": ("expected_extras", "passes")}

    kind: str = "mean"
    can_be_wrapped: ClassVar[bool] = True
    """True if a server optimiser may take its step from this one's"""

    @property
    def needs(self) -> tuple[Need, ...]:
        """ "whole": all devices' deltas have the same entries. A rule that copes with others' returns () instead."""
        return ("whole",)

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        """What else the server needs from a device, computed at the broadcast point before local training."""
        return {}

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        """The same after local training, when the model holds the trained values. batches: all of the device's."""
        return {}

    def passes(self, round_: int, num_classes: int) -> Sequence[Passes]:
        """Passes of `extras_before` and `extras_after`. num_classes: 1 in a regression, 0 where answers are texts."""
        return ()

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        """The server's state before round 0. num_devices: of the federation, K in papers."""
        return {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        """What `extras_before` and `extras_after` add to an update, by name. One that lacks any of it, or has more, is
        quarantined. Before a run it is asked for an update without extras: then the most that it may have."""
        return {}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        """Why an update with well-formed tensors cannot be combined; None if it can."""
        return None

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        """The step that the shared tensors take (empty if there were no updates), and the new state."""
        return weighted_mean((update.num_samples, update.delta) for update in updates), state
