"""Aggregators that bring the product of the new factors nearer to the mean of the devices' products.

Devices receive and send as much as in FedAvg, and the base does not move.
Shapes: M devices, r rank. A_k (r, in), B_k (out, r) of device k; w_k = n_k / sum n. A_m = sum_k w_k A_k and B_m =
sum_k w_k B_k are the means, W* = sum_k w_k B_k A_k is the mean product. LoRA's scaling s multiplies every product, so
it is in no formula below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.low_rank import A, B, pairs
from fibec_ray.parts.aggregator.over_factors import OverFactors, mean_factors
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, add

LEAST_EIGENVALUE = 1e-6
"""FLoRA-NA does not solve along eigenvectors whose eigenvalue is below this share of the largest: rounding would decide
there."""


class LoraFair(OverFactors):
    """LoRA-FAIR (Bian et al., ICCV 2025): averages, then corrects B so that the product is near the mean product.

    A <- A_m and B <- B_m + D, where D minimises |W* - (B_m + D) A_m|_F^2 + lambda |D|_F^2, so
    D = (W* - B_m A_m) A_m^T (A_m A_m^T + lambda I)^-1. W* is never formed. lambda -> infinity: FedAvg.
    Ours: the squared error, which has this solution. The paper measures the distance by cosine similarity and finds D
    by SGD, with lambda = 0.01. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["lora_fair"] = "lora_fair"
    needs: ClassVar[tuple[Need, ...]] = (*OverFactors.needs, "whole")
    strength: float = Field(0.01, ge=0, allow_inf_nan=False, description="lambda: weight of |D|^2; the paper uses 0.01")

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step = mean_factors(received, trained, weights)
        new = add(step, received)
        for x in pairs(received):
            a, b = new[x + A].double(), new[x + B].double()
            squares = a @ a.T
            lacking = -b @ squares
            for w, values in zip(weights, trained, strict=True):
                lacking += w * values[x + B].double() @ (values[x + A].double() @ a.T)
            inverse = torch.linalg.pinv(squares + self.strength * torch.eye(len(a), dtype=a.dtype), hermitian=True)
            step[x + B] = (b + lacking @ inverse).to(received[x + B]) - received[x + B]
        return step


class FloraNa(OverFactors):
    """FLoRA-NA (arXiv 2509.26399): combines the devices' factors so that their product is nearest to the mean product.

    B <- sum_k p_k B_k and A <- sum_k q_k A_k, with p and q (M,) for each weight that minimise |W* - B A|_F. p = q = w
    is FedAvg.
    Ours: alternating least squares from p = q = w, p first, which never makes the distance larger. Combinations of
    devices that hardly change the product stay as they were. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["flora_na"] = "flora_na"
    needs: ClassVar[tuple[Need, ...]] = (*OverFactors.needs, "whole")
    iterations: int = Field(10, ge=1, le=1000, description="how often p and q are each solved for")

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        step = mean_factors(received, trained, weights)
        for x in pairs(received):
            a_k, b_k = (torch.stack([values[x + which].double() for values in trained]) for which in (A, B))
            p, q = nearest_combination(a_k, b_k, torch.tensor(weights, dtype=torch.float64), self.iterations)
            a, b = torch.tensordot(q, a_k, 1), torch.tensordot(p, b_k, 1)
            step |= {x + A: a.to(received[x + A]) - received[x + A], x + B: b.to(received[x + B]) - received[x + B]}
        return step


def nearest_combination(a: Tensor, b: Tensor, weights: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """p and q (M,) that bring (sum p_k B_k)(sum q_k A_k) near sum_k w_k B_k A_k. a: (M, r, in). b: (M, out, r)."""
    a_products = torch.einsum("irn,jsn->ijrs", a, a)  # A_i A_j^T
    b_products = torch.einsum("mor,nos->mnrs", b, b)  # B_i^T B_j
    p = q = weights
    for _ in range(iterations):
        seen = torch.einsum("ijrs,j->irs", a_products, q)  # A_i A^T
        square = torch.einsum("irs,i->rs", seen, q)  # A A^T
        p = _solved(
            torch.einsum("ijrs,sr->ij", b_products, square), torch.einsum("ikrs,ksr,k->i", b_products, seen, weights), p
        )
        seen = torch.einsum("ijrs,i->jrs", b_products, p)  # B^T B_j
        square = torch.einsum("jrs,j->rs", seen, p)  # B^T B
        q = _solved(
            torch.einsum("ijrs,sr->ij", a_products, square), torch.einsum("krs,kisr,k->i", seen, a_products, weights), q
        )
    return p, q


def _solved(matrix: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The solution of matrix x = right that is nearest to `start`, along the directions that the matrix sees."""
    inverse = torch.linalg.pinv((matrix + matrix.T) / 2, rtol=LEAST_EIGENVALUE, hermitian=True)
    return start + inverse @ (right - matrix @ start)
