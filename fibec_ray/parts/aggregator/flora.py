"""FLoRA: products go into the base without loss, and LoRA starts afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch

from fibec_ray.low_rank import MOVED, A, B, pairs
from fibec_ray.parts.aggregator.over_factors import OverFactors
from fibec_ray.tensors import Tensors


class Flora(OverFactors):
    """FLoRA (Wang et al., NeurIPS 2024): the mean of the products goes into the base, D <- D + sum_k w_k B_k A_k, exact
    for any ranks; LoRA starts afresh in each round. Needs peft moving_lora, whose D it is.

    The paper sends the stack of all A_k and B_k down, (r_1 + ... + r_M) (in + out) numbers for each weight, and devices
    merge it. Here D travels, in x out: what a device needs that did not take part in the last round.
    Ours: the fresh A is the same in each round, that of the start. Tensors other than LoRA's (a head) are FedAvg's.
    """

    kind: Literal["flora"] = "flora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "moving_lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step: Tensors = {}
        for x in pairs(received):
            product = torch.zeros(len(received[x + B]), received[x + A].shape[1], dtype=torch.float64)
            for weight, values in zip(weights, trained, strict=True):
                product += weight * values[x + B].double() @ values[x + A].double()
            step[x + MOVED] = product.to(received[x + MOVED])
        return step
