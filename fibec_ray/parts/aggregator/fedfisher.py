"""FedFisher: devices send Kronecker factors of their Fisher information, and the server solves for the best fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.curvature.kfac import kronecker_factors
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fisher_merging import merged
from fibec_ray.parts.part import Need, Passes, of_label
from fibec_ray.tensors import Tensors, under_prefix, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra

ROUNDING = 1e-12
"""Curvature below this share of the largest counts as zero."""
SLACK = 1e-3
"""How far rounding may push an eigenvalue below zero, relative to the matrix's largest entry."""


class FedFisher(Aggregator):
    """FedFisher (Jhunjhunwala et al., AISTATS 2024) with K-FAC: argmin_th sum_k w_k (th - th_k)^T F_k (th - th_k).

    w_k = n_k / sum_j n_j; F_k: Fisher information of device k's data at its trained th_k, for each Linear A_k (x) G_k:
    second moments of its inputs and of its outputs' gradients (`kfac.py`). All th_k start from one th_0. With th_k =
    th_0 + D_k and th = th_0 + X, th_0 drops out of the condition sum_k w_k F_k (th - th_k) = 0:

        sum_k w_k G_k X A_k = sum_k w_k G_k D_k A_k

    Conjugate gradients solve it for X, starting from FedAvg's step; X stays there where no device has curvature. One
    device: its delta. Equal factors: FedAvg. For the paper's other variant, diagonal F_k, use the aggregator
    `fisher_merging`. Modules that are not Linear (embedding tables, (IA)^3, LayerNorm) use that rule here too. Adapter
    kinds without known per-sample gradients (such as DoRA) are rejected, as there.

    The paper merges once; here every round does. Ours: the solver, and the damping, which weights FedAvg's step. With
    little damping a step on LoRA is many times FedAvg's, and training may collapse over the rounds.
    Sends the upper triangles of A_k and G_k: for LoRA of rank r on a d x d matrix about d / 2r times the delta.
    """

    kind: Literal["fedfisher"] = "fedfisher"
    label: Label = Field(
        "expected",
        description="labels in the gradients: observed (the data's), expected (all), or sampled (the model's)",
    )
    max_samples: int | None = Field(64, ge=1, description="samples per device for F_k, drawn each round; null: all")
    damping: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="weight of FedAvg's step, in units of a module's average curvature"
    )
    iterations: int = Field(100, ge=1, description="most conjugate-gradient steps per module")
    tolerance: float = Field(
        1e-8, gt=0, lt=1, description="residual at which the solver stops, relative to the right-hand side"
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, *of_label(self.label))

    sends: ClassVar[str] = "Kronecker factors of its Fisher information"

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        """Compute `inputs/PREFIX` and `outputs/PREFIX`, the triangles of A and G of each Linear, and `fisher/NAME`
        of the rest.
        """
        if not names:
            return {}
        rows = torch.cat(list(batches))
        rows = rows[torch.randperm(len(rows), generator=rng)[: self.max_samples]]
        found = kronecker_factors(model, shard, rows, names, self.label, max(map(len, batches)), rng)
        sent = with_prefix("inputs", found.inputs) | with_prefix("outputs", found.outputs)
        factors = {name: upper(value) for name, value in sent.items()}
        # A module that the loss does not depend on has no curvature.
        seen = found.inputs.keys() & found.outputs.keys()
        unseen = [n for n in names if _module(n) not in seen and n not in found.diagonal]
        zeros = {name: torch.zeros(model.trainable[name].shape) for name in unseen}
        return factors | with_prefix("fisher", found.diagonal | zeros)

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return [Passes(self.max_samples, None, answers.backwards(self.label), single_gradients=True)]

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        """Factors of each module with a matrix, which is a Linear, unless the update has its diagonals; diagonals
        of all others.
        """
        inputs, outputs, diagonals = dict[str, Extra](), dict[str, Extra](), dict[str, Extra]()
        for name, value in asked.shared.items():
            prefix = _module(name)
            weight = asked.shared.get(f"{prefix}.weight")
            if weight is not None and weight.dim() == 2 and f"fisher/{prefix}.weight" not in update.extras:
                columns = weight.shape[1] + (f"{prefix}.bias" in asked.shared)
                inputs[f"inputs/{prefix}"] = Extra((_triangle(columns),))
                outputs[f"outputs/{prefix}"] = Extra((_triangle(len(weight)),))
            else:
                diagonals[f"fisher/{name}"] = Extra(tuple(value.shape), least=0)
        return inputs | outputs | diagonals

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        for name, value in update.extras.items():
            if not name.startswith("fisher/") and not is_covariance(symmetric(value.double())):
                return f"the update's '{name}' cannot be a matrix of second moments: it has negative eigenvalues"
        return None

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        if not held:
            return {}, state
        total = sum(update.num_samples for update in held)
        weights = [update.num_samples / total for update in held]
        step: Tensors = {}
        # Linears with factors from at least one device.
        for prefix in dict.fromkeys(x for update in held for x in under_prefix("inputs", update.extras)):
            step |= self._linear_step(held, weights, prefix)
        for name in held[0].delta:
            if name not in step:
                step[name] = self._diagonal_step(held, weights, name)
        return {name: step[name].to(value.dtype) for name, value in held[0].delta.items()}, state

    def _linear_step(self, held: Sequence[DeviceUpdate], weights: Sequence[float], prefix: str) -> Tensors:
        """The step of a module's weight, with its bias as one more column."""
        names = [name for name in (f"{prefix}.weight", f"{prefix}.bias") if name in held[0].delta]
        deltas = [torch.cat([u.delta[n].double().view(len(u.delta[n]), -1) for n in names], 1) for u in held]
        a = [_factor(u.extras, f"inputs/{prefix}", deltas[0].shape[1]) for u in held]
        g = [_factor(u.extras, f"outputs/{prefix}", deltas[0].shape[0]) for u in held]
        x = best_fit(weights, g, a, deltas, self.damping, self.iterations, self.tolerance)
        parts = x.split([held[0].delta[name][0].numel() for name in names], 1)
        return {name: part.reshape(held[0].delta[name].shape) for name, part in zip(names, parts, strict=True)}

    def _diagonal_step(self, held: Sequence[DeviceUpdate], weights: Sequence[float], name: str) -> Tensor:
        """Fisher merging; FedAvg for a tensor without curvature from any device."""
        deltas = [update.delta[name].double() for update in held]
        zero = torch.zeros_like(deltas[0])
        fishers = [update.extras.get(f"fisher/{name}", zero).double() for update in held]
        pulls = [fisher * delta for fisher, delta in zip(fishers, deltas, strict=True)]
        return merged(_weighted(weights, pulls), _weighted(weights, fishers), _weighted(weights, deltas), self.damping)


def best_fit(
    weights: Sequence[float],
    g: Sequence[Tensor],
    a: Sequence[Tensor],
    deltas: Sequence[Tensor],
    damping: float,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Solve sum_k w_k G_k X A_k + d X = sum_k w_k G_k D_k A_k + d M for X, with M = sum_k w_k D_k, in float64.

    d: `damping` times the mean of the operator's diagonal. Conjugate gradients for X - M, preconditioned by the inverse
    of (sum_k w_k G_k) Y (sum_k w_k A_k) + d Y, until the residual is `tolerance` times sum_k |w_k G_k D_k A_k|. Neither
    leaves the range of the operator.
    """

    def curved(values: Sequence[Tensor]) -> list[Tensor]:
        return [w * g_k @ value @ a_k for w, g_k, value, a_k in zip(weights, g, values, a, strict=True)]

    mean = _weighted(weights, deltas)
    floor = damping * sum(
        w * g_k.diagonal().mean() * a_k.diagonal().mean() for w, g_k, a_k in zip(weights, g, a, strict=True)
    )
    scaled = _inverse(_weighted(weights, g), _weighted(weights, a), float(floor))
    residual = _sum(curved([delta - mean for delta in deltas]))
    enough = tolerance * sum(float(pull.norm()) for pull in curved(deltas))
    found, direction, before = torch.zeros_like(mean), torch.zeros_like(mean), math.inf
    for _ in range(iterations):
        if residual.norm() <= enough:
            break
        better = scaled(residual)
        now = float((residual * better).sum())
        if now <= 0:  # rounding: the remaining residual is outside the operator's range
            break
        direction = better + now / before * direction
        before = now
        image = _sum(curved([direction] * len(g))) + floor * direction
        curvature = float((direction * image).sum())
        if curvature <= 0:  # rounding: no curvature along this direction
            break
        found += now / curvature * direction
        residual -= now / curvature * image
    return mean + found


def _inverse(g: Tensor, a: Tensor, floor: float) -> Callable[[Tensor], Tensor]:
    """Return R -> Y with G Y A + floor Y = R, up to rounding; exact when all devices have the same factors."""
    (g_values, u), (a_values, v) = torch.linalg.eigh(g), torch.linalg.eigh(a)
    curvature = torch.outer(g_values.clamp(min=0), a_values.clamp(min=0))
    scale = torch.where(curvature > ROUNDING * curvature.max(), 1 / (curvature + floor), 0.0)
    return lambda residual: u @ (scale * (u.T @ residual @ v)) @ v.T


def upper(matrix: Tensor) -> Tensor:
    """Pack a symmetric matrix: (n, n) -> (n (n + 1) / 2,), the upper triangle row by row."""
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def symmetric(triangle: Tensor) -> Tensor:
    """Unpack a triangle: (n (n + 1) / 2,) -> (n, n)."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix = triangle.new_zeros(size, size)
    matrix[tuple(torch.triu_indices(size, size))] = triangle
    return matrix + matrix.triu(1).T


def is_covariance(matrix: Tensor) -> bool:
    """True for a symmetric matrix without negative eigenvalues, up to SLACK times its largest entry."""
    largest = float(matrix.abs().max())
    slack = SLACK * torch.eye(len(matrix), dtype=matrix.dtype)
    return not largest or not torch.linalg.cholesky_ex(matrix / largest + slack).info


def _module(name: str) -> str:
    """The module's name X, from X.weight or X.bias."""
    return name.rpartition(".")[0]


def _triangle(size: int) -> int:
    """Number of entries in the upper triangle of a (size, size) matrix."""
    return size * (size + 1) // 2


def _factor(extras: Tensors, name: str, size: int) -> Tensor:
    """(size, size) float64; zeros for a device whose loss does not depend on the module."""
    if name not in extras:
        return torch.zeros(size, size, dtype=torch.float64)
    return symmetric(extras[name].double())


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return _sum([weight * value for weight, value in zip(weights, values, strict=True)])


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(0)
