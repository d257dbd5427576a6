"""FlexLoRA: the mean of the products, cut to the global rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch

from fibec_ray.low_rank import A, B, best_factors, pairs
from fibec_ray.parts.aggregator.over_factors import OverFactors
from fibec_ray.tensors import Tensors

FLOOR = 1e-7
"""Singular values below this share of the largest are rounding."""


class FlexLora(OverFactors):
    """FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, sum_k w_k s_k B_k A_k with w_k = n_k / sum n, cut
    to rank r by its singular values.

    A device of rank r_k receives the r_k largest of them. Exact where r is at least the rank of the sum; else what is
    lost is the singular values cut off. The square roots of the values go into both factors. The sum is never formed.
    Ours: a rank of the sum that is missing (singular value 0) keeps its old row of A, with a column 0 of B: two zeros
    would never learn. Tensors other than LoRA's (a head) are FedAvg's.
    """

    kind: Literal["flexlora"] = "flexlora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step: Tensors = {}
        for x in pairs(received):
            left = [w * values[x + B].double() for w, values in zip(weights, trained, strict=True)]
            b, a, found = best_factors(left, [values[x + A] for values in trained], len(received[x + A]))
            size = min(len(found), len(a))
            alive = torch.zeros(len(a), dtype=torch.bool)
            alive[:size] = found[:size] > FLOOR * found[0]
            a = torch.where(alive[:, None], a, received[x + A].double())
            b = torch.where(alive, b, 0.0)
            step |= {x + A: a.to(received[x + A]) - received[x + A], x + B: b.to(received[x + B]) - received[x + B]}
        return step
