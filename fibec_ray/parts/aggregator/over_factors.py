"""What aggregators of LoRA's factors share that need the factors themselves, not what devices changed of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from fibec_ray.low_rank import blank, rank_axis
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, add, clone, drop, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import ClientUpdate


class OverFactors(Aggregator):
    """Keeps a copy of the shared tensors. Tensors other than LoRA's take FedAvg's step.

    Shapes: r the rank of the global adapter, r_k of device k's.
    """

    can_be_wrapped: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("lora",)

    @abstractmethod
    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        """The step of LoRA's tensors. trained: each device's values, zeros behind r_k. weights: w_k = n_k / sum n."""

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return with_prefix("shared", clone(shared))

    def combine(self, state: Tensors, updates: Iterable[ClientUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        if not held:
            return {}, state
        shared, total = under_prefix("shared", state), sum(update.num_samples for update in held)
        trained = [_trained(shared, update) for update in held]
        step = weighted_mean((update.num_samples, _others(update.delta)) for update in held)
        step |= self.factors(shared, trained, [update.num_samples / total for update in held])
        return step, state | with_prefix("shared", add(step, shared))


def _trained(shared: Tensors, update: ClientUpdate) -> Tensors:
    """The device's values after the round; those as received that the round did not train."""
    received = shared if update.rank is None else blank(shared, update.rank)
    return received | add(update.delta, received)


def _others(delta: Tensors) -> Tensors:
    return drop(delta, [name for name in delta if rank_axis(name) is not None])
