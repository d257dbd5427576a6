"""Aggregators of LoRA's factors. They need the trained factors, not only the deltas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fibec_ray.low_rank import MOVED, A, B, best_factors, blank, pairs, product_norm, rank_axis
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, add, clone, select, subtract, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import DeviceUpdate

FLOOR = 1e-7
"""Singular values below this share of the largest count as rounding errors."""


class OverFactors(Aggregator):
    """Base of aggregators that keep a copy of the shared tensors. Tensors outside LoRA take FedAvg's step.

    Shapes: r the rank of the global adapter, r_k of device k's.
    """

    can_be_wrapped: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("lora", "pairs", "received", "updates")

    @abstractmethod
    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        """The step of LoRA's tensors. trained: each device's values, zero beyond r_k. weights: w_k = n_k / sum n."""

    def aligned(self, state: Tensors, received: Tensors, values: Tensors) -> Tensors:
        """One device's values in the form that `factors` gets. received: what the server sent, at full rank."""
        return values

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return with_prefix("shared", clone(shared))

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        if not held:
            return {}, state
        shared, total = under_prefix("shared", state), sum(update.num_samples for update in held)
        trained = [self.aligned(state, shared, _trained(shared, update)) for update in held]
        others = {name for name in shared if rank_axis(name) is None}
        step = weighted_mean((update.num_samples, select(update.delta, others)) for update in held)
        step |= self.factors(shared, trained, [update.num_samples / total for update in held])
        return step, state | with_prefix("shared", add(step, shared))


def _trained(shared: Tensors, update: DeviceUpdate) -> Tensors:
    """The device's values after the round; tensors that the round does not train stay as received."""
    received = shared if update.rank is None else blank(shared, update.rank)
    return received | add(update.delta, received)


def mean_factors(received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """The step of LoRA's factors that leads to their weighted means."""
    names = [name for name in received if rank_axis(name) is not None]
    mean = weighted_mean((weight, select(values, names)) for weight, values in zip(weights, trained, strict=True))
    return subtract(mean, received)


def mean_product(x: str, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensor:
    """sum_k w_k B_k A_k of the pair x, (out, in) float64."""
    first = trained[0]
    total = torch.zeros(len(first[x + B]), first[x + A].shape[1], dtype=torch.float64)
    for weight, values in zip(weights, trained, strict=True):
        total += weight * values[x + B].double() @ values[x + A].double()
    return total


def in_use(a: Tensor, b: Tensor, found: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Factors whose unused ranks have the old row of A and a zero column of B, since two zeros would never learn.

    a, b: factors from an SVD, (r, in) and (out, r). found: all singular values, largest first. old: A as received.
    """
    size = min(len(found), len(a))
    alive = torch.zeros(len(a), dtype=torch.bool)
    alive[:size] = found[:size] > FLOOR * found[0]
    return torch.where(alive[:, None], a, old.double()), torch.where(alive, b, 0.0)


class FlexLora(OverFactors):
    """FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, sum_k w_k s_k B_k A_k with w_k = n_k / sum n, cut
    to rank r by SVD.

    A device of rank r_k receives the r_k largest singular directions. The result is exact if r is at least the rank of
    the sum; else the smaller singular values are lost. Their square roots go into both factors. The sum is never
    formed.
    Ours: where the sum has fewer than r nonzero singular values, the remaining ranks keep their old row of A with a
    zero column of B, since two zeros would never learn. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["flexlora"] = "flexlora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step: Tensors = {}
        for x in pairs(received):
            left = [w * values[x + B].double() for w, values in zip(weights, trained, strict=True)]
            b, a, found = best_factors(left, [values[x + A] for values in trained], len(received[x + A]))
            a, b = in_use(a, b, found, received[x + A])
            step |= {x + A: a.to(received[x + A]) - received[x + A], x + B: b.to(received[x + B]) - received[x + B]}
        return step


class Flora(OverFactors):
    """FLoRA (Wang et al., NeurIPS 2024): the mean of the products is merged into the base, D <- D + sum_k w_k B_k A_k.

    This is exact for any ranks. LoRA restarts in each round. Needs peft moving_lora, which holds D.
    The paper sends the stack of all A_k and B_k down, (r_1 + ... + r_M) (in + out) numbers for each weight, and devices
    merge it. Here D is sent, in x out numbers, so that devices that missed a round have it too.
    Ours: the fresh A is the initial one in every round. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["flora"] = "flora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "moving_lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step: Tensors = {}
        for x in pairs(received):
            step[x + MOVED] = mean_product(x, trained, weights).to(received[x + MOVED])
        return step


class HetLora(OverFactors):
    """HetLoRA (Cho et al., EMNLP 2024): averages factors, zero-padded to the full rank, with weights |B_k A_k|_F / sum
    over devices.

    The norm is over all adapted weights, so devices with a low rank or small changes weigh less. The paper's pruning is
    objective rank_pruning. Equal ranks, norms and n_k: FedAvg. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["hetlora"] = "hetlora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        norms = [_norm(values) for values in trained]
        return mean_factors(received, trained, norms if any(norms) else [1.0] * len(norms))


def _norm(values: Tensors) -> float:
    """|B A|_F over all pairs."""
    return sum(product_norm(values[x + A], values[x + B]) ** 2 for x in pairs(values)) ** 0.5
