"""FedNova's aggregation: devices that take more local steps do not weigh more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import Asked, DeviceUpdate


class Nova(Aggregator):
    """FedNova (Wang et al., NeurIPS 2020): delta = (sum_k w_k s_k) sum_k w_k delta_k / s_k.

    w_k = n_k / sum_j n_j; s_k: local steps of the round. Equal s_k give FedAvg. This is the form for plain SGD. With
    momentum rho, s_k would be sum_i (1 - rho^i) / (1 - rho) over the steps i = 1 .. s_k. With AdamW a delta is not a
    fixed sum of gradients and the paper defines no s_k; counting steps is our heuristic.
    An update without steps has no delta / s_k and is quarantined.
    """

    kind: Literal["nova"] = "nova"
    sends: ClassVar[str] = "number of steps"

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        return None if update.num_steps else "the update took no steps, but FedNova divides by their number"

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        samples, steps, rates = 0, 0, 0.0

        def per_step() -> Iterator[tuple[float, Tensors]]:
            nonlocal samples, steps, rates
            for update in updates:
                if not update.num_steps:
                    continue
                samples += update.num_samples
                steps += update.num_samples * update.num_steps
                rates += update.num_samples / update.num_steps
                yield update.num_samples / update.num_steps, update.delta

        # The mean with weights w_k / s_k, rescaled to the formula.
        mean = weighted_mean(per_step())
        return {name: value * (rates * steps / samples**2) for name, value in mean.items()}, state
