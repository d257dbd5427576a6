"""The base class of all aggregators; used as it is, it averages updates weighted by shard size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.part import Need, Part, Passes
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import Asked, DeviceUpdate, Extra


class Aggregator(Part):
    """FedAvg (McMahan et al., AISTATS 2017): delta = sum_k n_k delta_k / sum_k n_k over the round's updates.

    Device half: `extras_before`, `extras_after`. Server half: `start`, `expected_extras`, `fault`, `combine`. Updates
    arrive one at a time in cohort order and are summed in float64, so the result does not depend on which actor
    finishes first.
    """

    costs = {"extras_before": ("expected_extras", "passes"), "extras_after": ("expected_extras", "passes")}

    kind: str = "mean"
    can_be_wrapped: ClassVar[bool] = True
    """True if a server optimiser may use this aggregator's step"""

    @property
    def needs(self) -> tuple[Need, ...]:
        """ "whole": all devices' deltas have the same entries. "updates": the rule sees each device's update.
        "samples": extras are computed from the device's samples. Return () in a rule that uses the mean of any deltas
        alone.
        """
        hooks = ("extras_before", "extras_after")
        from_samples = any(getattr(type(self), hook) is not getattr(Aggregator, hook) for hook in hooks)
        return ("whole", "updates", *(("samples",) if from_samples else ()))

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        """Compute what the server needs beside the delta, before local training, at the broadcast parameters."""
        return {}

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        """Compute what the server needs beside the delta, after local training. batches: all batches of the device."""
        return {}

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        """The passes that `extras_before` and `extras_after` make. answers: what a model gives for a sample."""
        return ()

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        """The server's state before round 1. num_devices: in the federation, K in papers."""
        return {}

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        """The tensors that `extras_before` and `extras_after` add to an update, by name.

        An update with missing or additional tensors is quarantined. Before a run this is called with an update without
        extras, to get the largest possible size.
        """
        return {}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        """Why an update with well-formed tensors cannot be combined; None if it can."""
        return None

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        """Combine the updates into the step of the shared tensors (empty without updates) and the new state."""
        return weighted_mean((update.num_samples, update.delta) for update in updates), state
