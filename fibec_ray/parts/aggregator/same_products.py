"""Aggregators that write a product in other factors: with orthonormal rows, or rotated towards the last global ones.

Devices receive and send no more than in FedAvg, and the base does not move.
Shapes: r rank. A_k (r, in), B_k (out, r) of device k; w_k = n_k / sum n; A_m and B_m are the weighted means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.low_rank import A, B, pairs
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.over_factors import OverFactors, mean_factors
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, add, clone, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import DeviceUpdate


class FedSvd(Aggregator):
    """FedSVD (NeurIPS 2025, arXiv 2505.12805): averages, then splits the product so that A has orthonormal rows.

    B_m A_m = U S V^T; A <- V_r^T, B <- U_r S_r. The product does not change. Use it with peft lora and freeze_a, where
    devices train B only: the mean of the updates is then the update of the mean, s B_m A = s sum_k w_k B_k A. It is
    made for differential privacy, where noise on both factors would be multiplied. Without freeze_a the product of the
    means is split, which is FedAvg with other factors.
    With freeze_a the rows of A span the same space in every round; only the axes turn. If ranks differ by device, a
    device gets the largest singular directions, and ranks that it lacks count as a change of 0. Tensors outside LoRA (a
    head) use FedAvg.
    """

    kind: Literal["fedsvd"] = "fedsvd"
    can_be_wrapped: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ("lora", "pairs", "received")  # the mean of the updates is enough

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return with_prefix("shared", clone(shared))

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        step = weighted_mean((update.num_samples, update.delta) for update in updates)
        if not step:
            return {}, state
        old = under_prefix("shared", state)
        new = old | add(step, old)
        for x in pairs(old):
            a, b = orthonormal_rows(new[x + A], new[x + B])
            step |= {x + A: a.to(old[x + A]) - old[x + A], x + B: b.to(old[x + B]) - old[x + B]}
        return step, state | with_prefix("shared", add(step, old))


def orthonormal_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors V^T (r, in) and U S (out, r), float64, of B A = U S V^T. a: (r, in). b: (out, r).

    Ranks beyond `in` are zero. Where the product has fewer than r nonzero singular values, the other rows of V^T lie in
    the span of A's rows.
    """
    q, triangle = torch.linalg.qr(a.double().T)
    core = b.double() @ triangle.T
    u, values, v = torch.linalg.svd(core, full_matrices=len(core) < core.shape[1])
    rows, columns = torch.zeros_like(a, dtype=torch.float64), torch.zeros_like(b, dtype=torch.float64)
    rows[: len(v)] = v @ q.T
    columns[:, : len(values)] = u[:, : len(values)] * values
    return rows, columns


class FedRotLora(OverFactors):
    """FedRot-LoRA (Zhang et al., ICML 2026): rotates factors towards the last global ones, then averages.

    A_k <- R^T A_k and B_k <- B_k R with a rotation R, which leaves B_k A_k as it is. R is the rotation nearest to
    (1 - lambda) I + lambda R*; lambda = 0 is FedAvg. R* brings A_k nearest to the received A in one round and B_k
    nearest to the received B in the next (orthogonal Procrustes). The first round only averages, since B starts at 0.
    Rounds without updates do not count. In the paper devices rotate their factors; here the server does, with the same
    result. Tensors outside LoRA (a head) use FedAvg.
    """

    kind: Literal["fedrot_lora"] = "fedrot_lora"
    needs: ClassVar[tuple[Need, ...]] = (*OverFactors.needs, "whole")
    strength: float = Field(
        0.5, ge=0, le=1, description="lambda: 0 does not rotate, 1 rotates fully; 0.5 in FedLLM-Factory"
    )

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return super().start(shared, num_devices) | {"round": torch.tensor(0)}

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        step, new = super().combine(state, held)
        return step, new | {"round": state["round"] + 1} if held else new

    def aligned(self, state: Tensors, received: Tensors, values: Tensors) -> Tensors:
        """One device's values with rotated factors."""
        round_ = int(state["round"])
        if round_ == 0:
            return values
        turned: Tensors = dict(values)
        for x in pairs(received):
            a, b = values[x + A].double(), values[x + B].double()
            near = a @ received[x + A].double().T if round_ % 2 else b.T @ received[x + B].double()
            rotation = soft_rotation(near, self.strength)
            turned |= {x + A: (rotation.T @ a).to(values[x + A]), x + B: (b @ rotation).to(values[x + B])}
        return turned

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        return mean_factors(received, trained, weights)


def soft_rotation(near: Tensor, strength: float) -> Tensor:
    """The rotation nearest to (1 - strength) I + strength R*, where R* maximises tr(R^T near). near: (r, r).

    R* is I where `near` is 0, since every rotation is then as good.
    """
    unit = torch.eye(len(near), dtype=near.dtype)
    if not near.any():
        return unit
    return _nearest_rotation((1 - strength) * unit + strength * _nearest_rotation(near))


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (determinant 1) that is nearest to a square matrix."""
    u, _, v = torch.linalg.svd(matrix)
    signs = torch.ones(len(matrix), dtype=matrix.dtype)
    signs[-1] = torch.linalg.det(u @ v).sign()
    return (u * signs) @ v
