"""Aggregators that add to the base what the averaged factors cannot hold. They need peft moving_lora.

Shapes: r rank of the global adapter. A_k (r, in), B_k (out, r) of device k; w_k = n_k / sum n; D (out, in) the move of
the base. The model is W + s (D + B A) with s = alpha / r, or alpha / sqrt(r) with use_rslora. D is kept in units of s,
so s is in no formula below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.low_rank import MOVED, A, B, best_factors, pairs
from fibec_ray.parts.aggregator.over_factors import OverFactors, in_use, mean_factors, mean_product
from fibec_ray.tensors import Tensors, add


class FedExLora(OverFactors):
    """FedEx-LoRA (Singhal et al., ACL 2025): averages the factors and adds the error of their product to the base.

    A <- sum_k w_k A_k, B <- sum_k w_k B_k, D <- D + sum_k w_k B_k A_k - B A. The new model W + s (D + B A) is then the
    mean of the devices' models, up to rounding, whatever their ranks. Without the last step it is FedAvg (FedIT).
    The paper sends the residual down as the devices' factors, up to (M + 1) r (in + out) numbers for each weight and M
    devices. Here D is sent, in x out numbers, so that devices that missed a round have it too. Tensors outside LoRA (a
    head) use FedAvg.
    """

    kind: Literal["fedex_lora"] = "fedex_lora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "moving_lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step = mean_factors(received, trained, weights)
        new = add(step, received)  # rounded to float32, so that D holds this rounding too
        for x in pairs(received):
            lacking = mean_product(x, trained, weights) - new[x + B].double() @ new[x + A].double()
            step[x + MOVED] = lacking.to(received[x + MOVED])
        return step


class FedMomentum(OverFactors):
    """FedMomentum (Yan et al. 2026, arXiv 2603.08014): splits the mean product between LoRA and the base.

    sum_k w_k B_k A_k = U S V^T. B <- U_r S_r^1/2 and A <- S_r^1/2 V_r^T. D gains as many of the next singular
    directions as are needed to reach the share tau of the energy sum S^2. With tau = 1 the new model is the mean of the
    devices' models. Dense sums are never formed.
    Ours: an exact SVD (the paper uses a randomised one), and all r directions go into LoRA, whatever tau is. Where the
    sum has fewer than r nonzero singular values, the remaining ranks keep their old row of A with a zero column of B,
    since two zeros would never learn. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["fedmomentum"] = "fedmomentum"
    partners: ClassVar[Mapping[str, str]] = {"peft": "moving_lora"}
    tau: float = Field(0.9999, gt=0, le=1, description="share of the energy that LoRA and the base keep together")

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step: Tensors = {}
        for x in pairs(received):
            old_a, old_b, old_d = (received[x + which] for which in (A, B, MOVED))
            left = [w * values[x + B].double() for w, values in zip(weights, trained, strict=True)]
            room = max(len(old_a), min(len(old_b), old_a.shape[1], len(trained) * len(old_a)))
            b, a, found = best_factors(left, [values[x + A] for values in trained], room)
            r, end = len(old_a), self._num_kept(found)
            step[x + MOVED] = (b[:, r:end] @ a[r:end]).to(old_d)
            new_a, new_b = in_use(a[:r], b[:, :r], found, old_a)
            step |= {x + A: new_a.to(old_a) - old_a, x + B: new_b.to(old_b) - old_b}
        return step

    def _num_kept(self, found: torch.Tensor) -> int:
        """The fewest singular values, largest first, that reach the share tau of the energy."""
        energy = found.square().cumsum(0)
        return len(found) if self.tau == 1 else int((energy < self.tau * energy[-1]).sum()) + 1
