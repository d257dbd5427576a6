"""FedRPCA: average the common part of the devices' updates and amplify the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.low_rank import rank_axis
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import DeviceUpdate

GROWTH = 1.2
"""Factor on the penalty mu in each iteration."""
MOST_ITERATIONS = 200
TOLERANCE = 1e-7
"""of |M - L - S| / |M|"""


class FedRpca(Aggregator):
    """FedRPCA (Jhunjhunwala et al. 2025, arXiv 2506.01194): mean of the common part, beta times the mean of the rest.

    For each matrix of LoRA the devices' updates are the columns of M (entries x devices). Robust PCA splits M = L + S
    into a low-rank L, common to the devices, and a sparse S, their own. The step is sum_k w_k L_k + beta sum_k w_k S_k
    with w_k = n_k / sum n. beta = 1 is FedAvg.
    Ours: the weights w_k, the default of beta, and tensors outside LoRA (a head) use FedAvg. Robust PCA minimises
    |L|_* + |S|_1 / sqrt(max(entries, devices)), as Candes et al. (2011) propose.
    """

    kind: Literal["fedrpca"] = "fedrpca"
    beta: float = Field(2.0, gt=0, allow_inf_nan=False, description="factor on the mean of S; above 1 in the paper")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, "lora", "dense")

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        step = weighted_mean((update.num_samples, update.delta) for update in held)
        for name in (name for name in step if rank_axis(name) is not None):
            step[name] = self._amplified(name, held)
        return step, state

    def _amplified(self, name: str, held: Sequence[DeviceUpdate]) -> Tensor:
        columns = torch.stack([update.delta[name].double().flatten() for update in held], 1)
        _, sparse = robust_pca(columns)
        own = self.beta - 1
        amplified = [
            (update.num_samples, {name: value.double() + own * part.view_as(value)})
            for update, part in zip(held, sparse.T, strict=True)
            for value in [update.delta[name]]
        ]
        return weighted_mean(amplified)[name].to(held[0].delta[name])


def robust_pca(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Split M (d, n) into L + S that minimise |L|_* + |S|_1 / sqrt(max(d, n)): the inexact augmented Lagrangian method.

    L + S is M up to rounding. Source: Lin, Chen, Ma, arXiv 1009.5055, algorithm 5.
    """
    norm = torch.linalg.matrix_norm(matrix, 2) if matrix.numel() else torch.zeros(())
    if not norm > 0:
        return torch.zeros_like(matrix), matrix.clone()
    m = matrix / norm
    rate = max(m.shape) ** -0.5
    multiplier = m / max(1.0, float(m.abs().max()) / rate)
    sparse, mu = torch.zeros_like(m), 1.25
    for _ in range(MOST_ITERATIONS):
        u, values, v = torch.linalg.svd(m - sparse + multiplier / mu, full_matrices=False)
        low = (u * (values - 1 / mu).clamp(min=0)) @ v
        sparse = _shrunk(m - low + multiplier / mu, rate / mu)
        gap = m - low - sparse
        multiplier = multiplier + mu * gap
        mu *= GROWTH
        if gap.norm() <= TOLERANCE * m.norm():
            break
    return (m - sparse) * norm, sparse * norm


def _shrunk(values: Tensor, by: float) -> Tensor:
    """Every entry moved towards 0 by this much, and no further."""
    return values.sign() * (values.abs() - by).clamp(min=0)
